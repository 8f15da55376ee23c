"""Variants of the tokenizer for the ablations: which levels each decoder uses, and which weights each loss trains."""

import pytest
import torch
from conftest import TINY_VQ, save_vision_tower
from transformers import AutoModel

from evotok import EvoTokVQConfig, EvoTokVQModel
from evotok.training.recipes import Recipe, read_recipe
from evotok.training.tokenizer.stage import model_class
from evotok.training.tokenizer.variants import VARIANTS


FIELDS = TINY_VQ | {"codebook_size": 16, "num_codebooks": 6, "codebook_warmup_steps": 0}


def build(variant: str) -> EvoTokVQModel:
    torch.manual_seed(0)
    encoder = TINY_VQ["encoder_config"] | {"num_hidden_layers": 2}
    return VARIANTS[variant](EvoTokVQConfig(**FIELDS | {"encoder_config": encoder}))


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


def test_forward_equals_encoding_and_decoding_at_every_depth(variant, pixels):
    model = build(variant).eval()
    with torch.no_grad():
        output = model(pixels)
        codes = model.encode(pixels)
        assert codes.shape == (4, 16, 6) and torch.equal(output.codes, codes)
        assert torch.allclose(output.reconstruction, model.decode_pixels(codes), atol=1e-5)
        assert torch.allclose(output.semantic_features, model.decode_semantics(codes), atol=1e-5)
        for depth in range(1, 7):
            assert model.decode_pixels(codes, depth=depth).shape == (4, 3, 32, 32)
            assert model.decode_semantics(codes, depth=depth).shape == (4, 16, 16)


def test_decoders_use_their_own_levels(variant, pixels):
    model = build(variant).eval()
    with torch.no_grad():
        codes = model.encode(pixels)
        first, rest = codes.clone(), codes.clone()
        first[..., :2] = (first[..., :2] + 1) % 16
        rest[..., 2:] = (rest[..., 2:] + 1) % 16
        uses = {
            name: [not torch.allclose(decode(changed), decode(codes)) for changed in (first, rest)]
            for name, decode in (("pixels", model.decode_pixels), ("semantics", model.decode_semantics))
        }
    if variant == "reversed":  # semantics from the first two levels, pixels from all six
        assert uses == {"pixels": [True, True], "semantics": [True, False]}
    else:
        assert uses == {"pixels": [True, False], "semantics": [False, True]}


def test_gradients_reach_the_encoder_of_the_variant(variant, pixels):
    def trained(loss) -> set[str]:
        model.zero_grad()
        loss.backward()
        return {
            name
            for name, p in model.named_parameters()
            if p.grad is not None and p.grad.abs().sum() > 0 and not name.endswith("bias")
        }

    model = build(variant).train()
    by_pixels = trained(model(pixels).reconstruction.square().mean())
    by_semantics = trained(model(pixels).semantic_features.square().mean())
    last_layer = [name for name in by_semantics if name.startswith("vision_tower.encoder.layers.1.")]
    assert last_layer, sorted(by_semantics)
    shared = {name for name in by_pixels & by_semantics if "tower" in name}
    if variant == "branches":
        assert not shared and any(name.startswith("pixel_tower.") for name in by_pixels)
    elif variant == "layers":
        assert shared and not by_pixels & set(last_layer)
    else:
        assert set(last_layer) <= by_pixels
    steps = [int(tensor) for name, tensor in model.state_dict().items() if name.endswith(".step")]
    assert steps == [2] * 6, "every codebook is updated by every forward pass"


def test_saved_variant_loads_with_the_same_codes(variant, pixels, tmp_path):
    model = build(variant).eval()
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model*.py")), "its code is not carried"
    assert torch.equal(type(model).from_pretrained(tmp_path).eval().encode(pixels), model.encode(pixels))


def test_encoders_start_from_a_vision_tower(variant, tmp_path):
    save_vision_tower(tmp_path)
    fields = {name: value for name, value in FIELDS.items() if name not in ("encoder_config", "semantic_feature_dim")}
    model = VARIANTS[variant].from_pretrained_encoder(str(tmp_path), **fields)
    tower = AutoModel.from_pretrained(tmp_path).state_dict()
    for own in [model.vision_tower] + ([model.pixel_tower] if variant == "branches" else []):
        assert own.config.num_hidden_layers == 2
        for name, tensor in own.state_dict().items():
            assert torch.equal(tensor, tower[name]), name
    assert model.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 6)


def test_model_class_is_the_variant_of_the_recipe():
    assert model_class(read_recipe("configs/ablations/layers.yaml")) is VARIANTS["layers"]
    assert model_class(read_recipe("configs/ablations/entangled.yaml")) is EvoTokVQModel
    recipe = Recipe("tokenizer")
    recipe.model.variant = "layer"
    with pytest.raises(ValueError, match=r"model\.variant 'layer' is not one of reversed, layers, branches"):
        model_class(recipe)
