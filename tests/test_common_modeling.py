"""Every model class behaves as Transformers' common tests of models ask (`ModelTesterMixin`)."""

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
STATES = ("hidden_states", "attentions")


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


def with_labels(model_class, inputs: dict) -> dict:
    return inputs | ({"labels": inputs["input_ids"]} if model_class is EvoTokForConditionalGeneration else {})


def every_config(config) -> list:
    """The configuration and those nested in it at any depth."""
    nested = [every_config(getattr(config, name)) for name in config.sub_configs]
    return [config, *(inner for configs in nested for inner in configs)]


def tensors_of(output) -> dict[str, torch.Tensor]:
    """Tensors of an output by name, those of tuples numbered."""
    tensors = {}
    for name, value in output.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, tuple):
            tensors |= {f"{name}.{i}": tensor for i, tensor in enumerate(value)}
    return tensors


# --- initialisation, saving, loading ----------------------------------------------------------------------------------


def test_weights_missing_from_a_checkpoint_are_drawn_like_new_ones(model_class, config, monkeypatch):
    draw = PreTrainedModel._initialize_weights

    def draw_seeded(*args, **kwargs):
        torch.manual_seed(42)
        draw(*args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", draw_seeded)
    fresh = model_class(copy.deepcopy(config)).state_dict()
    loaded = model_class.from_pretrained(None, config=copy.deepcopy(config), state_dict={}).state_dict()
    assert fresh.keys() == loaded.keys()
    assert [name for name, tensor in fresh.items() if not torch.equal(tensor, loaded[name])] == []


def test_nothing_but_parameters_and_buffers_is_needed(model_class, config, inputs, model):
    with torch.device("meta"):
        empty = model_class(copy.deepcopy(config)).eval()
    empty.to_empty(device="cpu")
    empty.init_weights()
    buffers = dict(empty.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    empty(**inputs)


def test_saving_and_loading_loses_nothing(model_class, inputs, model, tmp_path):
    with torch.no_grad():
        expected = tensors_of(model(**inputs))
        for folder in (tmp_path / "once", tmp_path / "twice"):
            model.save_pretrained(folder)
            assert (folder / "generation_config.json").exists() == model.can_generate()
            model, report = model_class.from_pretrained(folder, output_loading_info=True)
            assert not any(report.values()), report
            assert all(parameter.is_contiguous() for parameter in model.parameters())
            torch.testing.assert_close(tensors_of(model(**inputs)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_out_what_must_stay_whole(model_class, model, dtype, tmp_path):
    model.save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, dtype=dtype)
    kept, strictly_kept = model._keep_in_fp32_modules, model._keep_in_fp32_modules_strict
    assert not kept & strictly_kept
    names = "\n".join(f".{name}" for name in model.state_dict())
    assert all(f".{module}." in names for module in kept | strictly_kept)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            kept_now = strictly_kept | kept if dtype == torch.float16 else strictly_kept
            whole = any(f".{module}." in f".{name}" for module in kept_now)
            assert tensor.dtype == (torch.float32 if whole else dtype), name


# --- inputs and outputs -----------------------------------------------------------------------------------------------


def test_main_input_comes_first(model_class):
    assert list(inspect.signature(model_class.forward).parameters)[1] == model_class.main_input_name


@pytest.mark.parametrize("labelled", [False, True])
def test_tuples_hold_what_outputs_hold(model_class, inputs, model, labelled):
    inputs = with_labels(model_class, inputs) if labelled else inputs
    asked = {f"output_{name}": True for name in STATES}
    with torch.no_grad():
        output, row = model(**inputs, **asked, return_dict=True), model(**inputs, **asked, return_dict=False)
    assert isinstance(output, ModelOutput)
    assert isinstance(row, tuple)
    assert len(row) == len(output)
    for tensor, other in zip(output.to_tuple(), row, strict=True):
        if isinstance(tensor, torch.Tensor):
            assert tensor.dtype != torch.bool  # generic code subtracts outputs
            torch.testing.assert_close(tensor, other)


@pytest.mark.parametrize("how", ["argument", "config"])
def test_states_are_returned_when_asked(model_class, tester, config, inputs, how):
    config._attn_implementation = "eager"
    asked = {f"output_{name}": True for name in STATES}
    plain = model_class(copy.deepcopy(config)).eval()(**inputs)
    if how == "config":
        for part in every_config(config):
            for name in asked:
                setattr(part, name, True)
        asked = {}
    output = model_class(config).eval()(**inputs, **asked)
    assert len(output) == len(plain) + 2
    assert len(output.hidden_states) == tester.num_hidden_layers + 1
    assert {state.shape for state in output.hidden_states} == {
        (tester.batch_size, tester.seq_length, tester.hidden_size)
    }
    length = tester.seq_length
    assert len(output.attentions) == tester.num_hidden_layers
    assert {weights.shape for weights in output.attentions} == {
        (tester.batch_size, tester.num_attention_heads, length, length)
    }


def test_gradients_reach_the_first_states(model_class, config, inputs):
    model = model_class._from_config(config, attn_implementation="eager")
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    states = [output.hidden_states[0], output.attentions[0]]
    for state in states:
        state.retain_grad()
    output[0].flatten()[0].backward()
    assert all(state.grad is not None for state in states)


def test_a_batch_is_its_rows(inputs, model):
    with torch.no_grad():
        batch = tensors_of(model(**inputs, output_hidden_states=True))
        row = tensors_of(model(**{name: tensor[:1] for name, tensor in inputs.items()}, output_hidden_states=True))
    for name, tensor in row.items():
        if tensor.ndim and tensor.is_floating_point():
            torch.testing.assert_close(batch[name][:1], tensor, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_and_sdpa_attention_agree(model_class, inputs, model, dtype, tmp_path):
    model.save_pretrained(tmp_path)
    sdpa = model_class.from_pretrained(tmp_path, dtype=dtype, attn_implementation="sdpa")
    eager = model_class.from_pretrained(tmp_path, dtype=dtype, attn_implementation="eager")
    inputs = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    if "attention_mask" in inputs:
        inputs["attention_mask"][-1, -2:] = 0
    with torch.no_grad():
        states = [module(**inputs, output_hidden_states=True).hidden_states[-1] for module in (sdpa, eager)]
    if "attention_mask" in inputs:
        states = [state[inputs["attention_mask"].bool()] for state in states]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(*states, atol=tolerance, rtol=tolerance)


def test_attention_is_set_in_every_part(model_class, config):
    config._attn_implementation = "eager"
    model = model_class(config)
    configs = every_config(config) + [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        assert {part._attn_implementation for part in configs} == {name}
    with pytest.raises(ValueError, match="foo"):
        model.set_attn_implementation("foo")
    for key in config.sub_configs:
        model.set_attn_implementation({key: "sdpa"})
        changed = every_config(getattr(config, key))
        assert [part._attn_implementation == "sdpa" for part in configs] == [part in changed for part in configs]
        model.set_attn_implementation({key: "eager"})


# --- embeddings and training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [c for c in CLASSES if c.main_input_name != "pixel_values"])
def test_input_embeddings_can_be_replaced(model):
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    replacement = nn.Embedding(10, 10)
    model.set_input_embeddings(replacement)
    assert model.get_input_embeddings() is replacement
    output = model.get_output_embeddings()
    assert output is None or isinstance(output, nn.Linear)


def test_inputs_can_be_made_to_require_gradients(model):
    model.enable_input_require_grads()
    model.disable_input_require_grads()


def test_gradient_checkpointing_is_switched_everywhere(model):
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert layers
    assert not any(layer.gradient_checkpointing for layer in layers)
    model.gradient_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in layers)
    model.gradient_checkpointing_disable()
    assert not any(layer.gradient_checkpointing for layer in layers)


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_first_layer_is_run_again_and_gradients_stay(reentrant):
    torch.manual_seed(0)
    config, inputs = MultimodalTester().prepare_config_and_inputs_for_common()
    model = EvoTokForConditionalGeneration(config).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        layer = next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
        calls = []
        hook = layer.self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        hook.remove()
        assert len(calls) == 1 + checkpointing
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    torch.testing.assert_close(*gradients)
    assert gradients[0].keys() == {name for name, p in model.named_parameters() if p.requires_grad}


# --- multimodal models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", MULTIMODAL)
def test_embeddings_stand_for_ids(inputs, model):
    with torch.no_grad():
        expected = model(**inputs)[0]
        embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
        torch.testing.assert_close(model(inputs_embeds=embeddings, **inputs)[0], expected)


@pytest.mark.parametrize("model_class", MULTIMODAL)
@pytest.mark.parametrize("how", ["argument", "config"])
def test_image_features(model_class, config, inputs, how):
    config._attn_implementation = "eager"
    asked = {f"output_{name}": True for name in STATES}
    if how == "config":
        for part in every_config(config):
            for name in asked:
                setattr(part, name, True)
        asked = {}
    pixels = inputs["pixel_values"]
    features = model_class(config).eval().get_image_features(pixels, **asked)
    assert features.last_hidden_state.shape == (len(pixels), POSITIONS, config.vq_config.hidden_size)
    assert features.pooler_output.shape == (len(pixels), POSITIONS, config.text_config.hidden_size)
    layers = VQ["encoder_config"]["num_hidden_layers"]
    assert (len(features.hidden_states), len(features.attentions)) == (layers + 1, layers)


def test_image_features_as_a_tuple():
    config, inputs = MultimodalTester().prepare_config_and_inputs_for_common()
    config.return_dict = False
    assert isinstance(EvoTokModel(config).eval().get_image_features(inputs["pixel_values"]), tuple)


def test_shifted_labels_stand_for_labels():
    """Training that splits the sequence shifts labels before the model does, and then the model must not."""
    torch.manual_seed(0)
    config, inputs = MultimodalTester().prepare_config_and_inputs_for_common()
    model = EvoTokForConditionalGeneration(config).eval()
    labels = inputs["input_ids"]
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        expected = model(**inputs, labels=labels).loss
        assert torch.equal(model(**inputs, labels=torch.zeros_like(labels), shift_labels=shifted).loss, expected)
        assert not torch.equal(model(**inputs, labels=labels, shift_labels=labels).loss, expected)


def test_shifted_labels_ask_for_the_image_loss():
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
    assert plain.image_loss > 0
    torch.testing.assert_close((moved.image_loss, moved.text_loss), (plain.image_loss, plain.text_loss))
