"""Which checkpoint a killed run goes on from, by how many processes, which ones are kept, and what becomes of one not
written to its end."""

import errno
import itertools
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.optim import Optimizer
from transformers import TrainingArguments
from transformers.utils import logging

from .config_checks import check_configs
from .manifest import UNFINISHED, discard, find_damage, step_of


logger = logging.get_logger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What PyTorch's writer says, which keeps the reason to itself, and what safetensors says.
_WRITER_FAILED = ("PytorchStreamWriter", "inline_container", "No space left", "quota exceeded", "File too large")
# What PyTorch and safetensors say where a folder is not there; else it is Python's FileNotFoundError.
_NO_FOLDER = ("Parent directory", "No such file")


def check_source(name: str | None, key: str) -> None:
    """Raises ValueError unless `name`, said by a recipe under `key`, is a folder or may be the id of a Hub model: for
    anything else the Hub would be asked, again and again, where there is no network. Raises it for a folder, too, whose
    configs nothing should be built by."""
    if name is None:
        return
    if Path(name).is_dir():
        check_configs(Path(name), f"{key}: {name}", of_ours=key in ("model.checkpoint", "model.vq_checkpoint"))
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{key}: {name}: no such folder: train the stage before, or give another checkpoint.")


def _checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders `checkpoint-N`, whole or not, newest last."""
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(folders, key=step_of)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Newest `checkpoint-N` that was written to its end and has all its files, or None.

    Their contents are not read: [`agreed_checkpoint`] does that before anything is resumed.
    """
    whole = (folder for folder in reversed(_checkpoints(output_dir)) if find_damage(folder, contents=False) is None)
    return next(map(str, whole), None)


def agreed_checkpoint(output_dir: str | Path, rank: int = 0, world_size: int = 1) -> str | None:
    """The newest checkpoint that is whole by its manifest, the same for every process of the group, or None where none
    was written to its end. Each process reads its share of the files; what is passed over gets a line.

    Raises:
        ValueError: the processes find different checkpoints, and would train different models as one; or there are
            some, and all of them are damaged.
    """
    folders = _checkpoints(output_dir)
    found = gather_object([tuple(folder.name for folder in folders if find_damage(folder, contents=False) is None)])
    if len(set(found)) > 1:
        last = [f"{output_dir}/{names[-1]}" if names else "none" for names in found]
        ranks = {name: [str(rank) for rank, other in enumerate(last) if other == name] for name in last}
        seen = "; ".join(f"{name} on rank {', '.join(ranks[name])}" for name in ranks)
        raise ValueError(
            f"{output_dir}: the processes find different checkpoints to go on from: {seen}. Put training.output_dir on "
            "storage that all nodes share, and the checkpoint to go on from there."
        )
    damages = []
    for folder in reversed(folders):
        damage = next(filter(None, gather_object([find_damage(folder, rank, world_size)])), None)
        if damage is None:
            return str(folder)
        if rank == 0:
            logger.warning(f"{folder}: {damage}: passed over, for the checkpoint before it.")
        if damage != UNFINISHED:
            damages.append(f"{folder.name}: {damage}")
    if damages:
        raise ValueError(
            f"{output_dir}: no checkpoint to go on from is whole ({'; '.join(damages[:3])}): put the files back, or "
            "begin anew with --restart, which moves them aside."
        )
    return None


def rotate_checkpoints(output_dir: str | Path, step: int, limit: int | None, best: str | None = None) -> None:
    """Removes the oldest checkpoints, by their steps, until `limit` are left, the newest and the best among them.

    Args:
        step: of the newest, which is on the disk by now. Later ones, which are damaged, neither count nor go.
    """
    if not limit or limit < 0:
        return
    folders = [folder for folder in _checkpoints(output_dir) if step_of(folder) <= step]
    kept = {f"checkpoint-{step}", Path(best).name if best else ""}
    removable = [folder for folder in folders if folder.name not in kept]
    for folder in removable[: max(0, len(folders) - limit)]:
        discard(folder)


