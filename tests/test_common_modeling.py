"""Every model class behaves as Transformers' common tests of models require (`ModelTesterMixin`)."""

import copy
import inspect

import pytest
import torch
from common_testers import POSITIONS, TESTERS, VQ, MultimodalTester
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from evotok import EvoTokForConditionalGeneration, EvoTokModel


CLASSES = {model_class: tester for tester in TESTERS for model_class in tester.model_classes}
MULTIMODAL = list(MultimodalTester.model_classes)
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
    """Configuration and inputs."""
    return tester.prepare_config_and_inputs_for_common()


@pytest.fixture
def config(prepared):
    return prepared[0]


@pytest.fixture
def inputs(prepared):
    return prepared[1]


@pytest.fixture
def model(model_class, config):
    return model_class(copy.deepcopy(config)).eval()


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


def tensors_of(output) -> dict[str, torch.Tensor]:
    """Lists the tensors of an output by name, those of tuples numbered."""
    tensors = {}
    for name, value in output.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, tuple):
            tensors |= {f"{name}.{i}": tensor for i, tensor in enumerate(value)}
    return tensors


# --- initialisation, saving, loading ----------------------------------------------------------------------------------


def test_missing_weights_are_initialised_like_new_ones(model_class, config, monkeypatch):
    initialize = PreTrainedModel._initialize_weights

    def initialize_seeded(*args, **kwargs):
        torch.manual_seed(42)
        initialize(*args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", initialize_seeded)
    new = model_class(copy.deepcopy(config)).state_dict()
    loaded = model_class.from_pretrained(None, config=copy.deepcopy(config), state_dict={}).state_dict()
    assert new.keys() == loaded.keys()
    assert [name for name, tensor in new.items() if not torch.equal(tensor, loaded[name])] == []


def test_model_on_meta_can_be_initialised(model_class, config, inputs, model):
    with torch.device("meta"):
        empty = model_class(copy.deepcopy(config)).eval()
    empty.to_empty(device="cpu")
    empty.init_weights()
    buffers = dict(empty.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    empty(**inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saved_model_loads_equal_or_in_half_precision(model_class, inputs, model, dtype, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "generation_config.json").exists() == model.can_generate()
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        torch.testing.assert_close(tensors_of(loaded(**inputs)), tensors_of(model(**inputs)))
    half = model_class.from_pretrained(tmp_path, dtype=dtype)
    kept, strictly_kept = half._keep_in_fp32_modules, half._keep_in_fp32_modules_strict
    assert not kept & strictly_kept
    names = "\n".join(f".{name}" for name in half.state_dict())
    assert all(f".{module}." in names for module in kept | strictly_kept)
    kept = strictly_kept | kept if dtype == torch.float16 else strictly_kept
    for name, tensor in half.state_dict().items():
        if tensor.is_floating_point():
            in_fp32 = any(f".{module}." in f".{name}" for module in kept)
            assert tensor.dtype == (torch.float32 if in_fp32 else dtype), name


# --- inputs and outputs -----------------------------------------------------------------------------------------------


def test_main_input_comes_first(model_class):
    assert list(inspect.signature(model_class.forward).parameters)[1] == model_class.main_input_name


def test_tuples_hold_what_outputs_hold(model_class, inputs, model):
    if model_class is EvoTokForConditionalGeneration:
        inputs["labels"] = inputs["input_ids"]
    with torch.no_grad():
        output, row = model(**inputs, **STATES, return_dict=True), model(**inputs, **STATES, return_dict=False)
    assert isinstance(output, ModelOutput) and isinstance(row, tuple) and len(row) == len(output)
    for tensor, other in zip(output.to_tuple(), row, strict=True):
        if isinstance(tensor, torch.Tensor):
            assert tensor.dtype != torch.bool, "generic code subtracts outputs"
            torch.testing.assert_close(tensor, other)


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
    states = [output.hidden_states[0], output.attentions[0]]
    for state in states:
        state.retain_grad()
    output[0].flatten()[0].backward()
    assert all(state.grad is not None for state in states)


def test_batch_equals_its_rows(inputs, model):
    with torch.no_grad():
        batch = tensors_of(model(**inputs, output_hidden_states=True))
        row = tensors_of(model(**{name: tensor[:1] for name, tensor in inputs.items()}, output_hidden_states=True))
    for name, tensor in row.items():
        if tensor.ndim and tensor.is_floating_point():
            torch.testing.assert_close(batch[name][:1], tensor, atol=1e-5, rtol=1e-5, msg=name)


def test_eager_and_sdpa_attention_agree(model_class, config, inputs, model):
    eager = model_class._from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    if "attention_mask" in inputs:
        inputs["attention_mask"][-1, -2:] = 0
    with torch.no_grad():
        states = [each(**inputs, output_hidden_states=True).hidden_states[-1] for each in (model, eager)]
    if "attention_mask" in inputs:
        states = [state[inputs["attention_mask"].bool()] for state in states]
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)


def test_attention_is_set_in_every_part(model_class, config):
    config._attn_implementation = "eager"
    model = model_class(config)
    configs = nested_configs(config) + [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        assert {part._attn_implementation for part in configs} == {name}
    for key in config.sub_configs:
        model.set_attn_implementation({key: "sdpa"})
        changed = nested_configs(getattr(config, key))
        assert [part._attn_implementation == "sdpa" for part in configs] == [part in changed for part in configs]
        model.set_attn_implementation({key: "eager"})


# --- embeddings and training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [c for c in CLASSES if c.main_input_name != "pixel_values"])
def test_input_embeddings_can_be_replaced(model):
    model.enable_input_require_grads()
    model.disable_input_require_grads()
    replacement = nn.Embedding(10, 10)
    model.set_input_embeddings(replacement)
    assert model.get_input_embeddings() is replacement
    output = model.get_output_embeddings()
    assert output is None or isinstance(output, nn.Linear)


def test_gradient_checkpointing_is_set_in_every_layer(model):
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert layers and not any(layer.gradient_checkpointing for layer in layers)
    model.gradient_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in layers)
    model.gradient_checkpointing_disable()
    assert not any(layer.gradient_checkpointing for layer in layers)


# --- multimodal models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", MULTIMODAL)
def test_embeddings_replace_ids(inputs, model):
    with torch.no_grad():
        expected = model(**inputs)[0]
        embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
        torch.testing.assert_close(model(inputs_embeds=embeddings, **inputs)[0], expected)


@pytest.mark.parametrize("model_class", MULTIMODAL)
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
    """Training that splits the sequence shifts labels before the model does."""
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
