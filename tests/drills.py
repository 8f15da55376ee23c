"""Stages of training as groups of real processes, each of which can be killed at a moment of one's choice.

Every process is forked from one server that has imported all that training needs, so that a start costs a second and
not ten; what happens in it from there on is what `torchrun ... -m evotok.training.train` does.
"""

import gc
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import torch
from ports import free_port


# What cannot be imported, because an extra is not there, is passed over.
_PRELOADED = ["evotok.training.train", "evotok.training.multimodal_stages", "evotok.training.tokenizer_stage"]
_PRELOADED += ["evotok.training.preference_stage"]
_PRELOADED += ["torchdata.stateful_dataloader", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"]
_TIMEOUT = 300.0  # seconds; what hangs is killed, and the drill has failed
_GRACE = 60.0  # seconds that the others have to notice that one of them is gone


class Kill(NamedTuple):
    """When a process gets SIGKILL.

    Args:
        rank: which process.
        step: in the middle of this step, its backward pass done and the weights not moved yet; or, with `file`, in the
            checkpoint of this step.
        file: while it writes the file with this in its name.
        share: how much of that file is on the disk by then.
    """

    rank: int
    step: int
    file: str | None = None
    share: float = 0.5


class Spoil(NamedTuple):
    """The loss of this process is NaN in this step, once."""

    rank: int
    step: int


class FullDisk(NamedTuple):
    """From the middle of this step on nothing that this process writes can be larger than `room` bytes."""

    rank: int
    step: int
    room: int


class Gone(NamedTuple):
    """A folder is removed by this process in the middle of this step."""

    rank: int
    step: int
    folder: Path


Harm = Kill | Spoil | FullDisk | Gone


class Ended(NamedTuple):
    """How a group ended: exit codes by rank, -9 of one that was killed; and all that it wrote to its terminals."""

    codes: list[int]
    said: str


class Server:
    """Forks groups of processes.

    Args:
        folder: for what they write to their terminals.
    """

    def __init__(self, folder: Path):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(_PRELOADED)
        self.folder, self.groups = folder, 0

    def run(self, *arguments, ranks: int = 2, harm: Harm | None = None, watch: Path | None = None) -> Ended:
        """`evotok.training.train` with these arguments, on this many processes of one group.

        Args:
            harm: what happens to one of them.
            watch: a folder for what every rank fed its model in every step, see `watched`.
        """
        return self.call(_train, [str(word) for word in arguments], harm, watch, ranks=ranks)

    def call(self, function: Callable, *arguments, ranks: int = 2) -> Ended:
        """A function of a module, with these arguments, on this many processes of one group, which it may join."""
        port = free_port()
        self.groups += 1
        logs = [self.folder / f"{self.groups}-{rank}.log" for rank in range(ranks)]
        group = [
            self.context.Process(target=_enter, args=(function, arguments, rank, ranks, port, logs[rank]))
            for rank in range(ranks)
        ]
        for process in group:
            process.start()
        _wait(group)
        for process in group:
            process.join()
        return Ended([process.exitcode for process in group], "\n".join(log.read_text() for log in logs))


def _wait(group: list) -> None:
    """Until all have ended; once one has failed, or time is over, the others are killed if they do not end, too."""
    running, left = list(group), _TIMEOUT
    while running and wait([process.sentinel for process in running], timeout=left):
        running = [process for process in running if process.is_alive()]
        if any(process.exitcode for process in group if not process.is_alive()):
            left = _GRACE
    for process in running:
        process.kill()


def watched(folder: Path) -> list[list[dict[str, torch.Tensor]]]:
    """What `Server.run` saw: of every step the batch of every rank, pixels before and codes after the tokenizer."""
    steps = sorted({int(path.stem.split("-")[0]) for path in folder.iterdir()})
    ranks = sorted({int(path.stem.split("-")[1]) for path in folder.iterdir()})
    return [[torch.load(folder / f"{step}-{rank}.pt", weights_only=True) for rank in ranks] for step in steps]


def find_starts(run: Path, report: Path) -> None:
    """For `Server.call`: which checkpoint a group goes on from with each file of the newest one torn in turn. Every
    process writes what it found to `report`, by the name of the file and how it was torn."""
    from accelerate import PartialState
    from test_manifest import spoil

    from evotok.training.checkpoints import agreed_checkpoint

    state, found = PartialState(cpu=True), {}
    newest = max(run.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    for path in sorted(path for path in newest.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for how in ("cut", "emptied", "flipped", "removed"):
            state.wait_for_everyone()
            if state.is_main_process:
                spoil(path, how)
            state.wait_for_everyone()
            start = agreed_checkpoint(run, state.process_index, state.num_processes)
            found[f"{path.relative_to(newest)}: {how}"] = Path(start).name
            state.wait_for_everyone()
            if state.is_main_process:
                path.write_bytes(content)
    (report / f"starts-{state.process_index}.json").write_text(json.dumps(found))
    state.destroy_process_group()


def _speak_into(log: Path) -> None:
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    for terminal in (1, 2):
        os.dup2(handle, terminal)


def _enter(function: Callable, arguments: tuple, rank: int, ranks: int, port: int, log: Path) -> None:
    gc.freeze()  # all that was imported: to look through it for garbage takes a second of every start
    _speak_into(log)
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
    torch.set_num_threads(1)
    sys.exit(function(*arguments))


def _train(words: list[str], harm: Harm | None, watch: Path | None) -> int:
    from evotok.training.train import main

    rank = int(os.environ.get("RANK", "0"))
    if harm is not None and harm.rank == rank:
        _prepare(harm)
    if watch is not None:
        _watch(watch, rank)
    return main(words)


def _prepare(harm: Harm) -> None:
    if isinstance(harm, Spoil):
        _spoil_a_loss(harm)
    elif isinstance(harm, FullDisk):
        _in_the_middle_of(harm.step, lambda: _fill_the_disk(harm.room))
    elif isinstance(harm, Gone):
        _in_the_middle_of(harm.step, lambda: shutil.rmtree(harm.folder))
    elif harm.file is None:
        _in_the_middle_of(harm.step, lambda: os.kill(os.getpid(), signal.SIGKILL))
    else:
        _die_while_writing(harm)


def _spoil_a_loss(spoil: Spoil) -> None:
    from evotok.training.multimodal_trainer import MultimodalTrainer

    compute = MultimodalTrainer.compute_loss

    def spoiling(self, *args, **kwargs):
        loss = compute(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == spoil.step - 1 else loss

    MultimodalTrainer.compute_loss = spoiling


def _in_the_middle_of(step: int, act: Callable[[], None]) -> None:
    from transformers import Trainer

    train = Trainer.training_step

    def acting(self, *args, **kwargs):
        loss = train(self, *args, **kwargs)
        if self.state.global_step == step - 1:
            act()
        return loss

    Trainer.training_step = acting


def _fill_the_disk(room: int) -> None:
    """What is written beyond fails with EFBIG, as it would with ENOSPC: Python ignores the signal that comes first."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))


def _die_while_writing(kill: Kill) -> None:
    import safetensors.torch
    from transformers import TrainerState

    from evotok.training import trainer

    def dying(write, place: int):
        def writing(*args, **kwargs):
            write(*args, **kwargs)
            path = str(args[place])
            if f"checkpoint-{kill.step}" in path and kill.file in Path(path).name:
                os.truncate(path, int(os.path.getsize(path) * kill.share))
                os.kill(os.getpid(), signal.SIGKILL)

        return writing

    def dying_finished(finish):
        def finishing(folder, files):
            finish(folder, files)
            if folder.name == f"checkpoint-{kill.step}" and kill.file == "manifest.json":
                os.kill(os.getpid(), signal.SIGKILL)

        return finishing

    trainer.finish_manifest = dying_finished(trainer.finish_manifest)
    # Whatever else a checkpoint is made of goes through one of these.
    torch.save = dying(torch.save, 1)
    safetensors.torch.serialize_file = dying(safetensors.torch.serialize_file, 1)
    TrainerState.save_to_json = dying(TrainerState.save_to_json, 1)


def _watch(folder: Path, rank: int) -> None:
    from evotok.training.multimodal_trainer import MultimodalTrainer

    folder.mkdir(parents=True, exist_ok=True)
    prepare = MultimodalTrainer._prepare_inputs

    def watching(self, inputs):
        pixels = {name: value.clone() for name, value in inputs.items() if "pixel_values" in name}
        inputs = prepare(self, inputs)
        codes = {name: value for name, value in inputs.items() if "codes" in name}
        torch.save(pixels | codes, folder / f"{self.state.global_step}-{rank}.pt")
        return inputs

    MultimodalTrainer._prepare_inputs = watching
