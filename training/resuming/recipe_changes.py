"""The recipe in every checkpoint: written, and compared with the one that a run resumes by."""

import reprlib
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from ...data.errors import printable
from ..recipes import Recipe


RECIPE = "recipe.yaml"

# Keys that the tensors of a checkpoint depend on, with all keys below them.
_FIXED = (
    "stage",
    "model.config",
    "model.variant",
    "model.text_tokenizer_size",
    "model.trainable",
    "loss.discriminator_channels",
    "loss.discriminator_layers",
    "optimizer.name",
    "training.optim",
    "training.seed",
    "training.lr_scheduler_type",
    "processor",
    "lora",
)
_NO_FUNCTION_OF_THE_STEP = ("reduce_lr_on_plateau", "greedy")  # learning rates that follow from the one before
_WITHOUT_EFFECT = ("gpus", "training.output_dir")  # on the weights


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Writes a recipe, with its bases and overrides applied, as one to train by."""
    (folder / RECIPE).write_text(yaml.safe_dump(asdict(recipe), sort_keys=False), encoding="utf-8")


def compare_recipe(recipe: Recipe, checkpoint: str | Path) -> list[str]:
    """Returns the differences from the recipe of a checkpoint that are applied, as `key: old -> new`.

    Raises:
        ValueError: a difference that the tensors of the checkpoint do not allow.
    """
    path = Path(checkpoint) / RECIPE
    if not path.is_file():
        return []
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    now = yaml.safe_load(yaml.safe_dump(asdict(recipe)))
    fixed = _FIXED
    if now["training"].get("lr_scheduler_type") in _NO_FUNCTION_OF_THE_STEP:
        fixed += ("training.learning_rate",)
    changed = []
    for key, old, new in _differences(before, now):
        difference = printable(f"{key}: {reprlib.repr(old)} -> {reprlib.repr(new)}")
        if any(key == name or key.startswith(f"{name}.") for name in fixed):
            raise ValueError(
                f"{checkpoint}: was trained by another recipe ({difference}), which does not match this one: restore "
                "the former value, or give another training.output_dir, or --restart."
            )
        changed.append(difference)
    return changed


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields keys with different values in two recipes, and these values. A field that `before` does not have is not
    compared: it is of a newer version."""
    defaults = {f"training.{field.name}": field.default for field in fields(TrainingArguments)}
    sections = {section: set(value) for section, value in before.items() if isinstance(value, dict)}
    open_ended = ("training", "processor", "lora")
    before, now = _flatten(before), _flatten(now)
    for key in sorted(before.keys() | now.keys()):
        section, _, rest = key.partition(".")
        known = section in open_ended or not rest or rest.split(".")[0] in sections.get(section, ())
        old, new = (tree.get(key, defaults.get(key)) for tree in (before, now))
        if known and old != new and key not in _WITHOUT_EFFECT:
            yield key, old, new


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns values by their keys, those of nested sections joined by dots."""
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
