"""Files that are whole or not there, after a power cut too."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# What file systems without such a call say, such as some network and FUSE ones.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def sync(path: str | Path) -> None:
    """Waits until what was written to a file, or the names in a folder, are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    if os.name == "nt" and os.path.isdir(path):  # cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def sync_files(folder: str | Path) -> None:
    """Syncs the files of a folder, but not those of folders in it, and their names."""
    for path in Path(folder).iterdir():
        if path.is_file():
            sync(path)
    sync(folder)
    sync(Path(folder).absolute().parent)


def move_synced(part: Path, path: Path) -> None:
    """Gives a written file its name: a power cut leaves the file before or all of this one."""
    sync(part)
    part.replace(path)
    sync(path.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place to write what becomes `path` when it is complete; after an error there is nothing of it.

    Several processes may write one file at the same time: readers find that of one of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        move_synced(part, path)
    finally:
        part.unlink(missing_ok=True)
