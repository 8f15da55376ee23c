"""A weighted mixture of sources as a stream of batches that resumes exactly, whatever the ranks and workers.

Every worker of every rank is a reader with a share of its own in each source: whole shards where there are enough, else
every n-th row of one; the shards come in another order every time. What a reader does next follows from the seed, its
number and a count alone. It fills a pool, shuffles it, cuts it into batches of about equal length, and starts over; its
state is where the pool began and how many batches of it are out, so that no buffer has to be saved and none is lost.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils import logging

from ..errors import why_no_record
from ..sources.rows import DAMAGED, Rows


logger = logging.get_logger(__name__)

_TOLERATED = 1000  # rows in a row that are no records, before a source is taken for the wrong one
_EMPTY = 100  # epochs in a row without a row for a reader, which has other shards in each


class Part(NamedTuple):
    """One source of a mixture: its rows, what makes a record of one, and how often it is drawn."""

    name: str
    rows: Rows
    convert: Callable[[dict], dict]
    weight: float

    def record(self, row: dict) -> dict:
        """The record of a row.

        Raises:
            KeyError, TypeError, ValueError: it is none, or stands for the damaged rest of a file.
        """
        if DAMAGED in row:
            raise ValueError(row[DAMAGED])
        try:
            return self.convert(row)
        except RecursionError:
            raise ValueError("nested too deeply") from None


class _Reader:
    """The rows of one part that fall to one reader, over and over, from a state on.

    Readers form groups, as many as there are shards or readers. A group has shards of its own; where it is of several
    readers it has one shard, of which each takes every n-th row.
    """

    def __init__(self, part: Part, number: int, total: int):
        self.part, self.number, self.total = part, number, total
        self.groups = min(len(part.rows.shards), total)
        self.group, self.first = number % self.groups, number // self.groups
        self.step = len(range(self.group, total, self.groups))
        self.epoch, self.shard, self.row = 0, 0, self.first

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "shard": self.shard, "row": self.row}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.shard, self.row = state["epoch"], state["shard"], state["row"]

    def __iter__(self) -> Iterator[dict]:
        rows, empty = self.part.rows, 0
        while empty < _EMPTY:
            # As they lie all readers would go through the alphabet together, and its end might never be reached.
            order = np.random.default_rng(self.epoch).permutation(len(rows.shards))[self.group :: self.groups]
            empty += 1
            while self.shard < len(order):
                for row in islice(rows.read(order[self.shard]), self.row, None, self.step):
                    empty = 0
                    self.row += self.step
                    yield row
                self.shard, self.row = self.shard + 1, self.first
            self.epoch, self.shard = self.epoch + 1, 0
        raise ValueError(
            f"{self.part.name}: too few samples for {self.total} readers (processes x workers), number "
            f"{self.number} got none: lower training.dataloader_num_workers."
        )


class RecordStream(IterableDataset):
    """Endless batches of a mixture, for a `StatefulDataLoader` with `batch_size=None`.

    Args:
        parts: the sources.
        collate: records -> batch; its Counter `skipped` tells what it had to leave out.
        batch_size: records a batch; fewer come out where the collator skips some.
        length_of: record -> about how long its row will be; batches then hold rows of like length.
        seed: of everything random.
        rank, world_size: of this process.
        pool_batches: batches in a pool.

    A batch also has `skipped`, a dict of what was left out since the batch before: `malformed` rows that are no
    records, and what the collator counted.

    Raises:
        ValueError: while iterating: a source with nothing for some reader, or of nothing but malformed rows.
    """

    def __init__(
        self,
        parts: list[Part],
        collate: Callable[[list[dict]], dict[str, Any]],
        batch_size: int,
        length_of: Callable[[dict], int] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pool_batches: int = 32,
    ):
        self.parts, self.collate, self.batch_size, self.length_of = parts, collate, batch_size, length_of
        self.seed, self.rank, self.world_size, self.pool_batches = seed, rank, world_size, pool_batches
        self.skipped: Counter[str] = Counter()
        self.restart = 0  # another number, another order
        self._told: Counter[str] = Counter()
        self._state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch of this reader begins."""
        return dict(self._state or {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._state = state or None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, index = (worker.num_workers, worker.id) if worker else (1, 0)
        number, total = self.rank * workers + index, self.world_size * workers
        readers = [_Reader(part, number, total) for part in self.parts]
        pool, done = 0, 0
        if self._state:
            pool, done = self._state["pool"], self._state["done"]
            for reader, state in zip(readers, self._state["readers"], strict=True):
                reader.load_state_dict(state)
        streams = [iter(reader) for reader in readers]
        while True:
            start = [reader.state_dict() for reader in readers]
            batches = self._fill(streams, pool, number, total)
            self._recall(batches[:done])
            for batch_number in range(done, len(batches)):
                batch = self.collate(batches[batch_number])
                self._state = {"pool": pool, "done": batch_number + 1, "readers": start}
                yield batch | {"skipped": self._count()}
            pool, done = pool + 1, 0

    def _recall(self, batches: list[list[dict]]) -> None:
        """A collator repeats its last good sample where a batch has none; one that goes on from a state is shown it."""
        for batch in reversed(batches):
            try:
                self.collate(batch)
            except ValueError:  # none in this one either
                continue
            return

    def _fill(self, streams: list[Iterator[dict]], pool: int, number: int, total: int) -> list[list[dict]]:
        """The batches of one pool, in the order they go out."""
        rng = np.random.default_rng([self.seed, self.restart, number, pool])
        weights = np.array([part.weight for part in self.parts])
        size = self.pool_batches * self.batch_size
        records = []
        for place, choice in enumerate(rng.choice(len(self.parts), size, p=weights / weights.sum()).tolist()):
            record = self._next_record(self.parts[choice], streams[choice])
            # Unique over all readers: it seeds what is random about the record.
            record["index"] = (pool * size + place) * total + number
            records.append(record)
        order = rng.permutation(size).tolist()
        if self.length_of is not None:
            order.sort(key=lambda place: self.length_of(records[place]))
        starts = rng.permutation(self.pool_batches) * self.batch_size
        return [[records[place] for place in order[start : start + self.batch_size]] for start in starts.tolist()]

    def _next_record(self, part: Part, rows: Iterator[dict]) -> dict:
        for _ in range(_TOLERATED):
            row = next(rows)
            try:
                return part.record(row)
            except (KeyError, TypeError, ValueError) as error:
                reason = why_no_record(error)
                self.skipped["malformed"] += 1
                logger.warning(f"Skipped (malformed, {self.skipped['malformed']} so far): {part.name}: {reason}")
        raise ValueError(f"{part.name}: {_TOLERATED} rows in a row are no records ({reason}): is it the right folder?")

    def _count(self) -> dict[str, int]:
        counts = self.skipped + getattr(self.collate, "skipped", Counter())
        new, self._told = counts - self._told, counts
        return dict(new)
