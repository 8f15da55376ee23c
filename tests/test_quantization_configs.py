"""Quantized loading: the language model shrinks, the tokenizer and the classifiers of codes stay as they are.

Quantizers of Transformers replace linear layers on the meta device before weights are loaded. All of them select the
layers by `HfQuantizer.get_modules_to_not_convert` and `should_convert_module`. Installed quantizers run themselves.
"""

import importlib.util

import pytest
import torch
from conftest import build_chat_model, save_chat_model
from torch import nn
from transformers import AutoModelForMultimodalLM, BitsAndBytesConfig, TorchAoConfig
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from evotok import EvoTokInt8Config


KEPT = ("model.vq_model.", "depth_decoder.classifiers.", "lm_head")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_chat_model(folder)
    return folder


def converted(model, skipped: list[str] | None = None) -> set[str]:
    """Returns the names of the linear layers that a quantization config with these modules to skip converts."""
    patterns = HfQuantizer.get_modules_to_not_convert(model, skipped, model._keep_in_fp32_modules)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    by_name = {name for name in linear if should_convert_module(name, patterns)}
    assert by_name == {name for name in linear if should_convert_module(f"{name}.weight", patterns)}
    return by_name


def test_quantizer_skips_tokenizer_classifiers_and_text_head(tiny_model):
    linear = {name for name, module in tiny_model.named_modules() if isinstance(module, nn.Linear)}
    kept = {name for name in linear if name.startswith(KEPT)}
    assert all(any(name.startswith(part) for name in kept) for part in KEPT)
    assert converted(tiny_model) == linear - kept
    assert {name.split(".")[0] for name in linear - kept} == {"model", "depth_decoder"}


def test_modules_to_skip_of_the_user_are_added(tiny_model):
    more = converted(tiny_model, ["model.language_model.layers.0"])
    assert not any(name.startswith((*KEPT[:2], "model.language_model.layers.0.")) for name in more)
    assert any(name.startswith("model.language_model.layers.1.") for name in more)


def test_quantizer_skips_the_tokenizer_of_the_base_model(tiny_model):
    names = converted(tiny_model.model)
    assert names and not any(name.startswith("vq_model.") for name in names)


def test_half_precision_keeps_the_unquantized_modules(folder):
    """fp16 uses the same list: classifiers in fp32, on hidden states in fp16."""
    model = AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float16)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    for name, dtype in dtypes.items():
        whole = name.startswith(KEPT[:2])
        assert dtype == (torch.float32 if whole else torch.float16), name
    codes = model.generate(torch.tensor([[3, 4]]), generation_mode="image", do_sample=False)
    assert codes.shape == (1, 16, 2)


def int8(model_folder, library: str, **kwargs):
    if library == "evotok":
        config = EvoTokInt8Config()
    elif library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    return AutoModelForMultimodalLM.from_pretrained(model_folder, quantization_config=config, **kwargs)


@pytest.mark.parametrize("library", ["evotok", "torchao", "bitsandbytes"])
def test_int8_model_answers_and_generates_images(folder, library, pixels):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    whole, processor = build_chat_model()
    model = int8(folder, library, dtype=torch.bfloat16)
    modules, plain = dict(model.named_modules()), (nn.Parameter, torch.Tensor)
    shrunk = {
        name
        for name, module in whole.named_modules()
        if isinstance(module, nn.Linear)
        and (type(modules[name]) is not type(module) or type(modules[name].weight) not in plain)
    }
    assert shrunk == converted(whole)
    assert torch.equal(model.model.vq_model.encode(pixels), whole.model.vq_model.encode(pixels))
    chat = [{"role": "user", "content": "a cat"}]
    tensors = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **tensors)
    assert model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    inputs = processor.apply_chat_template(chat, generation_mode="image", **tensors)
    codes = model.generate(**inputs, generation_mode="image", do_sample=False)
    assert torch.isfinite(model.decode_image_tokens(codes)).all()
