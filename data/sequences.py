"""Even subsets of sequences: of images, prompts or rows, where a limit is given."""

from collections.abc import Sequence
from typing import TypeVar


Item = TypeVar("Item")


def pick_evenly(items: Sequence[Item], count: int | None) -> list[Item]:
    """Returns `count` items at equal distances, the first one included; all items for None or where they are fewer."""
    count = len(items) if count is None else min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]
