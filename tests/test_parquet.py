"""Rows of parquet files: honest ones of every shape come out whole, bombs are refused before they expand."""

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
    """A column of one value, which takes the bytes of one."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


@pytest.mark.parametrize(
    "options", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"compression": "zstd"}]
)
def test_rows_come_out_as_they_went_in(tmp_path, options):
    rows = [
        {
            "id": number,
            "image": {"bytes": bytes([number % 256]) * (number % 700), "path": None},
            "turns": [{"from": "human", "value": f"{turn} of {number}"} for turn in range(number % 4)] or None,
            "codes": b"1234",
            "flag": bool(number % 2),
            "score": number / 3,
        }
        for number in range(1500)
    ]
    path = write(tmp_path / "a.parquet", pa.Table.from_pylist(rows), row_group_size=400, **options)
    assert list(read_parquet(path)) == rows


def test_a_file_without_rows_has_none(tmp_path):
    assert list(read_parquet(write(tmp_path / "a.parquet", pa.table({"a": pa.array([], pa.string())})))) == []


def test_delta_encoded_values_are_read(tmp_path):
    table = pa.table({"caption": [f"a red wall, number {n}" for n in range(500)]})
    path = write(tmp_path / "a.parquet", table, use_dictionary=False, column_encoding={"caption": "DELTA_BYTE_ARRAY"})
    assert [row["caption"] for row in read_parquet(path)] == table["caption"].to_pylist()


def test_one_large_value_that_many_rows_share_is_read_a_few_rows_at_a_time(tmp_path):
    """Up to twenty times what lies on the disk, and no more than 64 MB where that is little."""
    table = pa.table({"caption": repeated("x" * 8_000_000, 1000)})
    path = write(tmp_path / "a.parquet", table)
    rows = 0
    with little_memory(400), pytest.raises(pa.ArrowInvalid, match="rows of [0-9,]+ bytes from"):
        for _ in read_parquet(path):
            rows += 1
    assert rows == 7


BOMBS = {
    "a page of zeros": (lambda: pa.table({"a": [bytes(70_000_000)]}), {"compression": "zstd"}, "a page of"),
    "a caption that all rows share": (
        lambda: pa.table({"a": repeated("x" * 70_000_000, 500)}),
        {"compression": "zstd"},
        "a page of",
    ),
    "a list of equal numbers": (
        lambda: pa.table(
            {"a": pa.ListArray.from_arrays(pa.array([0, 20_000_000], pa.int32()), pa.nulls(20_000_000, pa.int8()))}
        ),
        {},
        "values from",
    ),
    "a list that is too long": (lambda: pa.table({"a": [[1] * (MAX_LIST + 1)]}), {}, "a list of 10,001 elements"),
    "a list in a structure in a list": (
        lambda: pa.table({"a": [[{"b": [1] * (MAX_LIST + 1)}]]}),
        {},
        "a list of 10,001 elements",
    ),
    "a map that is too long": (
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
def test_bombs_are_refused(tmp_path, name):
    build, options, said = BOMBS[name]
    path = write(tmp_path / "a.parquet", build(), **options)
    with little_memory(600), pytest.raises(pa.ArrowInvalid, match=said):
        list(read_parquet(path))


def varint(value, length=0):
    """An integer as Thrift writes it, in so many bytes at least."""
    value, said = 2 * value, []
    while value or len(said) < length or not said:
        said.append(value & 127 | 128)
        value >>= 7
    return bytes([*said[:-1], said[-1] & 127])


def test_headers_of_pages_are_believed_not_the_footer(tmp_path):
    """Whose sizes say nothing: only the page is read, and its header looked at first."""
    path = tmp_path / "a.parquet"
    write(path, pa.table({"a": [bytes(70_000_000)]}), compression="zstd", use_dictionary=False)
    size = pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    content, said = path.read_bytes(), varint(size)
    assert size > 70_000_000 and content.count(said) == 2, "of the column, and of the row group"
    path.write_bytes(content.replace(said, varint(1000, len(said))))
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 1000
    with pytest.raises(pa.ArrowInvalid, match="a page of 70"):
        list(read_parquet(str(path)))


@pytest.mark.parametrize("place", [4, 5, 8, 12, 20])
def test_damaged_pages_are_damages(tmp_path, place):
    path = tmp_path / "a.parquet"
    write(path, pa.table({"a": [b"x" * 100] * 50}), use_dictionary=False)
    content = bytearray(path.read_bytes())
    for value in (0, 0x7F, 0x80, 0xFF, content[place] ^ 1):
        path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        try:
            list(read_parquet(str(path)))
        except (pa.ArrowException, OSError):
            continue
