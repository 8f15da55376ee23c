"""Samples of tars: honest ones come out whole, bombs are refused before they expand."""

import gzip
import io
import random
import tarfile

import pytest
from bombs import little_memory

from evotok.data.sources import tars
from evotok.data.sources.shard_files import MAX_HEADER
from evotok.data.sources.tars import read_tar


def header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data):
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def zeros(megabytes):
    """Gzipped zeros, made piece by piece."""
    return gzip.compress(bytes(1_000_000)) * megabytes


def sparse_gnu():
    """One of the headers of old GNU tars: 8 GB of nothing."""
    block = bytearray(header("a.png", 0, tarfile.GNUTYPE_SPARSE))
    block[483:495] = b"%011o\0" % 8_000_000_000
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def pax(fields, kind=tarfile.XHDTYPE):
    """A long header with these fields."""
    records = b""
    for name, value in fields.items():
        record = f" {name}={value}\n".encode()
        size = len(record) + len(str(len(record)))
        size = len(record) + len(str(size))
        records += str(size).encode() + record
    return header("pax", len(records), kind) + padded(records)


BOMBS = {
    "a sparse file of GNU": (sparse_gnu, "sparse"),
    "a sparse file, form 0.0": (
        lambda: pax({"GNU.sparse.size": "8000000000"}) + header("a.png", 0) + bytes(1024),
        "sparse",
    ),
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
    "many members, gzipped": (
        lambda: gzip.compress((header("a.png", 1_024_000) + bytes(1_024_000)) * 100, 1),
        "bytes from",
    ),
    "a name of gigabytes, gzipped": (
        lambda: gzip.compress(header("x", 2_000_000_000, tarfile.GNUTYPE_LONGNAME)) + zeros(100),
        "a header of 2,000,000,000 bytes",
    ),
    "a long header of gigabytes, gzipped": (
        lambda: gzip.compress(header("x", 2_000_000_000, tarfile.XHDTYPE)) + zeros(100),
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
def test_bombs_are_refused(tmp_path, name):
    build, said = BOMBS[name]
    (tmp_path / "a.tar").write_bytes(build())
    with little_memory(500), pytest.raises(tarfile.TarError, match=said):
        list(read_tar(str(tmp_path / "a.tar")))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_samples_come_out_as_they_went_in(tmp_path, mode, form):
    path = str(tmp_path / "a.tar")
    long = "" if form == tarfile.USTAR_FORMAT else "/".join(["folder"] * 60) + "/"
    samples = [(f"{long}{number}", {"txt": b"a wall", "png": bytes([number]) * number}) for number in range(30)]
    with tarfile.open(path, mode, format=form) as tar:
        for key, files in samples:
            for suffix, data in files.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            tar.addfile(tarfile.TarInfo("folder"))
    found = [sample for sample in read_tar(path) if sample["__key__"] != "folder"]
    assert found == [{"__key__": key} | files for key, files in samples]


def test_what_is_large_on_the_disk_is_no_bomb(tmp_path, monkeypatch):
    """Pictures do not compress; nor does what is not compressed expand."""
    monkeypatch.setattr("evotok.data.sources.shard_files.FREE", 320_000)
    data = random.Random(0).randbytes(300_000)
    for mode in ("w", "w:gz"):
        with tarfile.open(tmp_path / "a.tar", mode) as tar:
            for number in range(3):
                info = tarfile.TarInfo(f"{number}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        assert len(list(tars.read_tar(str(tmp_path / "a.tar")))) == 3
