"""Weighted mixture of sources as a stream of batches, which resumes exactly with any number of processes and workers.

Every worker of every process is a reader with its own share of each source: whole shards where there are enough, else
every n-th row of one; each epoch has another order of shards. A reader is determined by the seed, its number and a
count: it fills a pool, shuffles it, splits it into batches of similar length, and starts again. Its state is the
position in the sources at which the pool began and the number of batches that were returned from it: no buffer is
saved, and no row is lost.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils import logging

from .errors import row_reason
from .sources.rows import DAMAGED, Rows


logger = logging.get_logger(__name__)

_MAX_MALFORMED = 1000  # consecutive rows that cannot be converted, until the source is taken for the wrong one
_MAX_EMPTY = 100  # consecutive epochs without a row for a reader, which has other shards in each


class MixtureSource(NamedTuple):
    """One opened source of a mixture."""

    name: str
    rows: Rows
    converter: Callable[[dict], dict]
    weight: float

    def convert(self, row: dict) -> dict:
        """Converts a row of the source to one for the collators.

        Raises:
            KeyError, TypeError, ValueError: it cannot be converted, or stands for the damaged rest of a file.
        """
        if DAMAGED in row:
            raise ValueError(row[DAMAGED])
        try:
            return self.converter(row)
        except RecursionError:
            raise ValueError("nested too deeply") from None


class _SourceReader:
    """Endless rows of one source for one reader, from a state on.

    Readers form groups, as many as there are shards or readers. A group has its own shards; one of several readers has
    a single shard, of which each reader takes every n-th row.
    """

    def __init__(self, source: MixtureSource, number: int, total: int):
        self.source, self.number, self.total = source, number, total
        self.groups = min(len(source.rows.shards), total)
        self.group, self.first = number % self.groups, number // self.groups
        self.step = len(range(self.group, total, self.groups))
        self.epoch, self.shard, self.row = 0, 0, self.first

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "shard": self.shard, "row": self.row}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.shard, self.row = state["epoch"], state["shard"], state["row"]

    def __iter__(self) -> Iterator[dict]:
        rows, empty = self.source.rows, 0
        while empty < _MAX_EMPTY:
            # Unshuffled shards would be read in alphabetical order, and a short run would omit the last ones.
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
            f"{self.source.name}: too few rows for {self.total} readers (processes x workers), number "
            f"{self.number} got none: lower training.dataloader_num_workers."
        )


class MixtureStream(IterableDataset):
    """Endless batches of a mixture, for a `StatefulDataLoader` with `batch_size=None`.

    A batch also has `skipped`, a dict of counts since the batch before: `malformed` rows, which cannot be converted,
    and those that the collator skipped.

    Args:
        sources: with their weights.
        collate: rows -> batch; may count what it skips in a Counter `skipped`.
        batch_size: rows a batch; a batch is smaller where the collator skips some.
        length_of: row -> estimated number of tokens; batches then have rows of similar length.
        seed: of everything random.
        rank, world_size: of this process.
        pool_batches: batches in a pool.

    Raises:
        ValueError: while iterating: a source without a row for some reader, or with malformed rows only.
    """

    def __init__(
        self,
        sources: list[MixtureSource],
        collate: Callable[[list[dict]], dict[str, Any]],
        batch_size: int,
        length_of: Callable[[dict], int] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pool_batches: int = 32,
    ):
        self.sources, self.collate, self.batch_size, self.length_of = sources, collate, batch_size, length_of
        self.seed, self.rank, self.world_size, self.pool_batches = seed, rank, world_size, pool_batches
        self.skipped: Counter[str] = Counter()
        self.restart = 0  # step of a restart without a state: part of the seed
        self._reported: Counter[str] = Counter()
        self._state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of the next batch of this reader."""
        return dict(self._state or {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets the position of the next batch of this reader."""
        self._state = state or None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, index = (worker.num_workers, worker.id) if worker else (1, 0)
        number, total = self.rank * workers + index, self.world_size * workers
        readers = [_SourceReader(source, number, total) for source in self.sources]
        pool, done = 0, 0
        if self._state:
            pool, done = self._state["pool"], self._state["done"]
            for reader, state in zip(readers, self._state["readers"], strict=True):
                reader.load_state_dict(state)
        iterators = [iter(reader) for reader in readers]
        while True:
            start = [reader.state_dict() for reader in readers]
            batches = self._fill(iterators, pool, number, total)
            self._restore_collator(batches[:done])
            for batch_number in range(done, len(batches)):
                batch = self.collate(batches[batch_number])
                self._state = {"pool": pool, "done": batch_number + 1, "readers": start}
                yield batch | {"skipped": self._count()}
            pool, done = pool + 1, 0

    def _restore_collator(self, batches: list[list[dict]]) -> None:
        """Collates the last usable batch again after a resume: a collator repeats its last usable row where a batch has
        none."""
        for batch in reversed(batches):
            try:
                self.collate(batch)
            except ValueError:  # nothing usable in this one either
                continue
            return

    def _fill(self, iterators: list[Iterator[dict]], pool: int, number: int, total: int) -> list[list[dict]]:
        """Builds the batches of one pool, in the order of the stream."""
        rng = np.random.default_rng([self.seed, self.restart, number, pool])
        weights = np.array([source.weight for source in self.sources])
        size = self.pool_batches * self.batch_size
        rows = []
        for place, choice in enumerate(rng.choice(len(self.sources), size, p=weights / weights.sum()).tolist()):
            row = self._next_row(self.sources[choice], iterators[choice])
            # Unique among all readers: the seed of what is random about the row.
            row["index"] = (pool * size + place) * total + number
            rows.append(row)
        order = rng.permutation(size).tolist()
        length_of = self.length_of
        if length_of is not None:
            order.sort(key=lambda place: length_of(rows[place]))
        starts = rng.permutation(self.pool_batches) * self.batch_size
        return [[rows[place] for place in order[start : start + self.batch_size]] for start in starts.tolist()]

    def _next_row(self, source: MixtureSource, rows: Iterator[dict]) -> dict:
        for _ in range(_MAX_MALFORMED):
            row = next(rows)
            try:
                return source.convert(row)
            except (KeyError, TypeError, ValueError) as error:
                message = row_reason(error)
                self.skipped["malformed"] += 1
                logger.warning(f"Skipped (malformed, {self.skipped['malformed']} so far): {source.name}: {message}")
        raise ValueError(
            f"{source.name}: {_MAX_MALFORMED} rows in a row cannot be converted ({message}): check `path`."
        )

    def _count(self) -> dict[str, int]:
        by_collator: Counter[str] = getattr(self.collate, "skipped", None) or Counter()
        counts = self.skipped + by_collator
        new, self._reported = counts - self._reported, counts
        return dict(new)
