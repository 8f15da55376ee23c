"""Rows of parquet files: all shapes are read, bombs are refused before they expand."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bombs import little_memory

from evotok.data.sources.parquet import read_parquet
from evotok.data.sources.shard_files import MAX_LIST


def write(path, table, **kwargs):
    pq.write_table(table, path, **kwargs)
    return str(path)


def repeated(value, rows):
    """Returns a column of equal values, which occupies the bytes of one."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False, "data_page_version": "2.0", "compression": "zstd"},
        {"use_dictionary": False, "column_encoding": {"id": "DELTA_BYTE_ARRAY"}},
    ],
)
def test_read_parquet_returns_the_written_rows(tmp_path, options):
    rows = [
        {
            "id": f"row {number}",
            "image": {"bytes": bytes([number % 256]) * (number % 700), "path": None},
            "messages": [{"from": "human", "value": f"{index} of {number}"} for index in range(number % 4)] or None,
            "codes": b"1234",
            "flag": bool(number % 2),
            "score": number / 3,
        }
        for number in range(1000)
    ]
    path = write(tmp_path / "a.parquet", pa.Table.from_pylist(rows), row_group_size=400, **options)
    assert list(read_parquet(path)) == rows
    empty = write(tmp_path / "b.parquet", pa.table({"a": pa.array([], pa.string())}))
    assert list(read_parquet(empty)) == []


def test_read_parquet_reads_few_rows_with_large_shared_values(tmp_path):
    """The limit is 64 MB and twenty times the bytes on the disk."""
    table = pa.table({"caption": repeated("x" * 8_000_000, 1000)})
    path = write(tmp_path / "a.parquet", table)
    rows = 0
    with little_memory(400), pytest.raises(pa.ArrowInvalid, match="rows of [0-9,]+ bytes from"):
        for _ in read_parquet(path):
            rows += 1
    assert rows == 7


BOMBS = {
    "a page of zeros": (lambda: pa.table({"a": [bytes(70_000_000)]}), {"compression": "zstd"}, "a page of"),
    "a list of equal numbers": (
        lambda: pa.table(
            {"a": pa.ListArray.from_arrays(pa.array([0, 20_000_000], pa.int32()), pa.nulls(20_000_000, pa.int8()))}
        ),
        {},
        "values from",
    ),
    "a list in a structure in a list": (
        lambda: pa.table({"a": [[{"b": [1] * (MAX_LIST + 1)}]]}),
        {},
        "a list of 10,001 elements",
    ),
    "a long map": (
        lambda: pa.table({"a": pa.array([[(n, n) for n in range(MAX_LIST + 1)]], pa.map_(pa.int32(), pa.int32()))}),
        {},
        "a list of 10,001 elements",
    ),
    "missing values of megabytes each": (
        lambda: pa.table({"a": pa.nulls(0, pa.binary(10_000_000))}),
        {},
        "all 10,000,000 wide",
    ),
    "missing lists of a billion each": (
        lambda: pa.table({"a": pa.nulls(0, pa.list_(pa.int8(), 1_000_000_000))}),
        {},
        "all 1,000,000,000 wide",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_read_parquet_refuses_bombs(tmp_path, name):
    build, options, message = BOMBS[name]
    path = write(tmp_path / "a.parquet", build(), **options)
    with little_memory(600), pytest.raises(pa.ArrowInvalid, match=message):
        list(read_parquet(path))


def varint(value, length=0):
    """Returns an integer in Thrift's encoding, of at least `length` bytes."""
    value, encoded = 2 * value, []
    while value or len(encoded) < length or not encoded:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded[:-1], encoded[-1] & 127])


def test_read_parquet_checks_page_headers(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, pa.table({"a": [bytes(70_000_000)]}), compression="zstd", use_dictionary=False)
    size = pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    content, encoded = path.read_bytes(), varint(size)
    assert size > 70_000_000 and content.count(encoded) == 2, "of the column, and of the row group"
    path.write_bytes(content.replace(encoded, varint(1000, len(encoded))))
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 1000
    with pytest.raises(pa.ArrowInvalid, match="a page of 70"):
        list(read_parquet(str(path)))


def test_read_parquet_raises_arrow_errors_for_damaged_pages(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, pa.table({"a": [b"x" * 100] * 50}), use_dictionary=False)
    content = path.read_bytes()
    for place in (4, 5, 8, 12, 20):
        for value in (0, 0x7F, 0x80, 0xFF, content[place] ^ 1):
            path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                list(read_parquet(str(path)))
            except (pa.ArrowException, OSError):
                continue
