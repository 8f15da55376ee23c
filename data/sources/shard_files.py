"""Opens the shard files of a source, and limits what a file of untrusted input may expand to in memory."""

from contextlib import AbstractContextManager
from typing import BinaryIO, cast

import fsspec


FREE = 64_000_000  # bytes that any file may expand to
RATIO = 20  # times its size, beyond that: text compresses to a tenth at best, images hardly at all
MAX_FILE = 256_000_000  # bytes of the files of one row
MAX_LIST = 10_000  # elements in one row, such as messages of a conversation
MAX_HEADER = 8192  # bytes of a tar's long names: a path has 4,096 at most
MAX_WIDTH = 1_000_000  # bytes of a value whose width the schema fixes


def open_shard(path: str) -> AbstractContextManager[BinaryIO]:
    """Opens a local file or one of `hf://` for reading; the name of a local file may contain `::`."""
    if path.startswith("hf://"):
        return cast("AbstractContextManager[BinaryIO]", fsspec.open(path))
    return open(path, "rb")


def expands_too_far(expanded: int, size: int) -> bool:
    """Returns whether `expanded` bytes are more than `size` bytes of a file may expand to."""
    return expanded > FREE + RATIO * size
