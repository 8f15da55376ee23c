"""The image tokenizer: sizes at the paper's scale, depths, precision, saving, real encoders, bad input."""

import copy

import pytest
import torch
from conftest import TINY_VQ
from transformers import SiglipVisionConfig, SiglipVisionModel

from evotok import EvoTokVQConfig, EvoTokVQModel
from evotok.modeling_evotok import modeling_evotok_vq


def tiny_config(**fields) -> EvoTokVQConfig:
    return EvoTokVQConfig(**(TINY_VQ | {"semantic_num_attention_heads": 3} | fields))


def random_pixels(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = EvoTokVQModel(tiny_config()).eval()
    for codebook in model.quantizer.codebooks:
        codebook.weight.data.normal_(std=0.3)
    return model


def test_model_has_the_size_of_the_paper():
    with torch.device("meta"):
        model = EvoTokVQModel(EvoTokVQConfig())
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sizes == {
        "vision_tower": 290_762_752,
        "to_latent": 1_082_400,
        "quantizer": 16_777_216,
        "semantic_decoder": 40_135_656,
        "pixel_decoder": 42_458_243,
    }


def test_decoding_at_a_depth_uses_a_prefix_of_the_levels(model):
    pixels = random_pixels()
    codes, output = model.encode(pixels), model(pixels)
    assert codes.shape == (2, 16, 4) and codes.dtype == torch.long and torch.equal(output.codes, codes)
    assert torch.equal(model.encode(pixels, depth=3), codes[..., :3])
    assert output.reconstruction.shape == pixels.shape and output.semantic_features.shape == (2, 16, 16)
    for prefix in (codes, codes[..., :2]):
        torch.testing.assert_close(model.decode_pixels(prefix), output.reconstruction)
    torch.testing.assert_close(model.decode_semantics(codes), output.semantic_features)
    torch.testing.assert_close(model.decode_pixels(codes, depth=3), model.decode_pixels(codes[..., :3], depth=3))
    assert not torch.allclose(model.decode_pixels(codes, depth=1), model.decode_pixels(codes, depth=4))


def test_encode_is_equal_in_a_batch_and_under_autocast(model):
    pixels = random_pixels(3)
    codes = model.encode(pixels)
    assert torch.equal(torch.cat([model.encode(image[None]) for image in pixels]), codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encode(pixels), codes)


def test_encode_clamps_pixels_or_refuses_them(model, monkeypatch):
    pixels, warnings = random_pixels(), []
    monkeypatch.setattr(modeling_evotok_vq.logger, "warning_once", warnings.append)
    model.encode(pixels * 1.4)
    assert not warnings
    assert torch.equal(model.encode(pixels * 3), model.encode((pixels * 3).clamp(-1, 1)))
    assert "clamped" in warnings.pop()
    for bad in ((pixels + 1) * 127.5, pixels.log()):
        for run in (model.encode, copy.deepcopy(model).train()):
            with pytest.raises(ValueError, match="NaN or values far outside"):
                run(bad)


def test_reconstructions_are_resized_with_pixel_resize():
    encoder = TINY_VQ["encoder_config"] | {"image_size": 38, "patch_size": 9}
    with pytest.raises(Exception, match="set pixel_resize"):
        tiny_config(encoder_config=encoder)
    model = EvoTokVQModel(tiny_config(encoder_config=encoder, pixel_resize=True)).eval()
    pixels = torch.rand(1, 3, 38, 38) * 2 - 1
    assert model(pixels).reconstruction.shape == model.decode_pixels(model.encode(pixels)).shape == pixels.shape


def test_saved_model_loads_with_exact_codebooks(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".py"}
    loaded, info = EvoTokVQModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded.encode(random_pixels()), model.encode(random_pixels()))
    for half in (EvoTokVQModel.from_pretrained(tmp_path, dtype=torch.bfloat16), loaded.bfloat16()):
        assert torch.equal(half.quantizer.codebooks[0].weight, model.quantizer.codebooks[0].weight)
        assert half.pixel_decoder.conv_in.weight.dtype == torch.bfloat16
        assert half.decode_pixels(half.encode(random_pixels())).shape == (2, 3, 32, 32)


def test_training_updates_codebooks_and_checkpointing_keeps_gradients():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = EvoTokVQModel(tiny_config(codebook_warmup_steps=0)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        before = model.quantizer.codebooks[0].weight.clone()
        output = model(random_pixels())
        (output.reconstruction.square().mean() + output.semantic_features.square().mean() + output.vq_loss).backward()
        assert not torch.equal(model.quantizer.codebooks[0].weight, before)
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients)


def test_from_pretrained_encoder_copies_all_but_the_last_layer(tmp_path):
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    source = SiglipVisionModel(config).eval()
    source.save_pretrained(tmp_path)
    fields = {name: value for name, value in TINY_VQ.items() if name not in ("encoder_config", "semantic_feature_dim")}
    model = EvoTokVQModel.from_pretrained_encoder(str(tmp_path), **fields).eval()
    assert model.config.encoder_config.num_hidden_layers == 2 and model.config.semantic_feature_dim == 32
    expected = source(random_pixels(), output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(model.vision_tower(random_pixels()).last_hidden_state, expected)


def test_bad_inputs_and_configs_are_refused(model):
    codes = model.encode(random_pixels())
    refusals = [
        (r"must be \(batch, 3, 32, 32\)", lambda: model.encode(torch.zeros(1, 3, 64, 64))),
        ("depth=9 must be between 1 and the 4 levels", lambda: model.decode_pixels(codes, depth=9)),
        ("the codebooks hold 32 entries", lambda: model.decode_pixels(codes + 32)),
        (r"must be \(batch, 16, levels\)", lambda: model.decode_semantics(codes[:, :3])),
        ("num_pixel_codebooks=20 must be between 1", lambda: tiny_config(num_pixel_codebooks=20)),
        ("upsamples by 2", lambda: tiny_config(pixel_channel_multipliers=[1, 2])),
    ]
    for message, call in refusals:
        with pytest.raises(Exception, match=message):
            call()
