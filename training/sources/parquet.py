"""Rows of parquet files, of untrusted ones too: pages are looked at before Arrow expands them."""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .limits import FREE, MAX_LIST, MAX_WIDTH, RATIO, expands_too_far
from .thrift import read_struct


_ROWS = 64  # read at once
_HEAD = 65_536  # bytes that the header of a page fits in, with its statistics
_MAX_HEAD = 16_000_000
_DICTIONARY_PAGE, _DELTA_BYTE_ARRAY = 2, 7  # with which a few bytes a row stand for values of megabytes
_MAX_VALUES = 16_000_000  # of a chunk of lists: equal ones take no bytes


class _Chunk(NamedTuple):
    """One column of one row group, by the footer."""

    name: str
    size: int  # bytes on the disk
    values: int
    repeated: bool


class _Page(NamedTuple):
    """What the header of a page says; `end` is where the next one begins."""

    kind: int
    expanded: int
    size: int
    values: int
    encoding: int
    end: int


def read_parquet(path: str) -> Iterator[dict]:
    """The rows of a parquet file, on a disk or `hf://`.

    Raises:
        pyarrow.ArrowException: damaged; or pages, rows or lists would expand to more than they may.
    """
    with fsspec.open(path) as opened:
        checked = _CheckedFile(opened)
        with pq.ParquetFile(checked, pre_buffer=False) as file:  # one read a chunk, from its beginning
            _check_types(file.schema_arrow)
            checked.chunks = _chunks(file)
            read = expanded = 0
            for group in range(file.num_row_groups):
                chunks = {start: chunk for start, chunk in checked.chunks.items() if chunk.group == group}
                read += sum(chunk.size for chunk in chunks.values())
                for batch in file.iter_batches(checked.rows_at_once(chunks), row_groups=[group]):
                    expanded += batch.nbytes
                    if expands_too_far(expanded, read):
                        raise pa.ArrowInvalid(f"rows of {expanded:,} bytes from {read:,} on the disk")
                    yield from _to_rows(batch)
