"""Samples of webdataset tars, read front to back, of untrusted files too: no member expands to more than it may."""

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from .limits import MAX_FILE, MAX_HEADER, expands_too_far
from .opening import open_shard


_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


def read_tar(path: str) -> Iterator[dict]:
    """The samples of a webdataset tar, on a disk or `hf://`: `{"__key__", suffix: bytes}` of the neighbouring files
    whose path is the same up to the first dot of the name.

    Raises:
        tarfile.TarError: damaged, or a sample over `MAX_FILE`, a sparse file, or far larger than compressed.
    """
    try:
        yield from _read_samples(path)
    except (ValueError, LookupError, OverflowError) as error:  # of numbers and names in headers
        raise tarfile.ReadError(f"a header that cannot be read ({error})") from None


def _read_samples(path: str) -> Iterator[dict]:
    with open_shard(path) as file:
        counted = _Counted(file)
        with tarfile.open(fileobj=counted, mode="r|*", tarinfo=_Header) as tar:
            compressed = tar.fileobj.comptype != "tar"
            sample: dict[str, Any] = {}
            size = expanded = 0
            for member in tar:
                expanded += member.size + tarfile.BLOCKSIZE
                if compressed and expands_too_far(expanded, counted.bytes):
                    raise tarfile.ReadError(f"{expanded:,} bytes from {counted.bytes:,} compressed ones")
                if not member.isfile():
                    continue
                key, suffix = _key_and_suffix(member.name)
                if key != sample.get("__key__"):
                    if sample:
                        yield sample
                    sample, size = {"__key__": key}, 0
                size += member.size
                if size > MAX_FILE:
                    raise tarfile.ReadError(f"{member.name} takes its sample over the limit of {MAX_FILE:,} bytes")
                sample[suffix] = tar.extractfile(member).read()
            if sample:
                yield sample


class _Counted:
    """A file that knows how much of it has been read."""

    def __init__(self, file: BinaryIO):
        self.file, self.bytes = file, 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.bytes += len(data)
        return data


class _Header(tarfile.TarInfo):
    """`tarfile` takes a header that is damaged or missing for the end, unless it is the first; here it is an error. So
    is one that asks for much memory: a sparse file, which is nothing but holes, or a name of megabytes."""

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


__all__ = ["read_tar"]
