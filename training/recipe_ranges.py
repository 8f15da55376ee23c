"""The numbers of a recipe that would train nothing, or without end, outside of a range."""

import math
from collections.abc import Iterator, Mapping
from typing import Any


_LARGE = 2**31 - 1
# section.key -> least and largest value.
RANGES = {
    "training.gradient_accumulation_steps": (1, _LARGE),
    "training.per_device_train_batch_size": (1, _LARGE),
    "training.per_device_eval_batch_size": (1, _LARGE),
    "training.dataloader_num_workers": (0, 1024),
    "training.dataloader_prefetch_factor": (1, _LARGE),
    "training.max_steps": (-1, _LARGE),
    "training.save_total_limit": (0, _LARGE),
    "training.learning_rate": (0.0, 1e6),
    "training.weight_decay": (0.0, 1e6),
    "training.adam_beta1": (0.0, 1.0),
    "training.adam_beta2": (0.0, 1.0),
    "training.adam_epsilon": (0.0, 1e6),
    "training.max_grad_norm": (0.0, 1e6),
    "training.seed": (0, 2**32 - 1),
    "optimizer.matrix_learning_rate": (0.0, 1e6),
    "loss.discriminator_learning_rate": (0.0, 1e6),
    "loss.discriminator_channels": (1, 65_536),
    "loss.discriminator_layers": (1, 16),
    "data.pool_batches": (1, 1_000_000),
    "data.max_length": (1, _LARGE),
    "data.caption_dropout": (0.0, 1.0),
    "data.validation_samples": (1, _LARGE),
    "data.block": (1, _LARGE),
}


def check_ranges(tree: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for a number of a recipe that is not finite or out of its range.

    Args:
        tree: sections by their names.
        where: the file, as the message names it.
    """
    for key, value in _numbers(tree):
        least, largest = RANGES.get(key, (-math.inf, math.inf))
        if not math.isfinite(value):
            raise ValueError(f"{where}: {key} is {value}: give a finite number.")
        if not least <= value <= largest:
            span = f"at least {least:g}" if largest >= 1e6 else f"from {least:g} to {largest:g}"
            raise ValueError(f"{where}: {key} must be {span}, not {value:g}.")


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", value
