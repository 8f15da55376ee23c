"""Rows of parquet files, of untrusted ones too: pages are looked at before Arrow expands them."""

from collections.abc import Iterator
from io import SEEK_END, RawIOBase
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .limits import FREE, MAX_LIST, MAX_WIDTH, RATIO, expands_too_far
from .opening import open_shard
from .thrift import read_struct


_ROWS = 64  # read at once
_HEAD = 65_536  # bytes that the header of a page fits in, with its statistics
_DICTIONARY_PAGE, _DATA_PAGE_V2 = 2, 3
_DELTA_BYTE_ARRAY = 7  # by which, as by dictionaries, a few bytes a row stand for values of megabytes
_MAX_VALUES = 16_000_000  # of a chunk, beyond `RATIO` times its size: equal ones take no bytes
# Fields of the footer, by parquet.thrift.
_ROW_GROUPS, _COLUMNS, _COLUMN_METADATA = 4, 1, 3
_PATH, _NUM_VALUES, _COMPRESSED_SIZE, _DATA_OFFSET, _DICTIONARY_OFFSET = 3, 5, 7, 9, 11


class _Chunk(NamedTuple):
    """One column of one row group, as the footer has it; `size` is on the disk."""

    group: int
    name: str
    size: int
    values: int


class _Page(NamedTuple):
    """What the header of a page says; `end` is where the next one begins."""

    is_dictionary: bool
    expanded: int
    size: int
    values: int
    is_delta: bool
    end: int


def read_parquet(path: str) -> Iterator[dict]:
    """The rows of a parquet file, on a disk or `hf://`.

    Raises:
        pyarrow.ArrowException: damaged; or its pages, rows or lists would expand to more than they may.
    """
    try:
        yield from _read_rows(path)
    except pa.ArrowException:
        raise
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:  # places before the beginning, dates that do not exist
        raise pa.ArrowInvalid(str(error)) from None


def _read_rows(path: str) -> Iterator[dict]:
    with open_shard(path) as opened:
        checked, chunks = _CheckedFile(opened), _read_footer(opened)
        with pq.ParquetFile(checked, pre_buffer=False) as file:  # a chunk is read at once then, from its beginning
            _check_types(file.schema_arrow)
            checked.chunks = chunks
            read = expanded = 0
            for group in range(file.num_row_groups):
                starts = [start for start, chunk in chunks.items() if chunk.group == group and chunk.values]
                read += sum(chunks[start].size for start in starts)
                for batch in file.iter_batches(_rows_at_once(opened, starts), row_groups=[group]):
                    rows = _to_rows(batch)
                    expanded += sum(_size(value) for row in rows for value in row.values())
                    if expands_too_far(expanded, read):
                        raise pa.ArrowInvalid(f"rows of {expanded:,} bytes from {read:,} on the disk")
                    yield from rows


