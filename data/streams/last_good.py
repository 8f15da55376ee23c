"""What a batch without one usable sample repeats, and how many such batches end a run."""

from collections.abc import Mapping
from typing import Generic, TypeVar


MAX_BARREN = 32
"""Batches in a row of one reader; that a few are corrupt is no reason to stop, that all are is."""

T = TypeVar("T")


class LastGood(Generic[T]):
    """Remembers the last usable sample of a collator.

    Args:
        limit: batches in a row that repeat it, and no more.
    """

    def __init__(self, limit: int = MAX_BARREN):
        self.limit, self.barren = limit, 0
        self.sample: T | None = None

    def fill(self, usable: list[T], skipped: Mapping[str, int]) -> list[T]:
        """The usable samples of a batch, or the last one before where there are none.

        Raises:
            ValueError: there has been none yet, or not for too long.
        """
        if usable:
            self.sample, self.barren = usable[-1], 0
            return usable
        if self.sample is None:
            raise ValueError(f"Nothing in the batch can be used, {dict(skipped)} so far: check the data set.")
        self.barren += 1
        if self.barren >= self.limit:
            raise ValueError(
                f"Nothing in the last {self.barren} batches can be used, {dict(skipped)} so far: check the data set, "
                "whose files may be gone, and give the command again: it goes on from the last checkpoint."
            )
        return [self.sample]
