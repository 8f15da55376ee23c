"""Rows of a source, shard by shard. Nothing is decoded: images stay paths or bytes, so that a corrupt one costs one row
in the collator."""

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

from ..conversations import cached_rows, read_json_rows
from ..errors import reason


DAMAGED = "__damaged__"
"""Column of a row that stands for the damaged rest of a file; its value is the message."""

_JSON_SHARDS = 256
_IMAGES_A_SHARD = 10_000
_ROWS = 64  # read at once
_DAMAGES = (tarfile.TarError, pa.ArrowException, EOFError, zlib.error)


@dataclass(frozen=True)
class Rows:
    """Rows in shards, which several readers share.

    Args:
        shards: such as paths of files; a shard is read from its beginning.
        read_shard: shard -> its rows, always in the same order.
    """

    shards: Sequence[Any]
    read_shard: Callable[[Any], Iterator[dict]]

    def read(self, number: int) -> Iterator[dict]:
        """Yields the rows of one shard; a row with `DAMAGED` alone stands for the rest of a damaged one.

        Raises:
            OSError: the file is missing, or its disk or network fails.
        """
        shard = self.shards[number]
        try:
            yield from self.read_shard(shard)
        except (*_DAMAGES, OSError) as error:
            # Arrow raises a plain OSError for damaged bytes; others are of the disk or of the network.
            if not isinstance(error, _DAMAGES) and (type(error) is not OSError or error.errno is not None):
                message = error.strerror or error
                raise OSError(f"{shard}: cannot be read ({message}): put it back, or leave it out.") from error
            yield {DAMAGED: f"{shard}: damaged, the rest is skipped ({reason(error)}): copy it again"}

    def __iter__(self) -> Iterator[dict]:
        for number in range(len(self.shards)):
            yield from self.read(number)


def json_rows(paths: list[Path]) -> Rows:
    """Opens JSON and JSONL files as rows `{"json": text}`, shuffled once.

    Raises:
        ValueError: no rows, or no JSON.
    """
    # Texts, because columns of such files change their type from row to row; memory-mapped, so that readers share one
    # copy and resume at once. The stamps are part of the cache's key, so that an edited file is read again.
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    if next(_json_lines(stamps), None) is None:
        raise ValueError(f"{', '.join(map(str, paths))}: no rows in it.")
    texts = cached_rows(_json_lines, Features({"json": Value("string")}), {"stamps": stamps})
    shards = _split(len(texts), min(_JSON_SHARDS, len(texts)))
    return Rows(shards, functools.partial(_read_texts, texts.shuffle(seed=0)))


def _json_lines(stamps: list[tuple]) -> Iterator[dict[str, str]]:
    for path, *_ in stamps:
        for where, row in read_json_rows(Path(path)):
            try:
                yield {"json": json.dumps(row, ensure_ascii=False)}
            except RecursionError:
                raise ValueError(f"{where}: nested too deeply: remove it.") from None


def _read_texts(texts: Dataset, indices: range) -> Iterator[dict]:
    for start in indices[::_ROWS]:
        for text in texts[start : min(start + _ROWS, indices.stop)]["json"]:
            yield {"json": text}


def image_rows(paths: Sequence[Path | str]) -> Rows:
    """Opens image files as rows `{"path": text}`, shuffled once: neighbours in a folder are alike."""
    names = [str(path) for path in paths]
    random.Random(0).shuffle(names)
    shards = _split(len(names), -(-len(names) // _IMAGES_A_SHARD))
    return Rows([names[shard.start : shard.stop] for shard in shards], _read_names)


def _read_names(names: list[str]) -> Iterator[dict]:
    for name in names:
        yield {"path": name}


def _split(size: int, count: int) -> list[range]:
    """Splits `range(size)` into `count` ranges of about the same length."""
    return [range(size * number // count, size * (number + 1) // count) for number in range(count)]