def put_aside(output_dir: str | Path) -> None:
    """Move all checkpoints to `earlier-1/`, or the next free number: a run that begins anew and is killed before its
    first save would otherwise go on from those of the run before."""
    folders = _checkpoints(output_dir)
    if not folders:
        return
    place = next(place for n in itertools.count(1) if not (place := Path(output_dir) / f"earlier-{n}").exists())
    place.mkdir()
    for folder in folders:
        folder.rename(place / folder.name)


def check_engine(arguments: TrainingArguments, checkpoint: str) -> None:
    """Raises ValueError for a checkpoint that was written under another engine than this run has: the optimizer's state
    would be left out, or DeepSpeed not find its own."""
    folder = Path(checkpoint)
    if arguments.fsdp or (folder / "latest_universal").is_file():
        return
    sharded = any(folder.glob("*/zero_pp_rank_*model_states.pt"))
    before = "ZeRO-3" if sharded else "DeepSpeed without ZeRO-3" if (folder / "latest").is_file() else "no engine"
    now = "no engine"
    if arguments.deepspeed:
        now = "ZeRO-3" if arguments.hf_deepspeed_config.is_zero3() else "DeepSpeed without ZeRO-3"
    if before != now:
        raise ValueError(
            f"{folder}: written under {before}, but this run is under {now}: give the training.deepspeed of before, "
            "another training.output_dir, or --restart."
        )


def prepare_engine(arguments: TrainingArguments, checkpoint: str) -> None:
    """Have DeepSpeed read a checkpoint: as it was written, or, where `ds_to_universal` has been run on it, by any
    number of processes.

    Raises:
        ValueError: written by another number of processes, and not made universal yet.
    """
    folder = Path(checkpoint)
    if (folder / "latest_universal").is_file():
        arguments.hf_deepspeed_config.config.setdefault("checkpoint", {})["load_universal"] = True
        return
    ranks = len(list(folder.glob("rng_state_*.pth"))) or 1
    if ranks != arguments.world_size:
        tag = (folder / "latest").read_text().strip() if (folder / "latest").is_file() else "global_stepN"
        raise ValueError(
            f"{folder}: written by {ranks} processes, this run has {arguments.world_size}: python -m "
            f"deepspeed.checkpoint.ds_to_universal --inject_missing_state --input_folder {folder / tag} "
            f"--output_folder {folder / tag}_universal, then start again."
        )


def tell_groups_apart(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    """After ZeRO-3 has read a universal checkpoint. DeepSpeed gives all groups of parameters what is the first one's,
    weight decay among it, and one tensor to count steps in, which would then go up by as many as there are groups.

    Args:
        groups: what is each one's own, by name, in their order.
    """
    for state in optimizer.state.values():
        state["step"] = torch.as_tensor(state["step"]).clone()
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)


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
        if find_damage(folder, contents=False) is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def room_on_disk(folder: Path) -> Iterator[None]:
    """A model is written to a folder inside.

    Raises:
        OSError: the disk is full, whatever the library that noticed says, or was for another process, which has removed
            the folder; in one line, and which checkpoint is kept.
    """
    try:
        yield
    except Exception as error:
        runs = folder.parent if re.fullmatch(r"checkpoint-\d+", folder.name) else folder
        kept = last_complete_checkpoint(runs) or "none, there was no checkpoint yet"
        if not folder.is_dir() and any(words in str(error) for words in _NO_FOLDER):
            raise OSError(
                f"{folder}: gone while this process wrote to it, as when another one cannot write its share, which "
                f"then says why; kept: {kept}."
            ) from error
        if getattr(error, "errno", None) not in _FULL and not any(words in str(error) for words in _WRITER_FAILED):
            raise
        place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        raise OSError(
            f"{folder}: the disk is full or a quota is reached ({shutil.disk_usage(place).free / 1e9:.1f} GB free), so "
            f"this was not saved; kept: {kept}. Make room, or lower training.save_total_limit, and give the command "
            "again: it goes on from there."
        ) from error
