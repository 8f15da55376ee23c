"""The arrangements that the ablations compare: who reads what, and what reaches whom."""

import pytest
import torch
from conftest import save_vision_tower
from transformers import AutoModel

from evotok import EvoTokVQConfig, EvoTokVQModel
from evotok.training.recipes import Recipe, read_recipe
from evotok.training.tokenizer.stage import model_class
from evotok.training.tokenizer.variants import VARIANTS


def build(variant: str) -> EvoTokVQModel:
    torch.manual_seed(0)
    encoder = {
        "model_type": "siglip_vision_model",
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vision_use_head": False,
    }
    sizes = {
        "codebook_size": 16,
        "codebook_dim": 8,
        "num_codebooks": 6,
        "num_pixel_codebooks": 2,
        "pixel_latent_channels": 8,
        "pixel_base_channels": 8,
        "pixel_channel_multipliers": [1, 1, 1, 1],
        "pixel_num_res_blocks": 0,
        "pixel_norm_groups": 2,
        "semantic_hidden_size": 16,
        "semantic_num_hidden_layers": 1,
        "semantic_num_attention_heads": 2,
        "semantic_feature_dim": 12,
        "codebook_warmup_steps": 0,
    }
    return VARIANTS[variant](EvoTokVQConfig(encoder_config=encoder, **sizes))


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_forward_decodes_what_the_codes_say(variant, pixels):
    model = build(variant).eval()
    with torch.no_grad():
        output = model(pixels)
        codes = model.encode(pixels)
        assert codes.shape == (3, 16, 6) and torch.equal(output.codes, codes)
        assert torch.allclose(output.reconstruction, model.decode_pixels(codes), atol=1e-5)
        assert torch.allclose(output.semantic_features, model.decode_semantics(codes), atol=1e-5)
    assert output.reconstruction.shape == (3, 3, 32, 32) and output.semantic_features.shape == (3, 16, 12)


def test_each_decoder_reads_its_own_levels(variant, pixels):
    model = build(variant).eval()
    with torch.no_grad():
        codes = model.encode(pixels)
        first, rest = codes.clone(), codes.clone()
        first[..., :2] = (first[..., :2] + 1) % 16
        rest[..., 2:] = (rest[..., 2:] + 1) % 16
        reads = {
            decoder: [not torch.allclose(decode(changed), decode(codes)) for changed in (first, rest)]
            for decoder, decode in (("pixels", model.decode_pixels), ("semantics", model.decode_semantics))
        }
    if variant == "reversed":  # semantics of the first two levels, pixels of all six
        assert reads == {"pixels": [True, True], "semantics": [True, False]}
    else:
        assert reads == {"pixels": [True, False], "semantics": [False, True]}


def test_every_depth_can_be_decoded(variant, pixels):
    model = build(variant).eval()
    with torch.no_grad():
        codes = model.encode(pixels)
        for depth in range(1, 7):
            assert model.decode_pixels(codes, depth=depth).shape == (3, 3, 32, 32)
            assert model.decode_semantics(codes, depth=depth).shape == (3, 16, 12)


def test_gradients_go_where_the_arrangement_lets_them(variant, pixels):
    def reached(loss) -> set[str]:
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()
        loss.backward()
        with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        return {name for name in names & with_gradient if not name.endswith("bias")}

    model = build(variant).train()
    of_pixels = reached(model(pixels).reconstruction.square().mean())
    of_semantics = reached(model(pixels).semantic_features.square().mean())
    last_layer = [name for name in of_semantics if name.startswith("vision_tower.encoder.layers.1.")]
    assert last_layer, sorted(of_semantics)
    shared = {name for name in of_pixels & of_semantics if "tower" in name}
    if variant == "branches":
        assert not shared and any(name.startswith("pixel_tower.") for name in of_pixels)
    elif variant == "layers":
        assert shared and not of_pixels & set(last_layer)
    else:
        assert set(last_layer) <= of_pixels
    assert of_pixels.isdisjoint(name for name in of_semantics if name.startswith("semantic_decoder."))


def test_training_teaches_every_codebook(variant, pixels):
    model = build(variant).train()
    model(pixels)
    steps = [int(tensor) for name, tensor in model.state_dict().items() if name.endswith(".step")]
    assert steps == [1] * 6


def test_saved_and_loaded_it_gives_the_same_codes(variant, pixels, tmp_path):
    model = build(variant).eval()
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model*.py"))  # a variant is no checkpoint to be shipped: its code stays here
    assert torch.equal(type(model).from_pretrained(tmp_path).eval().encode(pixels), model.encode(pixels))


def test_it_starts_from_a_vision_tower(variant, tmp_path):
    """Both encoders of `branches` do."""
    save_vision_tower(tmp_path)
    sizes = {"codebook_size": 16, "codebook_dim": 8, "num_codebooks": 6, "num_pixel_codebooks": 2}
    sizes |= {"pixel_channel_multipliers": [1, 1, 1, 1], "pixel_base_channels": 8, "pixel_norm_groups": 2}
    sizes |= {"semantic_hidden_size": 16, "semantic_num_attention_heads": 2, "semantic_num_hidden_layers": 1}
    model = VARIANTS[variant].from_pretrained_encoder(str(tmp_path), **sizes)
    tower = AutoModel.from_pretrained(tmp_path).state_dict()
    towers = [model.vision_tower] + ([model.pixel_tower] if variant == "branches" else [])
    for own in towers:
        assert own.config.num_hidden_layers == 2
        for name, tensor in own.state_dict().items():
            assert torch.equal(tensor, tower[name]), name
    assert model.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 6)


def test_a_recipe_names_its_variant():
    assert model_class(read_recipe("configs/ablations/layers.yaml")) is VARIANTS["layers"]
    assert model_class(read_recipe("configs/ablations/entangled.yaml")) is EvoTokVQModel
    recipe = Recipe("tokenizer")
    recipe.model.variant = "layer"
    with pytest.raises(ValueError, match=r"model\.variant 'layer' is not one of reversed, layers, branches"):
        model_class(recipe)
