"""LoRA adapters: added to a model, and merged from untrusted folders into the model that they were trained on."""

import reprlib
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn

from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ..checkpoint_configs import anything, is_bool, number, read_config
from ..recipe_checks import NAME_KEYS, check_module_names


try:
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
    from peft.tuners.tuners_utils import check_target_module_exists
except ImportError:
    raise ImportError("adapters need PEFT: pip install 'evotok[train]'.") from None


# Keys of a config that plain LoRA uses; any other must have its default.
_CHECKS = {
    **dict.fromkeys(("base_model_name_or_path", "peft_type", "peft_version", "inference_mode", "task_type"), anything),
    **dict.fromkeys(("revision", "auto_mapping", *NAME_KEYS), anything),  # names are checked before
    **dict.fromkeys(("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "ensure_weight_tying"), is_bool),
    "r": number(1, 65_536),
    "lora_alpha": number(0, 1e6),
    "lora_dropout": number(0, 1),
    "init_lora_weights": lambda value: is_bool(value) or value == "gaussian",
    "bias": lambda value: value in ("none", "lora_only", "all"),
    "layers_to_transform": lambda value: value is None or isinstance(value, (int, list)),
    "target_parameters": lambda value: not value,
}


def adapter_config(lora: dict[str, Any], parts: list[str]) -> LoraConfig:
    """Builds the config of adapters on the language model; projectors and depth decoder are trained in full.

    Args:
        lora: section `lora` of a recipe.
        parts: names of the trained parts.
    """
    fields = {
        "target_modules": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        "modules_to_save": [name for name in parts if name not in ("language_model", "lm_head")],
    }
    return LoraConfig(**(fields | lora))


def add_adapters(model: EvoTokForConditionalGeneration, lora: dict[str, Any], parts: list[str]) -> PeftModel:
    """Adds the adapters of [`adapter_config`] to a model."""
    return get_peft_model(model, adapter_config(lora, parts))


def frozen_matrices(model: nn.Module) -> list[nn.Linear]:
    """Returns the frozen linear layers of the language model, those that adapters are added to."""
    return [
        module
        for name, module in model.named_modules()
        if "language_model" in name.split(".")
        and isinstance(module, nn.Linear)
        and not any(parameter.requires_grad for parameter in module.parameters())
    ]


def round_frozen_matrices(model: nn.Module) -> None:
    """Stores the frozen matrices of the language model in bfloat16.

    Autocast would round them to the same values in every step, and keep both. Neither adapters nor the weights they are
    merged into change by it.
    """
    for module in frozen_matrices(model):
        module.to(torch.bfloat16)


def _check_config(folder: Path) -> LoraConfig:
    """Reads the config of a folder of adapters.

    Raises:
        ValueError: adapters of another kind, or a setting that plain LoRA does not have.
    """
    content, where = read_config(folder / "adapter_config.json", str(folder)), f"{folder}: adapter_config.json"
    if content.get("peft_type") != "LORA":
        raise ValueError(f"{where}: adapters of kind {reprlib.repr(content.get('peft_type'))}: give those of LORA.")
    check_module_names(content, where)
    defaults = LoraConfig().to_dict()
    for key, value in content.items():
        if not (_CHECKS[key](value) if key in _CHECKS else value == defaults.get(key) or not value):
            raise ValueError(
                f"{where}: {key} should not be {reprlib.repr(value)}: train the adapters again without it."
            )
    return cast(LoraConfig, PeftConfig.from_pretrained(str(folder)))


def _check_ranks(
    model: EvoTokForConditionalGeneration, config: LoraConfig, shapes: dict[str, tuple], folder: Path
) -> None:
    """Raises ValueError unless the weights have the adapters and ranks of the config.

    PEFT would build adapters of a rank of millions before it compares them.
    """
    before, after = "base_model.model.", ".lora_A.weight"
    there = {key: shape[0] for key, shape in shapes.items() if key.endswith(after)}
    expected = {key for key, _ in model.named_modules() if check_target_module_exists(config, key)}
    if strange := {f"{before}{key}{after}" for key in expected} ^ there.keys():
        raise ValueError(f"{folder}: adapters of another model, {min(strange)} does not fit: copy or train them again.")
    there = {key.removeprefix(before).removesuffix(after): rank for key, rank in there.items()}
    for key, rank in there.items():
        own = (r for name, r in (config.rank_pattern or {}).items() if key == name or key.endswith(f".{name}"))
        if rank != next(own, config.r):
            raise ValueError(
                f"{folder}: adapters of rank {rank} at {key}, the config has another: copy the folder again."
            )


def base_of(folder: str | Path) -> str:
    """Returns the checkpoint that the adapters of a folder were trained on.

    Raises:
        ValueError: their config names none.
    """
    base = read_config(Path(folder) / "adapter_config.json", str(folder)).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ValueError(f"{folder}: adapters without base_model_name_or_path: start from a checkpoint.")
    return base


def merge_adapters(model: EvoTokForConditionalGeneration, folder: str | Path) -> EvoTokForConditionalGeneration:
    """Merges the adapters of a folder into the weights of the model, which is named after that folder from then on.

    Args:
        model: the model they were trained on; changed in place.

    Raises:
        ValueError: adapters for other modules than the model has, or not for all that their config names.
    """
    with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
    _check_ranks(model, _check_config(Path(folder)), shapes, Path(folder))
    with warnings.catch_warnings(action="ignore"):  # of missing keys, which are checked below, and of merged bases
        adapted = PeftModel.from_pretrained(model, folder)
        expected = get_peft_model_state_dict(adapted).keys()
    if strange := expected ^ shapes.keys():
        raise ValueError(f"{folder}: adapters of another model, {min(strange)} does not fit: copy or train them again.")
    merged = adapted.merge_and_unload()
    # PEFT writes this name into adapters trained next; by the name of the base, these here would be lost.
    merged.name_or_path = merged.config.name_or_path = str(folder)
    return merged
