"""The image tokenizer: sizes at the paper's scale, prefixes of the trajectory, saving, real encoders, bad input."""

import copy

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from evotok import EvoTokVQConfig, EvoTokVQModel
from evotok.modeling_evotok import input_checks_evotok


def tiny_config(**fields):
    encoder = {
        "model_type": "siglip_vision_model",
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vision_use_head": False,
    }
    defaults = {
        "encoder_config": encoder,
        "codebook_size": 64,
        "codebook_dim": 8,
        "num_codebooks": 4,
        "num_pixel_codebooks": 2,
        "pixel_latent_channels": 16,
        "pixel_base_channels": 8,
        "pixel_channel_multipliers": [1, 2, 2, 2],
        "pixel_num_res_blocks": 1,
        "pixel_norm_groups": 4,
        "semantic_hidden_size": 32,
        "semantic_num_hidden_layers": 1,
        "semantic_num_attention_heads": 3,
        "semantic_feature_dim": 24,
    }
    return EvoTokVQConfig(**(defaults | fields))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = EvoTokVQModel(tiny_config()).eval()
    for codebook in model.quantizer.codebooks:
        codebook.weight.data.normal_(std=0.3)
    return model


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_at_the_papers_size():
    with torch.device("meta"):
        model = EvoTokVQModel(EvoTokVQConfig())
    assert count(model.vision_tower) == 290_762_752
    assert count(model.to_latent) == 1_082_400
    assert count(model.quantizer) == 16_777_216
    assert count(model.semantic_decoder) == 40_135_656
    assert count(model.pixel_decoder) == 42_458_243
    assert count(model) == 391_216_267


def test_shapes_and_prefixes(model):
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    codes = model.encode(pixels)
    assert codes.shape == (2, 16, 4) and codes.dtype == torch.long
    output = model(pixels)
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(model.decode_pixels(codes), output.reconstruction)
    torch.testing.assert_close(model.decode_pixels(codes[..., :2]), output.reconstruction)
    torch.testing.assert_close(model.decode_semantics(codes), output.semantic_features)
    assert output.reconstruction.shape == pixels.shape and output.semantic_features.shape == (2, 16, 24)
    for depth in range(1, 5):
        torch.testing.assert_close(
            model.decode_pixels(codes, depth=depth), model.decode_pixels(codes[..., :depth], depth)
        )
    assert not torch.allclose(model.decode_pixels(codes, depth=1), model.decode_pixels(codes, depth=4))


def test_positions_are_row_major(model):
    """Codes changed in the first row of the grid change only the upper part of what attention does not mix."""
    codes = model.encode(torch.zeros(1, 3, 32, 32))
    features = model.quantizer.decode_codes(codes).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(features[0, :, 1, 2], model.quantizer.decode_codes(codes)[0, 1 * 4 + 2])


def test_encoding_is_the_same_alone_in_a_batch_and_under_autocast(model):
    pixels = torch.rand(3, 3, 32, 32) * 2 - 1
    codes = model.encode(pixels)
    assert torch.equal(torch.cat([model.encode(image[None]) for image in pixels]), codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encode(pixels), codes)


def test_pixels_out_of_range_are_clamped(model):
    pixels = torch.randn(1, 3, 32, 32) * 3
    assert torch.equal(model.encode(pixels), model.encode(pixels.clamp(-1, 1)))


def test_codebooks_are_not_cast(model):
    before = {name: tensor.clone() for name, tensor in model.quantizer.state_dict().items()}
    half = copy.deepcopy(model).half()
    assert half.vision_tower.dtype == torch.float16
    assert all(torch.equal(tensor, before[name]) for name, tensor in half.quantizer.state_dict().items())


def test_bytes_that_were_never_scaled_are_refused(model, monkeypatch):
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    said = []
    monkeypatch.setattr(input_checks_evotok.logger, "warning_once", said.append)
    model.encode(pixels * 1.4)
    assert not said
    model.encode(pixels * 3)
    assert "clamped" in said.pop()
    for bad in ((pixels + 1) * 127.5, pixels.log()):
        for run in (model.encode, model, copy.deepcopy(model).train()):
            with pytest.raises(ValueError, match="NaN or values far outside"):
                run(bad)


def test_reconstructions_are_resized_where_the_grid_is_not_a_whole_image():
    encoder = tiny_config().encoder_config.to_dict() | {"image_size": 38, "patch_size": 9}
    with pytest.raises(Exception, match="set pixel_resize"):
        tiny_config(encoder_config=encoder)
    model = EvoTokVQModel(tiny_config(encoder_config=encoder, pixel_resize=True)).eval()
    pixels = torch.rand(1, 3, 38, 38) * 2 - 1
    assert model(pixels).reconstruction.shape == model.decode_pixels(model.encode(pixels)).shape == pixels.shape


def test_save_and_load_give_the_same_codes(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = EvoTokVQModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(loaded.encode(pixels), model.encode(pixels))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".py"}


def test_half_precision_loading_keeps_the_codebooks_whole(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = EvoTokVQModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.quantizer.codebooks[0].weight.dtype == torch.float32
    assert loaded.pixel_decoder.conv_in.weight.dtype == torch.bfloat16
    assert loaded.decode_pixels(loaded.encode(torch.zeros(1, 3, 32, 32))).shape == (1, 3, 32, 32)


def test_training_step_reaches_every_part_and_moves_the_codebooks():
    torch.manual_seed(0)
    model = EvoTokVQModel(tiny_config(codebook_warmup_steps=0)).train()
    before = model.quantizer.codebooks[0].weight.clone()
    output = model(torch.rand(2, 3, 32, 32) * 2 - 1)
    (output.reconstruction.square().mean() + output.semantic_features.square().mean() + output.vq_loss).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert not torch.equal(model.quantizer.codebooks[0].weight, before)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = EvoTokVQModel(tiny_config(codebook_restart_threshold=0)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)).semantic_features.square().mean().backward()
        gradients.append(model.semantic_decoder.layers[0].mlp.fc1.weight.grad)
    torch.testing.assert_close(*gradients)


def test_starts_from_a_siglip_checkpoint_without_its_last_layer(tmp_path):
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    source = SiglipVisionModel(config).eval()
    source.save_pretrained(tmp_path)
    fields = tiny_config().to_dict()
    kept = {k: fields[k] for k in fields if k.startswith(("codebook_", "num_", "pixel_", "semantic_hidden"))}
    model = EvoTokVQModel.from_pretrained_encoder(str(tmp_path), **kept).eval()
    assert model.config.encoder_config.num_hidden_layers == 2 and model.config.semantic_feature_dim == 32
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = source(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(model.vision_tower(pixels).last_hidden_state, expected)


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match=r"must be \(batch, 3, 32, 32\)"):
        model.encode(torch.zeros(1, 3, 64, 64))
    codes = model.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="depth=9 must be between 1 and the 4 levels"):
        model.decode_pixels(codes, depth=9)
    with pytest.raises(ValueError, match="the codebooks hold 64 entries"):
        model.decode_pixels(codes + 64)
    with pytest.raises(ValueError, match=r"must be \(batch, 16, levels\)"):
        model.decode_semantics(codes[:, :3])
    with pytest.raises(Exception, match="num_pixel_codebooks=20 must be between 1"):
        tiny_config(num_pixel_codebooks=20)
    with pytest.raises(Exception, match="upsamples by 2"):
        tiny_config(pixel_channel_multipliers=[1, 2])
