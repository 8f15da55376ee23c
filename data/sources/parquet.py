"""Reads the rows of parquet files of untrusted input: the headers of pages are checked before Arrow expands the
pages."""

from collections.abc import Iterator
from io import SEEK_END, RawIOBase
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .shard_files import FREE, MAX_LIST, MAX_WIDTH, RATIO, expands_too_far, open_shard


_ROWS = 64  # read at once
_HEAD = 65_536  # bytes that the header of a page fits in, with its statistics
_DICTIONARY_PAGE, _DATA_PAGE_V2 = 2, 3
_DELTA_BYTE_ARRAY = 7  # encodes, as dictionaries do, values of megabytes in a few bytes a row
_MAX_VALUES = 16_000_000  # of a chunk, beyond `RATIO` times its size: equal ones take no bytes
# Numbers of the footer's fields, from parquet.thrift.
_ROW_GROUPS, _COLUMNS, _COLUMN_METADATA = 4, 1, 3
_PATH, _NUM_VALUES, _COMPRESSED_SIZE, _DATA_OFFSET, _DICTIONARY_OFFSET = 3, 5, 7, 9, 11
# Types of Thrift's compact encoding.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_MAX_DEPTH = 16


class _Chunk(NamedTuple):
    """One column of one row group in the footer; `size` in bytes of the file."""

    group: int
    name: str
    size: int
    values: int


class _Page(NamedTuple):
    """Header of a page; sizes in bytes, `end` is the position of the next page."""

    is_dictionary: bool
    expanded: int
    size: int
    values: int
    is_delta: bool
    end: int


def read_parquet(path: str) -> Iterator[dict]:
    """Yields the rows of a parquet file, local or `hf://`.

    Raises:
        pyarrow.ArrowException: a damaged file, or pages, rows or lists that would expand to more than the limits.
    """
    try:
        yield from _read_rows(path)
    except pa.ArrowException:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:  # of damaged numbers and dates
        raise pa.ArrowInvalid(str(error)) from None


def _read_rows(path: str) -> Iterator[dict]:
    with open_shard(path) as opened:
        checked, chunks = _CheckedFile(opened), _read_footer(opened)
        with pq.ParquetFile(checked, pre_buffer=False) as file:  # so that a chunk is read at once, from its beginning
            _check_types(file.schema_arrow)
            checked.chunks = chunks
            read = expanded = 0
            for group in range(file.num_row_groups):
                starts = [start for start, chunk in chunks.items() if chunk.group == group and chunk.values]
                read += sum(chunks[start].size for start in starts)
                for batch in file.iter_batches(_rows_at_once(opened, starts), row_groups=[group]):
                    for column in batch.columns:
                        _check_lists(column)
                    rows = batch.to_pylist()
                    expanded += sum(_size(value) for row in rows for value in row.values())
                    if expands_too_far(expanded, read):
                        raise pa.ArrowInvalid(f"rows of {expanded:,} bytes from {read:,} on the disk")
                    yield from rows


class _CheckedFile(RawIOBase):
    """Parquet file whose chunks are checked when they are read."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.chunks: dict[int, _Chunk] | None = None  # by their positions; None until the footer is read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = 0) -> int:
        return self.file.seek(position, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int = -1) -> bytes:
        position = self.file.tell()
        data = self.file.read(size)
        if self.chunks is not None:
            if position not in self.chunks:
                raise pa.ArrowInvalid("chunks that are not at the positions in the footer")
            _check_pages(self.chunks[position], memoryview(data))
        return data


def _read_footer(file: BinaryIO) -> dict[int, _Chunk]:
    """Reads all chunks by their positions. PyArrow's metadata objects crash the process on damaged statistics."""
    size = file.seek(0, SEEK_END)
    file.seek(max(0, size - _HEAD))
    tail = file.read()
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != b"PAR1" or length + 8 > size:
        raise pa.ArrowInvalid("no footer of parquet at the end")
    if length + 8 > len(tail):
        file.seek(size - length - 8)
        tail = file.read()
    fields, _ = _read_struct(memoryview(tail[-length - 8 : -8]), 0)
    found = {}
    for group, row_group in enumerate(fields[_ROW_GROUPS]):
        for column in row_group[_COLUMNS]:
            metadata = column[_COLUMN_METADATA]
            name = b".".join(metadata[_PATH]).decode("utf-8", "replace")
            chunk = _Chunk(group, name, metadata[_COMPRESSED_SIZE], metadata[_NUM_VALUES])
            for start in (metadata.get(_DICTIONARY_OFFSET), metadata[_DATA_OFFSET]):
                if start is not None:
                    if not 0 <= start <= size:
                        raise pa.ArrowInvalid("chunks that lie outside of the file")
                    found.setdefault(start, chunk)
    return found


