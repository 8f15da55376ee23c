"""Rows of webdataset tars: all formats are read, bombs are refused before they expand."""

import gzip
import io
import random
import tarfile

import pytest
from bombs import little_memory

from evotok.data.sources.shard_files import MAX_HEADER
from evotok.data.sources.tars import read_tar


def header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data):
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def zeros(megabytes):
    """Returns gzipped zeros."""
    return gzip.compress(bytes(1_000_000)) * megabytes


def sparse_gnu():
    """Returns a header of old GNU tars: 8 GB of holes."""
    block = bytearray(header("a.png", 0, tarfile.GNUTYPE_SPARSE))
    block[483:495] = b"%011o\0" % 8_000_000_000
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def pax(fields, kind=tarfile.XHDTYPE):
    """Returns an extended header with these fields."""
    records = b""
    for name, value in fields.items():
        record = f" {name}={value}\n".encode()
        size = len(record) + len(str(len(record)))
        size = len(record) + len(str(size))
        records += str(size).encode() + record
    return header("pax", len(records), kind) + padded(records)


BOMBS = {
    "a sparse file of GNU": (sparse_gnu, "sparse"),
    "a sparse file, form 1.0": (
        lambda: (
            pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "8000000000"})
            + header("a.png", 512)
            + padded(b"1000000000\n")
        ),
        "sparse",
    ),
    "a member of gigabytes, gzipped": (
        lambda: gzip.compress(header("a.png", 2_000_000_000)) + zeros(100),
        "2,000,000,512 bytes from",
    ),
    "a name of gigabytes, gzipped": (
        lambda: gzip.compress(header("x", 2_000_000_000, tarfile.GNUTYPE_LONGNAME)) + zeros(100),
        "a header of 2,000,000,000 bytes",
    ),
    "a member of gigabytes that is not there": (lambda: header("a.png", 8_000_000_000) + bytes(1024), "over the limit"),
    "headers of headers": (lambda: pax({"a": "b"}) * 5000, "headers of headers"),
    "a number of thousands of digits": (
        lambda: header("x", 6000, tarfile.XHDTYPE) + padded(b"9" * 5000 + b" a=b\n" + bytes(994)) + bytes(1024),
        "cannot be read",
    ),
    "digits without end": (
        lambda: header("x", MAX_HEADER, tarfile.XHDTYPE) + padded(b"9" * MAX_HEADER),
        "empty header",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_read_tar_refuses_bombs(tmp_path, name):
    build, message = BOMBS[name]
    (tmp_path / "a.tar").write_bytes(build())
    with little_memory(500), pytest.raises(tarfile.TarError, match=message):
        list(read_tar(str(tmp_path / "a.tar")))


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("mode", "form"), [("w", tarfile.GNU_FORMAT), ("w:gz", tarfile.PAX_FORMAT), ("w:xz", tarfile.USTAR_FORMAT)]
)
def test_read_tar_groups_neighbouring_files_by_key(tmp_path, mode, form):
    long = "" if form == tarfile.USTAR_FORMAT else "/".join(["folder"] * 60) + "/"
    with tarfile.open(tmp_path / "a.tar", mode, format=form) as tar:
        for number in range(30):
            add(tar, f"{long}{number}.JPEG", bytes([number]) * number)
            add(tar, f"{long}{number}.x.txt", b"a wall")
            tar.addfile(tarfile.TarInfo("folder"))
    found = [row for row in read_tar(str(tmp_path / "a.tar")) if row["__key__"] != "folder"]
    expected = [{"jpeg": bytes([number]) * number, "x.txt": b"a wall"} for number in range(30)]
    assert found == [{"__key__": f"{long}{number}"} | files for number, files in enumerate(expected)]


def test_read_tar_reads_large_uncompressed_files(tmp_path, monkeypatch):
    """Images do not compress, and uncompressed data do not expand."""
    monkeypatch.setattr("evotok.data.sources.shard_files.FREE", 320_000)
    data = random.Random(0).randbytes(300_000)
    for mode in ("w", "w:gz"):
        with tarfile.open(tmp_path / "a.tar", mode) as tar:
            for number in range(3):
                add(tar, f"{number}.png", data)
        assert len(list(read_tar(str(tmp_path / "a.tar")))) == 3
