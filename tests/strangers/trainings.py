"""Runs that go on from checkpoints that somebody has damaged, or by a recipe that somebody has changed."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from strangers.case import Case, Group, Place, run_command


RUN = "evotok train: run: no checkpoint to go on from is whole (checkpoint-2: {}): put the files back, or begin anew with --restart, which moves them aside."
CHANGED = "evotok train: run/checkpoint-2: was trained by another recipe ({}), and does not go with this one: give the value of before, another training.output_dir, or --restart."


def train(place: Place, words: list[str]) -> str:
    """`evotok train` in a folder that has a checkpoint of two steps already."""
    return run_command(place, ["train", "recipe.yaml", *words])


def run(given: str, gets: str, spoil: Callable[[Path], object] | None, *words: str) -> Case:
    """A checkpoint that is spoiled, or gone on from by other words."""

    def make(place: Place) -> list[str]:
        shutil.copytree(place.materials.trained, place.path, dirs_exist_ok=True)
        if spoil is not None:
            spoil(place.path / "run" / "checkpoint-2")
        return list(words)

    return Case(given, gets, make)


def flip(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def zeroed(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: torch.zeros_like(w) for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def other_step(folder: Path) -> None:
    state = json.loads((folder / "trainer_state.json").read_text())
    text = (folder / "trainer_state.json").read_text()
    (folder / "trainer_state.json").write_text(
        text.replace(f'"global_step": {state["global_step"]}', '"global_step": 9')
    )


def other_data(state: object) -> Callable[[Path], None]:
    return lambda folder: torch.save(state, folder / "data_state_0.pt")


def zeros(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(bytes((folder / name).stat().st_size))


def goes_on(given: str, gets: str, spoil: Callable[[Path], object] | None, *words: str) -> Case:
    """A run that goes on for a third step, by words that say more."""
    case = run(given, gets, spoil, "training.max_steps=3", "training.save_steps=1", *words)
    return replace(case, good=reached_the_third_step, removes="run/")


def reached_the_third_step(said: str) -> None:
    assert "run: step 3, mean loss" in said
    state = json.loads(Path("run/checkpoint-3/trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3]


def ahead(folder: Path) -> None:
    """A clock that was set back an hour after this was written."""
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (path.stat().st_mtime + 3600,) * 2)


def held(place: Place) -> list[str]:
    """The lock of another run, which lasts as long as the place."""
    shutil.copytree(place.materials.trained, place.path, dirs_exist_ok=True)
    place.lock = (place.path / "run" / ".lock").open("w")
    fcntl.flock(place.lock, fcntl.LOCK_EX)
    return []


CASES = [
    run("optimizer that is missing", RUN.format("optimizer.pt is missing"), remove("optimizer.pt")),
    run("schedule that is missing", RUN.format("scheduler.pt is missing"), remove("scheduler.pt")),
    run("weights with one bit flipped", RUN.format("model.safetensors is damaged"), flip("model.safetensors")),
    run("weights of zeros", RUN.format("model.safetensors …"), zeroed),
    run(
        "optimizer of zeros, as a power cut may leave it", RUN.format("optimizer.pt is damaged"), zeros("optimizer.pt")
    ),
    run("optimizer with one bit flipped", RUN.format("optimizer.pt is damaged"), flip("optimizer.pt")),
    run(
        "optimizer that is cut",
        RUN.format("optimizer.pt has 100 bytes of …"),
        lambda folder: (folder / "optimizer.pt").write_bytes((folder / "optimizer.pt").read_bytes()[:100]),
    ),
    run(
        "generators that are empty",
        RUN.format("rng_state.pth has 0 bytes of …"),
        lambda folder: (folder / "rng_state.pth").write_bytes(b""),
    ),
    run("another step", RUN.format("trainer_state.json …"), other_step),
    run("place in the data that is empty", RUN.format("data_state_0.pt has …"), other_data({})),
    run("place in the data that is a list", RUN.format("data_state_0.pt has …"), other_data([1])),
    run("no manifest", RUN.format("no manifest.json, by which it could be checked"), remove("manifest.json")),
    run(
        "manifest nested very deeply",
        RUN.format("manifest.json is damaged"),
        lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
    ),
    run(
        "manifest that asks for files outside",
        RUN.format("manifest.json is damaged"),
        lambda folder: (folder / "manifest.json").write_text(
            json.dumps({"format": 1, "step": 2, "finished": True, "files": {"../../../outside/canary.png": [1, "a"]}})
        ),
    ),
    run(
        "checkpoint of another step than its name",
        "evotok train: run: no checkpoint to go on from is whole (checkpoint-9: of step 2, by its manifest.json): put the files back, or begin anew with --restart, which moves them aside.",
        lambda folder: folder.rename(folder.with_name("checkpoint-9")),
    ),
    run(
        "other codebooks", CHANGED.format("model.config.codebook_size: 32 -> 64"), None, "model.config.codebook_size=64"
    ),
    run("another seed", CHANGED.format("training.seed: 0 -> 1"), None, "training.seed=1"),
    run("another optimizer", CHANGED.format("optimizer.name: 'trainer' -> 'muon'"), None, "optimizer.name=muon"),
    run(
        "an engine that the checkpoint is not of",
        "evotok train: run/checkpoint-2: written under DeepSpeed without ZeRO-3, but this run is under no engine: give the training.deepspeed of before, another training.output_dir, or --restart.",
        lambda folder: (folder / "latest").write_text("global_step2"),
    ),
    goes_on(
        "another learning rate and decay",
        "they count from the checkpoint on, and are named",
        None,
        "training.learning_rate=0.5",
        "training.weight_decay=0.25",
    ),
    goes_on(
        "checkpoint that is newer by its dates than all that follow",
        "the last step is kept, not the last date",
        ahead,
        "training.save_total_limit=1",
    ),
    Case(
        "folder that another run trains into",
        "evotok train: run: another run is training into this folder: wait until it ends, or give another training.output_dir.",
        held,
    ),
]

GROUPS = [Group("Trainings that go on", "`evotok train`", train, CASES, refusal="exit 2")]
