"""Which checkpoint a killed run goes on from, and what becomes of one that could not be written to its end."""

import errno
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What PyTorch's writer says, which keeps the reason to itself, and what safetensors says.
_WRITER_FAILED = ("PytorchStreamWriter", "inline_container", "No space left", "quota exceeded", "File too large")


def check_source(name: str | None, key: str) -> None:
    """Raises ValueError unless `name`, said by a recipe under `key`, is a folder or may be the id of a Hub model: for
    anything else the Hub would be asked, again and again, where there is no network."""
    if name is not None and not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{key}: {name}: no such folder: train the stage before, or give another checkpoint.")


def _checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders `checkpoint-N`, whole or not, newest last."""
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(folders, key=lambda p: int(p.name.split("-")[1]))


def _is_complete(folder: Path) -> bool:
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        latest = folder / "latest"  # DeepSpeed names its own subfolder here
        has_engine = not latest.is_file() or (folder / latest.read_text().strip()).is_dir()
    except (OSError, ValueError):
        return False
    return has_engine and any(folder.glob("rng_state*.pth"))


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Newest `checkpoint-N` that was written to its end, or None.

    A checkpoint is not written at one stroke. [`~training.trainer.EvoTokTrainer`] has `trainer_state.json` come last,
    when every process has written its share of everything else: a folder without it, or with a part of it, was cut
    off and is passed over.
    """
    return next((str(folder) for folder in reversed(_checkpoints(output_dir)) if _is_complete(folder)), None)


@contextmanager
def whole_or_none(folder: Path) -> Iterator[None]:
    """A checkpoint is written inside; after an error there is none of it, unless it is whole already.

    Raises:
        OSError: the disk is full; says so in one line, and which checkpoint is kept.
    """
    try:
        with room_on_disk(folder):
            yield
    except BaseException:
        if not _is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def room_on_disk(folder: Path) -> Iterator[None]:
    """A model is written to a folder inside.

    Raises:
        OSError: the disk is full, whatever the library that noticed says; in one line, and which checkpoint is kept.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) not in _FULL and not any(words in str(error) for words in _WRITER_FAILED):
            raise
        place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        runs = folder.parent if re.fullmatch(r"checkpoint-\d+", folder.name) else folder
        kept = last_complete_checkpoint(runs) or "none, there was no checkpoint yet"
        raise OSError(
            f"{folder}: the disk is full or a quota is reached ({shutil.disk_usage(place).free / 1e9:.1f} GB free), so "
            f"this was not saved; kept: {kept}. Make room, or lower training.save_total_limit, and give the command "
            "again: it goes on from there."
        ) from error
