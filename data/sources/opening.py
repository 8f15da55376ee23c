"""Opening a shard of a source for reading."""

from contextlib import AbstractContextManager
from typing import BinaryIO

import fsspec


def open_shard(path: str) -> AbstractContextManager[BinaryIO]:
    """A file on a disk, or `hf://`. Names on a disk are never read as addresses, though `::` be in them."""
    return fsspec.open(path) if path.startswith("hf://") else open(path, "rb")


__all__ = ["open_shard"]
