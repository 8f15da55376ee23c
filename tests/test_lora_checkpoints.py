"""Folders of LoRA adapters: every form that training writes is merged, untrusted ones are refused."""

import json

import pytest
import torch
from bombs import little_memory
from conftest import build_tiny_model
from safetensors.torch import load_file, save_file


peft = pytest.importorskip("peft")

from evotok.training.multimodal.lora import base_of, merge_adapters  # noqa: E402 - needs PEFT


OURS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def save(folder, **fields):
    """Saves adapters with random weights on a tiny model."""
    fields = {"r": 4, "target_modules": OURS, "modules_to_save": ["semantic_projector"]} | fields
    model = peft.get_peft_model(build_tiny_model(), peft.LoraConfig(**fields))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target_modules": ["q_proj", "v_proj"], "modules_to_save": None},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}, "target_modules": ["q_proj", "k_proj"]},
        {"use_rslora": True, "lora_dropout": 0.1, "lora_alpha": 16},
        {"exclude_modules": ["layers.0.self_attn.q_proj"], "target_modules": ["q_proj"]},
    ],
)
def test_merge_adapters_equals_peft(tmp_path, fields):
    expected = save(tmp_path, **fields).merge_and_unload().state_dict()
    merged = merge_adapters(build_tiny_model(), tmp_path).state_dict()
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": "(a+)+$"}, "target_modules should be plain names"),
        ({"r": 10**6}, "r should not be 1000000"),
        ({"r": 60_000}, "adapters of rank 4 at .*, the config has another"),
        ({"rank_pattern": {"q_proj": 60_000}}, "adapters of rank 4 at .*q_proj, the config has another"),
        ({"peft_type": "IA3"}, "adapters of kind 'IA3'"),
        ({"target_modules": ["k_proj"]}, "adapters of another model, .* does not fit"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights should not be 'pissa'"),
        ({"unknown": 3}, "unknown should not be 3"),
        ({"use_dora": "yes"}, "use_dora should not be 'yes'"),
        ({"bias": "some"}, "bias should not be 'some'"),
    ],
    ids=str,
)
def test_merge_adapters_refuses_other_configs(tmp_path, fields, message):
    save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | fields))
    with little_memory(500), pytest.raises(ValueError, match=message) as refused:
        merge_adapters(build_tiny_model(), tmp_path)
    assert "\n" not in str(refused.value)


def test_merge_adapters_refuses_weights_of_another_config(tmp_path):
    save(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_A" in name)
    save_file({key: tensor for key, tensor in weights.items() if key != name}, path)
    with pytest.raises(ValueError, match="adapters of another model"):
        merge_adapters(build_tiny_model(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("[" * 3000)
    with pytest.raises(ValueError, match="adapter_config.json is damaged"):
        base_of(tmp_path)