class _CheckedFile(RawIOBase):
    """A parquet file that hands no chunk of pages out that would expand too far."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.chunks: dict[int, _Chunk] | None = None  # by their beginnings; None until the footer is read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int = -1) -> bytes:
        place = self.file.tell()
        data = self.file.read(size)
        if self.chunks is not None:
            if place not in self.chunks:
                raise pa.ArrowInvalid("chunks that are not where the footer says")
            _check_pages(self.chunks[place], memoryview(data))
        return data


def _read_footer(file: BinaryIO) -> dict[int, _Chunk]:
    """All chunks by the places that they begin at. PyArrow's own objects for them end the process where statistics are
    damaged."""
    size = file.seek(0, SEEK_END)
    file.seek(max(0, size - _HEAD))
    tail = file.read()
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != b"PAR1" or length + 8 > size:
        raise pa.ArrowInvalid("no footer of parquet at the end")
    if length + 8 > len(tail):
        file.seek(size - length - 8)
        tail = file.read()
    fields, _ = read_struct(memoryview(tail[-length - 8 : -8]), 0)
    found = {}
    for group, row_group in enumerate(fields[_ROW_GROUPS]):
        for column in row_group[_COLUMNS]:
            facts = column[_COLUMN_METADATA]
            name = b".".join(facts[_PATH]).decode("utf-8", "replace")
            chunk = _Chunk(group, name, facts[_COMPRESSED_SIZE], facts[_NUM_VALUES])
            for start in (facts.get(_DICTIONARY_OFFSET), facts[_DATA_OFFSET]):
                if start is not None:
                    if not 0 <= start <= size:
                        raise pa.ArrowInvalid("chunks that lie outside of the file")
                    found.setdefault(start, chunk)
    return found


def _check_pages(chunk: _Chunk, data: memoryview) -> None:
    values = place = 0
    while values < chunk.values and place < len(data):
        page = _read_page(data, place)
        if expands_too_far(page.expanded, page.size):
            raise pa.ArrowInvalid(f"{chunk.name}: a page of {page.expanded:,} bytes from {page.size:,} on the disk")
        if page.is_delta and page.expanded * _ROWS > FREE:
            raise pa.ArrowInvalid(f"{chunk.name}: a page of {page.expanded:,} bytes that are differences")
        values, place = values + page.values, page.end
    if values > _MAX_VALUES + RATIO * len(data):
        raise pa.ArrowInvalid(f"{chunk.name}: {values:,} values from {len(data):,} bytes on the disk")


def _read_page(data: memoryview, place: int) -> _Page:
    """The header of the page that begins at `place`."""
    try:
        fields, end = read_struct(data, place)
        kind, expanded, size = (fields[number] for number in (1, 2, 3))
        about = fields.get(8 if kind == _DATA_PAGE_V2 else 5, {})
        values, encoding = about.get(1, 0), about.get(4 if kind == _DATA_PAGE_V2 else 2)
        if min(expanded, size, values) < 0:
            raise ValueError("sizes below 0")
    except (IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise pa.ArrowInvalid(f"a page without a header ({error})") from None
    return _Page(kind == _DICTIONARY_PAGE, expanded, size, values, encoding == _DELTA_BYTE_ARRAY, end + size)


def _rows_at_once(file: BinaryIO, starts: list[int]) -> int:
    """Rows that may all hold the largest value of a dictionary, and together are no larger than `FREE`."""
    largest = 1
    for start in starts:
        file.seek(start)
        page = _read_page(memoryview(file.read(_HEAD)), 0)
        largest = max(largest, page.expanded if page.is_dictionary else 1)
    return max(1, min(_ROWS, FREE // largest))


def _check_types(kinds: Any) -> None:
    """Raises ArrowInvalid for a schema with values so wide that those that are missing take megabytes each."""
    for number in range(kinds.num_fields if isinstance(kinds, pa.DataType) else len(kinds)):
        kind = kinds.field(number).type
        width = kind.byte_width if isinstance(kind, pa.FixedSizeBinaryType) else getattr(kind, "list_size", 0)
        if width > (MAX_WIDTH if isinstance(kind, pa.FixedSizeBinaryType) else MAX_LIST):
            raise pa.ArrowInvalid(f"a column whose values are all {width:,} wide")
        _check_types(kind)


def _to_rows(batch: pa.RecordBatch) -> list[dict]:
    for column in batch.columns:
        _check_lists(column)
    return batch.to_pylist()


def _size(value: Any) -> int:
    """About the bytes of a value; those of a dictionary are many values of their own by now."""
    if isinstance(value, (bytes, str)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 8


def _check_lists(array: pa.Array) -> None:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if isinstance(array, (pa.ListArray, pa.LargeListArray, pa.MapArray)):
        longest = np.diff(array.offsets.to_numpy()).max(initial=0)
        if longest > MAX_LIST:
            raise pa.ArrowInvalid(f"a list of {longest:,} elements in one row")
        _check_lists(array.values)
    elif isinstance(array, pa.StructArray):
        for number in range(array.type.num_fields):
            _check_lists(array.field(number))


__all__ = ["read_parquet"]
