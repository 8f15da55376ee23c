"""The lock of an output folder: one run at a time trains into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from transformers.utils import logging


logger = logging.get_logger(__name__)

_LOCK = ".lock"


@contextmanager
def lock_folder(output_dir: str | Path, first: bool = True) -> Iterator[None]:
    """Locks an output folder, which is made, against other runs; the system releases the lock of a killed process.

    Args:
        first: whether this is the process of its group that holds the lock.

    Raises:
        ValueError: another run holds it; on all processes of the group.
    """
    folder = Path(output_dir)
    lock = FileLock(folder / _LOCK, timeout=0)
    taken, made = False, not folder.exists()
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            taken = True
        except OSError as error:  # file systems without locks
            logger.warning(f"{folder}: cannot be locked ({error}): start no other run in it.")
    if any(gather_object([taken])):
        raise ValueError(
            f"{folder}: another run is training into this folder: wait until it ends, or give another "
            "training.output_dir."
        )
    try:
        yield
    finally:
        if first:
            if made and [path.name for path in folder.iterdir()] == [_LOCK]:  # refused before anything was written
                (folder / _LOCK).unlink()
                folder.rmdir()
            lock.release()
