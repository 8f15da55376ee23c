"""Evenly spaced selections: of images, prompts or rows, where a limit is given."""

from collections.abc import Sequence
from typing import TypeVar


Item = TypeVar("Item")


def evenly_spaced(items: Sequence[Item], count: int | None) -> list[Item]:
    """Selects `count` items, evenly spaced and in order; all of them when None or where there are fewer."""
    if count is None or count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
