"""The recipe that a run began by: kept in every checkpoint, compared with the one that goes on from there, applied."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainingArguments

from ...data.errors import printable
from ..recipes import Recipe


RECIPE = "recipe.yaml"

# What the tensors of a checkpoint are for; a name stands for all keys below it, too.
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
_WITHOUT_EFFECT = ("gpus", "training.output_dir")  # on what is learnt


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Writes a recipe, its bases and overrides applied, as one that can be trained by."""
    (folder / RECIPE).write_text(yaml.safe_dump(asdict(recipe), sort_keys=False), encoding="utf-8")


def compare_recipe(recipe: Recipe, checkpoint: str | Path) -> list[str]:
    """What differs from the recipe that a checkpoint was trained by, as `key: old -> new`, and is to be applied.

    Raises:
        ValueError: a difference that what is in the checkpoint does not go with.
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
                f"{checkpoint}: was trained by another recipe ({difference}), and does not go with this one: give the "
                "value of before, another training.output_dir, or --restart."
            )
        changed.append(difference)
    return changed


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Keys of two recipes with different values, and these. A field that `before` does not know is not compared: it is
    of a newer version."""
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
    """Values by their keys, those of sections in sections joined by dots."""
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@contextmanager
def keeping_settings(
    optimizer: Optimizer, scheduler: LRScheduler, groups: list[dict[str, Any]] | None = None
) -> Iterator[None]:
    """What is loaded into an optimizer inside changes its moments and counts alone: learning rates, weight decay and
    the like stay those that it was built with, the rates at the place of the schedule that was loaded.

    Args:
        groups: settings of every group of parameters, where something has been loaded before.
    """
    loaded = ("params", "lr", "initial_lr")
    groups = groups or [{k: v for k, v in group.items() if k not in loaded} for group in optimizer.param_groups]
    rates = list(scheduler.base_lrs) if isinstance(scheduler, LambdaLR) else None
    yield
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)
    if rates is None:
        return
    shares = [share(scheduler.last_epoch) for share in scheduler.lr_lambdas]
    scheduler.base_lrs = rates
    scheduler._last_lr = [rate * share for rate, share in zip(rates, shares, strict=True)]
    for group, rate, now in zip(optimizer.param_groups, rates, scheduler._last_lr, strict=True):
        group.update(initial_lr=rate, lr=now)