def _check_pages(chunk: _Chunk, data: memoryview) -> None:
    values = position = 0
    while values < chunk.values and position < len(data):
        page = _read_page(data, position)
        if expands_too_far(page.expanded, page.size):
            raise pa.ArrowInvalid(f"{chunk.name}: a page of {page.expanded:,} bytes from {page.size:,} on the disk")
        if page.is_delta and page.expanded * _ROWS > FREE:
            raise pa.ArrowInvalid(f"{chunk.name}: a page of {page.expanded:,} bytes that are differences")
        values, position = values + page.values, page.end
    if values > _MAX_VALUES + RATIO * len(data):
        raise pa.ArrowInvalid(f"{chunk.name}: {values:,} values from {len(data):,} bytes on the disk")


def _read_page(data: memoryview, position: int) -> _Page:
    try:
        fields, end = _read_struct(data, position)
        kind, expanded, size = (fields[number] for number in (1, 2, 3))
        header = fields.get(8 if kind == _DATA_PAGE_V2 else 5, {})
        values, encoding = header.get(1, 0), header.get(4 if kind == _DATA_PAGE_V2 else 2)
        if min(expanded, size, values) < 0:
            raise ValueError("sizes below 0")
    except (IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise pa.ArrowInvalid(f"a page without a header ({error})") from None
    return _Page(kind == _DICTIONARY_PAGE, expanded, size, values, encoding == _DELTA_BYTE_ARRAY, end + size)


def _rows_at_once(file: BinaryIO, starts: list[int]) -> int:
    """Returns a number of rows that fit into `FREE` bytes even if all have the largest value of a dictionary."""
    largest = 1
    for start in starts:
        file.seek(start)
        page = _read_page(memoryview(file.read(_HEAD)), 0)
        largest = max(largest, page.expanded if page.is_dictionary else 1)
    return max(1, min(_ROWS, FREE // largest))


def _check_types(kinds: Any) -> None:
    """Raises ArrowInvalid for a schema with types so wide that a missing value takes megabytes."""
    for number in range(kinds.num_fields if isinstance(kinds, pa.DataType) else len(kinds)):
        kind = kinds.field(number).type
        width = kind.byte_width if isinstance(kind, pa.FixedSizeBinaryType) else getattr(kind, "list_size", 0)
        if width > (MAX_WIDTH if isinstance(kind, pa.FixedSizeBinaryType) else MAX_LIST):
            raise pa.ArrowInvalid(f"a column whose values are all {width:,} wide")
        _check_types(kind)


def _check_lists(array: pa.Array) -> None:
    """Raises ArrowInvalid for a list of more than `MAX_LIST` elements, at any depth."""
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


def _size(value: Any) -> int:
    """Estimates the bytes of a value, which shares none with other rows any longer."""
    if isinstance(value, (bytes, str)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 8


def _read_struct(data: memoryview, position: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Reads a structure in Thrift's compact encoding, as the footer and the page headers are.

    Returns:
        The fields by their numbers (integers, texts as bytes, structures, lists) and the position of the end.

    Raises:
        IndexError: it is longer than the data.
        ValueError: no such structure.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("structures nested too deeply")
    found, number = {}, 0
    while head := data[position]:
        position += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            number, position = _read_integer(data, position)
        if kind in (_TRUE, _FALSE):  # the type has the value
            found[number] = kind == _TRUE
        else:
            found[number], position = _read_value(data, position, kind, depth)
    return found, position + 1


def _read_value(data: memoryview, position: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_I16, _I32, _I64):
        return _read_integer(data, position)
    if kind == _STRUCT:
        return _read_struct(data, position, depth + 1)
    if kind == _BINARY:
        size, position = _read_unsigned(data, position)
        if position + size > len(data):
            raise IndexError("a text longer than the data")
        return bytes(data[position : position + size]), position + size
    if kind in (_TRUE, _FALSE, _BYTE):  # booleans in lists
        return data[position], position + 1
    if kind == _DOUBLE:
        return None, position + 8
    if kind in (_LIST, _SET):
        return _read_list(data, position, depth)
    raise ValueError(f"a field of kind {kind}, which parquet does not have")


def _read_list(data: memoryview, position: int, depth: int) -> tuple[list, int]:
    size, kind = data[position] >> 4, data[position] & 15
    position += 1
    if size == 15:
        size, position = _read_unsigned(data, position)
    if depth > _MAX_DEPTH or size > len(data) - position:  # an element takes at least a byte
        raise IndexError("a list longer than the data")
    values = []
    for _ in range(size):
        value, position = _read_value(data, position, kind, depth + 1)
        values.append(value)
    return values, position


def _read_unsigned(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("an integer of more than 64 bits")


def _read_integer(data: memoryview, position: int) -> tuple[int, int]:
    value, position = _read_unsigned(data, position)
    return (value >> 1) ^ -(value & 1), position  # zigzag
