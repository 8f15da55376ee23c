"""Trainings as groups of real processes, in which faults can be injected at a chosen moment.

Every process is forked from one server that has imported all of training, so that a start takes a second and not ten;
after that it runs as under `torchrun ... -m evotok.training.train`.
"""

import gc
import multiprocessing
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import torch
from ports import free_port


# Modules that need a missing extra are skipped.
_PRELOADED = ["evotok.training.train", "evotok.training.multimodal.stages", "evotok.training.tokenizer.stage"]
_PRELOADED += ["evotok.training.multimodal.preferences"]
_PRELOADED += ["torchdata.stateful_dataloader", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"]
_TIMEOUT = 300.0  # seconds; a group that hangs is killed, and the drill has failed
_GRACE = 60.0  # seconds for the others to end after one has failed


class Kill(NamedTuple):
    """SIGKILL for a process.

    Args:
        rank: of the process.
        step: in this step, after the backward pass and before the optimizer; or, with `file`, in the checkpoint of this
            step.
        file: part of the name of the file that is being written.
        share: share of that file that is on the disk by then.
    """

    rank: int
    step: int
    file: str | None = None
    share: float = 0.5


class NanLoss(NamedTuple):
    """A loss of NaN in one step of a process."""

    rank: int
    step: int


class FullDisk(NamedTuple):
    """A limit of `room` bytes for every file that a process writes, from the middle of a step on."""

    rank: int
    step: int
    room: int


Fault = Kill | NanLoss | FullDisk


class Ended(NamedTuple):
    """End of a group: exit codes by rank, -9 of a killed process; and the output of all processes."""

    codes: list[int]
    output: str


class Server:
    """Forks groups of processes.

    Args:
        folder: for the logs of the processes.
    """

    def __init__(self, folder: Path):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(_PRELOADED)
        self.folder, self.groups = folder, 0

    def run(self, *arguments, ranks: int = 2, fault: Fault | None = None, watch: Path | None = None) -> Ended:
        """Runs `evotok.training.train` with these arguments on a group of processes.

        Args:
            fault: of one of them.
            watch: folder for the batches of every rank and step, see `watched`.
        """
        return self.call(_train, [str(word) for word in arguments], fault, watch, ranks=ranks)

    def call(self, function: Callable, *arguments, ranks: int = 2) -> Ended:
        """Calls a function of a module with these arguments on a group of processes."""
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
    """Waits until all have ended; after a failure or a timeout the others are killed if they do not end, too."""
    running, left = list(group), _TIMEOUT
    while running and wait([process.sentinel for process in running], timeout=left):
        running = [process for process in running if process.is_alive()]
        if any(process.exitcode for process in group if not process.is_alive()):
            left = _GRACE
    for process in running:
        process.kill()


def watched(folder: Path) -> list[list[dict[str, torch.Tensor]]]:
    """Returns the batches of `Server.run` by step and rank, pixels before and codes after the image tokenizer."""
    steps = sorted({int(path.stem.split("-")[0]) for path in folder.iterdir()})
    ranks = sorted({int(path.stem.split("-")[1]) for path in folder.iterdir()})
    return [[torch.load(folder / f"{step}-{rank}.pt", weights_only=True) for rank in ranks] for step in steps]


def _redirect_output(log: Path) -> None:
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    for terminal in (1, 2):
        os.dup2(handle, terminal)


def _enter(function: Callable, arguments: tuple, rank: int, ranks: int, port: int, log: Path) -> None:
    gc.freeze()  # imported modules: collecting garbage among them takes a second of every start
    _redirect_output(log)
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
    sys.exit(function(*arguments))


def _train(words: list[str], fault: Fault | None, watch: Path | None) -> int:
    from evotok.training.train import main

    rank = int(os.environ.get("RANK", "0"))
    if fault is not None and fault.rank == rank:
        _inject(fault)
    if watch is not None:
        _save_batches(watch, rank)
    return main(words)


def _inject(fault: Fault) -> None:
    if isinstance(fault, NanLoss):
        _spoil_a_loss(fault)
    elif isinstance(fault, FullDisk):
        _in_the_middle_of(fault.step, lambda: _limit_files(fault.room))
    elif fault.file is None:
        _in_the_middle_of(fault.step, lambda: os.kill(os.getpid(), signal.SIGKILL))
    else:
        _die_while_writing(fault)


def _spoil_a_loss(fault: NanLoss) -> None:
    from evotok.training.multimodal.trainer import MultimodalTrainer

    compute = MultimodalTrainer.compute_loss

    def spoiled(self, *args, **kwargs):
        loss = compute(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == fault.step - 1 else loss

    MultimodalTrainer.compute_loss = spoiled


def _in_the_middle_of(step: int, act: Callable[[], None]) -> None:
    from transformers import Trainer

    train = Trainer.training_step

    def acting(self, *args, **kwargs):
        loss = train(self, *args, **kwargs)
        if self.state.global_step == step - 1:
            act()
        return loss

    Trainer.training_step = acting


def _limit_files(room: int) -> None:
    """Makes larger writes fail with EFBIG, as with ENOSPC on a full disk; Python ignores the signal before it."""
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
    # All other files of a checkpoint are written by one of these.
    torch.save = dying(torch.save, 1)
    safetensors.torch.serialize_file = dying(safetensors.torch.serialize_file, 1)
    TrainerState.save_to_json = dying(TrainerState.save_to_json, 1)


def _save_batches(folder: Path, rank: int) -> None:
    from evotok.training.multimodal.trainer import MultimodalTrainer

    folder.mkdir(parents=True, exist_ok=True)
    prepare = MultimodalTrainer._prepare_inputs

    def watching(self, inputs):
        pixels = {name: value.clone() for name, value in inputs.items() if "pixel_values" in name}
        inputs = prepare(self, inputs)
        codes = {name: value for name, value in inputs.items() if "codes" in name}
        torch.save(pixels | codes, folder / f"{self.state.global_step}-{rank}.pt")
        return inputs

    MultimodalTrainer._prepare_inputs = watching
