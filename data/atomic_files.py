"""Writes files atomically: even after a power cut, a file has its old content or all of its new content."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# Of file systems without `fsync`, such as some network and FUSE ones.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def sync(path: str | Path) -> None:
    """Flushes a file, or the names in a folder, to the disk.

    Raises:
        OSError: they cannot be written.
    """
    if os.name == "nt" and os.path.isdir(path):  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes what can be written
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def sync_files(folder: str | Path) -> None:
    """Flushes the files of a folder and their names to the disk; subfolders are not included."""
    for path in Path(folder).iterdir():
        if path.is_file():
            sync(path)
    sync(folder)
    sync(Path(folder).absolute().parent)


def move_synced(part: Path, path: Path) -> None:
    """Renames a written file to `path`, atomically even under a power cut."""
    sync(part)
    part.replace(path)
    sync(path.parent)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` at the end, and removed after an error.

    Several processes may write one file at the same time: the last rename wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        move_synced(part, path)
    finally:
        part.unlink(missing_ok=True)
