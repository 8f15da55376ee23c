"""Reads the rows of webdataset tars of untrusted input, front to back: no member expands to more than the limits."""

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from .shard_files import MAX_FILE, MAX_HEADER, expands_too_far, open_shard


_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


def read_tar(path: str) -> Iterator[dict]:
    """Yields the rows of a webdataset tar, local or `hf://`: `{"__key__", suffix: bytes}` of neighbouring files with
    the same path up to the first dot of the name.

    Raises:
        tarfile.TarError: a damaged tar, a row over `MAX_FILE`, a sparse file, or far larger than compressed.
    """
    try:
        yield from _read_rows(path)
    except (ValueError, LookupError, OverflowError) as error:  # of numbers and names in headers
        raise tarfile.ReadError(f"a header that cannot be read ({error})") from None


def _read_rows(path: str) -> Iterator[dict]:
    with open_shard(path) as file:
        counted = _CountedFile(file)
        with tarfile.open(
            fileobj=counted,  # pyright: ignore[reportArgumentType, reportCallIssue]  # a stream needs `read` alone
            mode="r|*",
            tarinfo=_CheckedHeader,
        ) as tar:
            compressed = tar.fileobj.comptype != "tar"
            row: dict[str, Any] = {}
            size = expanded = 0
            for member in tar:
                expanded += member.size + tarfile.BLOCKSIZE
                if compressed and expands_too_far(expanded, counted.bytes):
                    raise tarfile.ReadError(f"{expanded:,} bytes from {counted.bytes:,} compressed ones")
                if not member.isfile():
                    continue
                key, suffix = _key_and_suffix(member.name)
                if key != row.get("__key__"):
                    if row:
                        yield row
                    row, size = {"__key__": key}, 0
                size += member.size
                if size > MAX_FILE:
                    raise tarfile.ReadError(f"{member.name} takes its row over the limit of {MAX_FILE:,} bytes")
                row[suffix] = tar.extractfile(member).read()
            if row:
                yield row


class _CountedFile:
    """File that counts the bytes read."""

    def __init__(self, file: BinaryIO):
        self.file, self.bytes = file, 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.bytes += len(data)
        return data


class _CheckedHeader(tarfile.TarInfo):
    """Header that raises an error where `tarfile` takes a damaged or missing one for the end of the tar, and where it
    would take much memory: for a sparse file, which is all holes, or a name of megabytes."""

    @classmethod
    def fromtarfile(cls, tarfile_):
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.EmptyHeaderError, tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(str(error)) from None
        except RecursionError:
            raise tarfile.ReadError("headers of headers without end") from None

    def _proc_member(self, tarfile_):
        if self.type in _HEADERS and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{self.name} is a sparse file")
        return super()._proc_member(tarfile_)

    def _proc_gnusparse_00(self, *args):
        raise tarfile.ReadError(f"{self.name} is a sparse file")

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


def _key_and_suffix(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, suffix.lower()
