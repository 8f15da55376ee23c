"""Batches of sequences, over the processes of an evaluation."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ..data.processes import Workers


Item = TypeVar("Item")
Result = TypeVar("Result")


def split_batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Splits items into batches of `size`; the last one may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def map_batches(
    workers: Workers,
    function: Callable[[Sequence[Item]], Iterable[Result]],
    items: Sequence[Item],
    size: int,
    description: str,
) -> list[Result]:
    """Computes a batched function of all items, over all processes; the results are in the order of the items.

    Args:
        function: batch -> as many results, on the CPU.
        size: items of a batch.
        description: of the progress bar.
    """
    batches = workers.map(function, split_batches(items, size), description)
    return [result for batch in batches for result in batch]
