"""The rows of a source, shard by shard, whatever it lies in; records of JSON, names of pictures.

Nothing is decoded here: images stay paths or bytes, so that one corrupt file costs one sample in the collator.
"""

import functools
import json
import random
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError

from ..conversations import read_json_records
from ..errors import one_line


DAMAGED = "__damaged__"
"""Column of the row that stands for what cannot be read of a file: says why."""

_JSON_SHARDS = 256
_IMAGES_A_SHARD = 10_000
_ROWS = 64  # read at once
_DAMAGES = (tarfile.TarError, pa.ArrowException, EOFError, zlib.error)


@dataclass(frozen=True)
class Rows:
    """Rows that many readers share.

    Args:
        shards: what they lie in, such as paths of files; a reader goes through one from its beginning.
        read_shard: shard -> its rows, always in the same order.
    """

    shards: Sequence[Any]
    read_shard: Callable[[Any], Iterator[dict]]

    def read(self, number: int) -> Iterator[dict]:
        """The rows of one shard; where it is damaged one with `DAMAGED` alone comes instead of the rest.

        Raises:
            OSError: it is gone, or its disk or network has failed.
        """
        shard = self.shards[number]
        try:
            yield from self.read_shard(shard)
        except (*_DAMAGES, OSError) as error:
            # Arrow raises a plain OSError for bytes that make no sense; others are of the disk or of the network.
            if not isinstance(error, _DAMAGES) and (type(error) is not OSError or error.errno is not None):
                reason = error.strerror or error
                raise OSError(f"{shard}: cannot be read ({reason}): put it back, or leave it out.") from error
            yield {DAMAGED: f"{shard}: damaged, the rest of it is passed over ({one_line(error)}): copy it again"}

    def __iter__(self) -> Iterator[dict]:
        for number in range(len(self.shards)):
            yield from self.read(number)


def json_rows(paths: list[Path]) -> Rows:
    """Rows `{"json": text}` of JSON and JSONL files, shuffled once and for all.

    Raises:
        ValueError: no records, or no JSON.
    """
    # Kept as text: columns of such files change their type from row to row. Memory-mapped, so that many readers share
    # one copy and resume in no time. The stamps are there so that an edited file is not answered from the cache.
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    if next(_json_lines(stamps), None) is None:
        raise ValueError(f"{', '.join(map(str, paths))}: no records in it.")
    try:
        texts = Dataset.from_generator(_json_lines, Features({"json": Value("string")}), gen_kwargs={"stamps": stamps})
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    shards = _cut(len(texts), min(_JSON_SHARDS, len(texts)))
    return Rows(shards, functools.partial(_read_texts, texts.shuffle(seed=0)))


def _json_lines(stamps: list[tuple]) -> Iterator[dict[str, str]]:
    for path, *_ in stamps:
        for where, record in read_json_records(Path(path)):
            try:
                yield {"json": json.dumps(record, ensure_ascii=False)}
            except RecursionError:
                raise ValueError(f"{where}: nested too deeply: remove it.") from None


def _read_texts(texts: Dataset, places: range) -> Iterator[dict]:
    for start in places[::_ROWS]:
        for text in texts[start : min(start + _ROWS, places.stop)]["json"]:
            yield {"json": text}


def image_rows(paths: list[Path]) -> Rows:
    """Rows `{"path": text}`, shuffled once and for all: neighbours in a folder are alike."""
    names = [str(path) for path in paths]
    random.Random(0).shuffle(names)
    shards = _cut(len(names), -(-len(names) // _IMAGES_A_SHARD))
    return Rows([names[shard.start : shard.stop] for shard in shards], _read_names)


def _read_names(names: list[str]) -> Iterator[dict]:
    for name in names:
        yield {"path": name}


def _cut(size: int, count: int) -> list[range]:
    """`count` ranges, of about the same length, that `range(size)` is made of."""
    return [range(size * number // count, size * (number + 1) // count) for number in range(count)]


__all__ = ["DAMAGED", "Rows", "image_rows", "json_rows"]
