"""Every model class behaves as Transformers requires; `make test-hf` runs the rest of `ModelTesterMixin`."""

import copy

import pytest
import torch
from common_testers import POSITIONS, TESTERS, VQ, MultimodalTester
from torch import nn
from transformers import PreTrainedModel

from evotok import EvoTokForConditionalGeneration, EvoTokModel


CLASSES = {model_class: tester for tester in TESTERS for model_class in tester.model_classes}
STATES = {"output_hidden_states": True, "output_attentions": True}


@pytest.fixture(params=CLASSES, ids=lambda model_class: model_class.__name__)
def model_class(request):
    return request.param


@pytest.fixture
def tester(model_class):
    torch.manual_seed(0)
    return CLASSES[model_class]()


@pytest.fixture
def prepared(tester):
    """Returns the configuration and inputs of a model class."""
    return tester.prepare_config_and_inputs_for_common()


@pytest.fixture
def config(prepared):
    return prepared[0]


@pytest.fixture
def inputs(prepared):
    return prepared[1]


def nested_configs(config) -> list:
    """Lists a configuration and those nested in it at any depth."""
    nested = [nested_configs(getattr(config, name)) for name in config.sub_configs]
    return [config, *(inner for configs in nested for inner in configs)]


def request_states(config, how: str) -> dict:
    """Requests hidden states and attentions in all configurations, or returns arguments that request them."""
    config._attn_implementation = "eager"
    if how == "argument":
        return dict(STATES)
    for part in nested_configs(config):
        for name in STATES:
            setattr(part, name, True)
    return {}


def test_missing_weights_are_initialized_like_new_ones(model_class, config, monkeypatch):
    initialize = PreTrainedModel._initialize_weights

    def initialize_seeded(*args, **kwargs):
        torch.manual_seed(42)
        initialize(*args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", initialize_seeded)
    new = model_class(copy.deepcopy(config)).state_dict()
    loaded = model_class.from_pretrained(None, config=copy.deepcopy(config), state_dict={}).state_dict()
    assert new.keys() == loaded.keys()
    assert [name for name, tensor in new.items() if not torch.equal(tensor, loaded[name])] == []


def test_half_precision_loading_keeps_the_listed_modules_in_fp32(model_class, config, tmp_path):
    model_class(config).save_pretrained(tmp_path)
    half = model_class.from_pretrained(tmp_path, dtype=torch.float16)
    kept = half._keep_in_fp32_modules | half._keep_in_fp32_modules_strict
    for name, tensor in half.state_dict().items():
        if tensor.is_floating_point():
            in_fp32 = any(f".{module}." in f".{name}" for module in kept)
            assert tensor.dtype == (torch.float32 if in_fp32 else torch.float16), name


@pytest.mark.parametrize("how", ["argument", "config"])
def test_states_are_returned_on_request(model_class, tester, config, inputs, how):
    plain = model_class(copy.deepcopy(config)).eval()(**inputs)
    arguments = request_states(config, how)
    output = model_class(config).eval()(**inputs, **arguments)
    assert len(output) == len(plain) + 2
    rows, length, layers = tester.batch_size, tester.seq_length, tester.num_hidden_layers
    assert [state.shape for state in output.hidden_states] == [(rows, length, tester.hidden_size)] * (layers + 1)
    shape = (rows, tester.num_attention_heads, length, length)
    assert [weights.shape for weights in output.attentions] == [shape] * layers


def test_eager_and_sdpa_attention_agree(model_class, config, inputs):
    model = model_class(copy.deepcopy(config)).eval()
    eager = model_class._from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    mask = inputs.get("attention_mask")
    if mask is not None:
        mask[-1, -2:] = 0
    with torch.no_grad():
        first, second = model(**inputs, return_dict=False), eager(**inputs, return_dict=False)
    for tensor, other in zip(first, second, strict=True):
        if isinstance(tensor, torch.Tensor):
            kept = ... if mask is None or tensor.shape[:2] != mask.shape else mask.bool()
            torch.testing.assert_close(tensor[kept], other[kept], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_class", MultimodalTester.model_classes)
@pytest.mark.parametrize("how", ["argument", "config"])
def test_image_features_have_the_usual_fields(model_class, config, inputs, how):
    arguments = request_states(config, how)
    pixels = inputs["pixel_values"]
    features = model_class(config).eval().get_image_features(pixels, **arguments)
    assert features.last_hidden_state.shape == (len(pixels), POSITIONS, config.vq_config.hidden_size)
    assert features.pooler_output.shape == (len(pixels), POSITIONS, config.text_config.hidden_size)
    layers = VQ["encoder_config"]["num_hidden_layers"]
    assert (len(features.hidden_states), len(features.attentions)) == (layers + 1, layers)
    config.return_dict = False
    assert isinstance(EvoTokModel(config).eval().get_image_features(pixels), tuple)


def test_shifted_labels_replace_labels():
    """A training that splits sequences shifts the labels before the model does."""
    torch.manual_seed(0)
    config, inputs = MultimodalTester().prepare_config_and_inputs_for_common()
    model = EvoTokForConditionalGeneration(config).eval()
    ids = inputs["input_ids"]
    ids[:, POSITIONS + 1 : 2 * POSITIONS + 1] = config.image_generation_token_id
    codes = torch.randint(VQ["codebook_size"], (len(ids), POSITIONS, VQ["num_pixel_codebooks"]))
    shifted = nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        plain = model(**inputs, generation_codes=codes, labels=ids)
        moved = model(**inputs, generation_codes=codes, labels=torch.full_like(ids, -100), shift_labels=shifted)
        other = model(**inputs, generation_codes=codes, labels=ids, shift_labels=ids)
    assert plain.image_loss > 0 and not torch.equal(plain.text_loss, other.text_loss)
    torch.testing.assert_close((moved.image_loss, moved.text_loss), (plain.image_loss, plain.text_loss))
