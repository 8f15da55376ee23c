"""The training checkpoints of an output folder: which one a run resumes from, which are kept, how they are written."""

import errno
import itertools
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import gather_object
from transformers.utils import logging

from .manifest import UNFINISHED, discard, find_damage, step_of


logger = logging.get_logger(__name__)

_NAME = re.compile(r"checkpoint-\d+")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Messages of PyTorch's writer, which do not contain the cause, and of safetensors.
_WRITER_FAILED = ("PytorchStreamWriter", "inline_container", "No space left", "quota exceeded", "File too large")
# Messages of PyTorch and safetensors for a folder that is missing; in other libraries it is a FileNotFoundError.
_NO_FOLDER = ("Parent directory", "No such file")


def _checkpoints(output_dir: str | Path) -> list[Path]:
    """Returns the folders `checkpoint-N`, complete or not, newest last."""
    return sorted((p for p in Path(output_dir).glob("checkpoint-*") if _NAME.fullmatch(p.name)), key=step_of)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Returns the newest `checkpoint-N` that is finished and has all its files, or None.

    File contents are not read: [`find_resumable_checkpoint`] does that before anything is resumed.
    """
    complete = (folder for folder in reversed(_checkpoints(output_dir)) if find_damage(folder, contents=False) is None)
    return next(map(str, complete), None)


def describe_kept(output_dir: str | Path) -> str:
    """Returns the last complete checkpoint for a message, or that there is none."""
    return last_complete_checkpoint(output_dir) or "none, there was no checkpoint yet"


def find_resumable_checkpoint(output_dir: str | Path, rank: int = 0, world_size: int = 1) -> str | None:
    """Finds the newest checkpoint that is undamaged by its manifest, the same for every process of the group.

    Each process reads its share of the files; a line is logged for every checkpoint that is skipped.

    Returns:
        The folder, or None where no checkpoint was finished.

    Raises:
        ValueError: the processes find different checkpoints, and would train different models as one; or there are
            checkpoints, and all of them are damaged.
    """
    folders = _checkpoints(output_dir)
    found = gather_object([tuple(folder.name for folder in folders if find_damage(folder, contents=False) is None)])
    if len(set(found)) > 1:
        last = [f"{output_dir}/{names[-1]}" if names else "none" for names in found]
        ranks = {name: [str(rank) for rank, other in enumerate(last) if other == name] for name in last}
        listed = "; ".join(f"{name} on rank {', '.join(ranks[name])}" for name in ranks)
        raise ValueError(
            f"{output_dir}: the processes find different checkpoints to resume from: {listed}. Put training.output_dir "
            "on storage that all nodes share, and the checkpoint to resume from there."
        )
    damages = []
    for folder in reversed(folders):
        damage = next(filter(None, gather_object([find_damage(folder, rank, world_size)])), None)
        if damage is None:
            return str(folder)
        if rank == 0:
            logger.warning(f"{folder}: {damage}: skipped; the previous checkpoint is tried.")
        if damage != UNFINISHED:
            damages.append(f"{folder.name}: {damage}")
    if damages:
        raise ValueError(
            f"{output_dir}: all checkpoints to resume from are damaged ({'; '.join(damages[:3])}): put the files back, "
            "or start again with --restart, which moves them aside."
        )
    return None


def rotate_checkpoints(output_dir: str | Path, step: int, limit: int | None, best: str | None = None) -> None:
    """Removes the oldest checkpoints, by their steps, until `limit` are left, the newest and the best among them.

    Args:
        step: of the newest, which is on the disk by now. Later ones are damaged; they are neither counted nor removed.
    """
    if not limit or limit < 0:
        return
    folders = [folder for folder in _checkpoints(output_dir) if step_of(folder) <= step]
    kept = {f"checkpoint-{step}", Path(best).name if best else ""}
    removable = [folder for folder in folders if folder.name not in kept]
    for folder in removable[: max(0, len(folders) - limit)]:
        discard(folder)


def move_aside(output_dir: str | Path) -> None:
    """Moves all checkpoints to `earlier-1/`, or the next free number.

    A run that starts again and is killed before its first checkpoint would otherwise resume from an old one.
    """
    folders = _checkpoints(output_dir)
    if not folders:
        return
    target = next(path for n in itertools.count(1) if not (path := Path(output_dir) / f"earlier-{n}").exists())
    target.mkdir()
    for folder in folders:
        folder.rename(target / folder.name)


@contextmanager
def atomic_directory(folder: Path) -> Iterator[None]:
    """Removes the checkpoint that is written inside after an error, unless it is complete already.

    Raises:
        OSError: as [`translate_disk_errors`].
    """
    try:
        with translate_disk_errors(folder):
            yield
    except BaseException:
        if find_damage(folder, contents=False) is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def translate_disk_errors(folder: Path) -> Iterator[None]:
    """Translates the errors of libraries that write to a folder inside, where the disk is full.

    Raises:
        OSError: in one line, with the checkpoint that is kept: the disk is full, or was for another process, which has
            removed the folder.
    """
    try:
        yield
    except Exception as error:
        kept = describe_kept(folder.parent if _NAME.fullmatch(folder.name) else folder)
        if not folder.is_dir() and any(words in str(error) for words in _NO_FOLDER):
            raise OSError(
                f"{folder}: removed while this process wrote to it, as by another process that cannot write its share "
                f"and logs the reason; kept: {kept}."
            ) from error
        if getattr(error, "errno", None) not in _FULL and not any(words in str(error) for words in _WRITER_FAILED):
            raise
        disk = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        raise OSError(
            f"{folder}: the disk is full or a quota is reached ({shutil.disk_usage(disk).free / 1e9:.1f} GB free), so "
            f"this was not saved; kept: {kept}. Free some space, or lower training.save_total_limit, and run the "
            "command again: it resumes from there."
        ) from error
