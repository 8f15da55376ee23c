"""Weight-only int8: its error, both ways of multiplication, saved checkpoints, compilation."""

from importlib.machinery import SourceFileLoader

import pytest
import torch
from conftest import save_chat_model
from torch import nn
from transformers import AutoModelForMultimodalLM, CompileConfig
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from evotok import EvoTokInt8Config
from evotok.commands.checkpoints import load_multimodal
from evotok.modeling_evotok import int8_evotok, modeling_evotok
from evotok.modeling_evotok.int8_evotok import EvoTokInt8Linear, quantize_weight


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint in float32, and in `int8` the same in int8, saved in bfloat16."""
    folder = tmp_path_factory.mktemp("checkpoint")
    processor = save_chat_model(folder)
    quantized = load(folder, dtype=torch.bfloat16, quantization_config=EvoTokInt8Config())
    quantized.save_pretrained(folder / "int8")
    processor.save_pretrained(folder / "int8")
    return folder


def load(folder, **kwargs):
    return AutoModelForMultimodalLM.from_pretrained(folder, **kwargs)


def int8_layer(in_features: int, dtype: torch.dtype, bias: bool = True) -> tuple[EvoTokInt8Linear, nn.Linear]:
    """Builds a layer, and a linear layer in float64 with the weights that it stands for."""
    torch.manual_seed(0)
    plain = nn.Linear(in_features, 24, bias=bias, dtype=dtype)
    layer = EvoTokInt8Linear(in_features, 24, bias, torch.int8)
    layer.weight.data, layer.weight_scale.data = quantize_weight(plain.weight.data)
    layer.bias = plain.bias
    exact = nn.Linear(in_features, 24, bias=bias, dtype=torch.float64)
    exact.weight.data = layer.weight.double() * layer.weight_scale.double()[:, None]
    if bias:
        exact.bias.data = plain.bias.data.double()
    return layer.requires_grad_(False), exact.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_at_most_half_a_step_off(dtype):
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3] = 0
    quantized, scale = quantize_weight(weight)
    assert (quantized.dtype, scale.dtype, scale.shape) == (torch.int8, dtype, (64,))
    steps = (weight.double() / scale.double()[:, None] - quantized).abs()
    # In bfloat16 a scale may be rounded down, so that the largest weight is beyond 127 steps.
    assert steps.amax() <= (0.5001 if dtype == torch.float32 else 0.75)
    assert not quantized[3].any() and scale[3] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_features", [32, 40])  # the kernel takes multiples of 16 only
@pytest.mark.parametrize("shape", [(), (2,), (2, 1), (1, 16), (2, 9), (0,)])
def test_layer_multiplies_by_its_weights(dtype, in_features, shape):
    layer, exact = int8_layer(in_features, dtype)
    states = torch.randn(*shape, in_features).to(dtype)
    output, expected = layer(states), exact(states.double())
    assert output.dtype == dtype and output.shape == expected.shape
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("shape", "dtype", "in_features", "gradient", "uses"),
    [
        ((2, 1), torch.bfloat16, 32, False, True),
        ((16,), torch.bfloat16, 32, False, True),
        ((17,), torch.bfloat16, 32, False, False),
        ((2,), torch.float32, 32, False, False),
        ((2,), torch.bfloat16, 40, False, False),
        ((2,), torch.bfloat16, 32, True, False),
    ],
)
def test_kernel_multiplies_few_rows_in_bfloat16(monkeypatch, shape, dtype, in_features, gradient, uses):
    layer, _ = int8_layer(in_features, dtype, bias=False)
    calls, kernel = [], torch._weight_int8pack_mm
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda *tensors: calls.append(1) or kernel(*tensors))
    output = layer(torch.randn(*shape, in_features, dtype=dtype, requires_grad=gradient))
    assert bool(calls) is uses and output.requires_grad is gradient


def test_saved_checkpoint_has_the_same_weights_in_half_the_bytes(folder):
    first = load(folder, dtype=torch.bfloat16, quantization_config=EvoTokInt8Config())
    again = load(folder / "int8", dtype=torch.bfloat16)
    for (name, tensor), (other, expected) in zip(again.state_dict().items(), first.state_dict().items(), strict=True):
        assert name == other and tensor.dtype == expected.dtype and torch.equal(tensor, expected)
    layer = again.depth_decoder.layers[0].mlp.fc1
    assert layer.weight.dtype == torch.int8 and layer.weight_scale.dtype == torch.bfloat16
    whole = load(folder, dtype=torch.bfloat16).depth_decoder.layers[0].mlp.fc1
    dequantized = layer.weight * layer.weight_scale[:, None]
    torch.testing.assert_close(dequantized, whole.weight, rtol=0, atol=whole.weight.abs().amax().item() / 127)


def test_checkpoints_carry_the_quantizer():
    carried = get_relative_import_files(modeling_evotok.__file__)
    assert int8_evotok.__file__ in carried
    copy = SourceFileLoader("carried_int8", int8_evotok.__file__).load_module()  # beside the package
    assert copy.EvoTokInt8Quantizer is not int8_evotok.EvoTokInt8Quantizer
    assert AUTO_QUANTIZER_MAPPING[int8_evotok.QUANT_METHOD] is int8_evotok.EvoTokInt8Quantizer


def test_commands_load_int8_in_bfloat16_on_a_cpu(folder, monkeypatch):
    monkeypatch.setattr("evotok.commands.checkpoints.pick_device", lambda: torch.device("cpu"))
    model, _ = load_multimodal(str(folder / "int8"))
    layer = model.depth_decoder.layers[0].mlp.fc1
    assert isinstance(layer, EvoTokInt8Linear) and layer.bias.dtype == torch.bfloat16
    whole, _ = load_multimodal(str(folder))
    assert whole.depth_decoder.layers[0].mlp.fc1.bias.dtype == torch.float32


def test_modules_to_skip_keep_their_dtype(folder):
    skipped = ["depth_decoder.layers.0"]
    model = load(folder, dtype=torch.bfloat16, quantization_config=EvoTokInt8Config(modules_to_not_convert=skipped))
    layers = model.depth_decoder.layers
    assert not any(isinstance(module, EvoTokInt8Linear) for module in layers[0].modules())
    assert isinstance(layers[1].mlp.fc1, EvoTokInt8Linear)


def test_positions_compile_as_one_graph(folder):
    model = load(folder, dtype=torch.float32, quantization_config=EvoTokInt8Config())
    prompt = {"inputs": torch.tensor([[3, 4]]), "generation_mode": "image", "do_sample": False}
    compiled = model.generate(**prompt, compile_config=CompileConfig(fullgraph=True, backend="eager", mode=None))
    assert torch.equal(compiled, model.generate(**prompt))


def test_int8_model_is_not_trained(folder):
    assert load(folder / "int8").hf_quantizer.is_trainable is False
