"""Folders of low-rank adapters, as PEFT saves them, and how they become part of the model they were trained on."""

import warnings
from pathlib import Path

from safetensors import safe_open

from ..modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration


try:
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
except ImportError:
    raise ImportError("adapters are PEFT's: pip install 'evotok[train]'.") from None


def base_of(folder: str | Path) -> str:
    """The checkpoint that the adapters of a folder were trained on.

    Raises:
        ValueError: they do not say.
    """
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not base:
        raise ValueError(f"{folder}: adapters that do not say what they were trained on: start from a checkpoint.")
    return base


def merge_adapters(model: EvoTokForConditionalGeneration, folder: str | Path) -> EvoTokForConditionalGeneration:
    """The model with the adapters of a folder in its weights; from now on it is called by that folder.

    Args:
        model: what they were trained on; changed in place.

    Raises:
        ValueError: adapters for other modules than the model has, or not for all that their config names.
    """
    with warnings.catch_warnings(action="ignore"):  # of what is looked at below, and of bases that are adapters, too
        adapted = PeftModel.from_pretrained(model, folder)
        expected = get_peft_model_state_dict(adapted).keys()
    with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as file:
        strange = expected ^ set(file.keys())
    if strange:
        raise ValueError(f"{folder}: adapters of another model, {min(strange)} does not fit: copy or train them again.")
    merged = adapted.merge_and_unload()
    # PEFT notes this name in adapters trained next. By the name of what was below, these here would be forgotten.
    merged.name_or_path = merged.config.name_or_path = str(folder)
    return merged
