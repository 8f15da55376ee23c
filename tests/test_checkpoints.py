"""Training checkpoints: which one a run resumes from, which are kept, and the order of writes."""

import os
import shutil
from pathlib import Path

import pytest
from test_manifest import spoil
from test_streaming import torchrun
from test_training import losses, recipes  # noqa: F401 - a fixture

from evotok.training.resuming.checkpoints import (
    find_resumable_checkpoint,
    last_complete_checkpoint,
    rotate_checkpoints,
)
from evotok.training.resuming.manifest import MANIFEST, begin_manifest, finish_manifest, hash_files
from evotok.training.train import main


def make_checkpoint(folder, step):
    """Writes a finished checkpoint of small files."""
    checkpoint = folder / f"checkpoint-{step}"
    begin_manifest(checkpoint)
    for name in ("trainer_state.json", "rng_state.pth"):
        (checkpoint / name).write_text("{}")
    finish_manifest(checkpoint, hash_files(checkpoint))
    return checkpoint


def steps(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def trained(recipes, tmp_path_factory):  # noqa: F811
    """Returns the arguments of a run and its folder, with checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("trained")
    words = [str(recipes / "tokenizer.yaml"), "training.save_steps=2"]
    assert main([*words, f"training.output_dir={folder}"]) == 0
    return words, folder


def test_run_resumes_from_the_checkpoint_before_a_damaged_one(trained, tmp_path, caplog):
    words, folder = trained
    files = {path.name for path in (folder / "checkpoint-4").iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "model.safetensors", "discriminator_optimizer.pt", "recipe.yaml"} <= files
    for step in (2, 4):
        shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    spoil(tmp_path / "checkpoint-4" / "optimizer.pt", "removed")
    assert main([*words, f"training.output_dir={tmp_path}"]) == 0
    assert f"{tmp_path / 'checkpoint-4'}: optimizer.pt is missing: skipped" in caplog.text
    assert losses(tmp_path) == losses(folder)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_run_stops_where_all_checkpoints_are_damaged(trained, tmp_path, capsys):
    words, folder = trained
    shutil.copytree(folder / "checkpoint-4", tmp_path / "checkpoint-4")
    spoil(tmp_path / "checkpoint-4" / "model.safetensors", "flipped")
    assert main([*words, f"training.output_dir={tmp_path}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "all checkpoints to resume from are damaged (checkpoint-4: model.safetensors is damaged)" in line
    assert "--restart" in line and not (tmp_path / "model.safetensors").exists()


def test_unfinished_checkpoints_are_skipped(tmp_path):
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    begin_manifest(tmp_path / "checkpoint-9")
    assert find_resumable_checkpoint(tmp_path) is None, "a run that was killed before its first save starts again"
    complete = make_checkpoint(tmp_path, 5)
    begin_manifest(tmp_path / "checkpoint-7")
    assert find_resumable_checkpoint(tmp_path) == last_complete_checkpoint(tmp_path) == str(complete)


def test_rotation_orders_by_step_and_ignores_dates(tmp_path):
    for step in (8, 10, 12):
        make_checkpoint(tmp_path, step)
        os.utime(tmp_path / f"checkpoint-{step}", (10**9 - step, 10**9 - step))  # the newest has the oldest date
    rotate_checkpoints(tmp_path, 12, limit=2)
    assert steps(tmp_path) == [10, 12]
    rotate_checkpoints(tmp_path, 12, limit=1, best=str(tmp_path / "checkpoint-10"))
    assert steps(tmp_path) == [10, 12]
    rotate_checkpoints(tmp_path, 12, limit=None)
    rotate_checkpoints(tmp_path, 12, limit=1)
    assert steps(tmp_path) == [12]


def test_rotation_ignores_later_damaged_checkpoints(tmp_path):
    for step in (2, 4, 90):
        make_checkpoint(tmp_path, step)
    spoil(tmp_path / "checkpoint-90" / "trainer_state.json", "cut")
    rotate_checkpoints(tmp_path, 4, limit=1)
    assert steps(tmp_path) == [4, 90]


class Recorder:
    """Recorder of the order in which files below a folder are synced, renamed and removed."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.calls = folder, []
        fsync = os.fsync

        def recorded_fsync(handle):
            self.record("sync", os.readlink(f"/proc/self/fd/{handle}"))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        for module, name in ((os, "replace"), (os, "rename"), (shutil, "rmtree")):
            monkeypatch.setattr(module, name, self.recorded(name, getattr(module, name)))

    def recorded(self, name, act):
        def recorded_act(path, *args, **kwargs):
            self.record(name, path)
            return act(path, *args, **kwargs)

        return recorded_act

    def record(self, name, path):
        if str(path).startswith(str(self.folder)):
            self.calls.append((name, Path(path).relative_to(self.folder).as_posix()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="paths of open files are read from /proc")
def test_files_are_synced_before_the_manifest_and_before_rotation(recipes, tmp_path, monkeypatch):  # noqa: F811
    """A power cut at any moment leaves a complete checkpoint."""
    recorder = Recorder(monkeypatch, tmp_path)
    words = ["training.save_steps=2", "training.max_steps=4", "training.save_total_limit=1"]
    assert main([str(recipes / "tokenizer.yaml"), *words, f"training.output_dir={tmp_path}"]) == 0
    monkeypatch.undo()
    assert steps(tmp_path) == [4]
    part = f"checkpoint-4/.{MANIFEST}.{os.getpid()}.part"
    _, finished = (
        index for index, call in enumerate(recorder.calls) if call == ("replace", part)
    )  # the first is begun
    before, after = recorder.calls[:finished], recorder.calls[finished + 1 :]
    for path in (tmp_path / "checkpoint-4").iterdir():
        if path.name != MANIFEST:
            assert ("sync", f"checkpoint-4/{path.name}") in before, path.name
    assert before[-3:] == [("sync", "checkpoint-4"), ("sync", "."), ("sync", part)]
    assert after[:3] == [("sync", "checkpoint-4"), ("rename", "checkpoint-2"), ("rmtree", ".removed-checkpoint-2")]
    assert ("sync", "model.safetensors") in after[3:], "the finished model reaches the disk as well"


def test_restart_moves_checkpoints_aside(recipes, tmp_path):  # noqa: F811
    words = [str(recipes / "tokenizer.yaml"), f"training.output_dir={tmp_path}", "training.save_steps=1"]
    assert main([*words, "training.max_steps=2"]) == 0
    assert main([*words, "training.max_steps=1", "--restart"]) == 0
    assert steps(tmp_path) == [1] and len(losses(tmp_path)) == 1
    assert {path.name for path in (tmp_path / "earlier-1").iterdir()} == {"checkpoint-1", "checkpoint-2"}


# Two nodes, each with a disk of its own.
NODES = """
import os, sys
from evotok.training.train import main
os.chdir(sys.argv[1] + os.environ["RANK"])
sys.exit(main(sys.argv[2:]))
"""


def test_processes_with_different_checkpoints_stop(recipes, tmp_path):  # noqa: F811
    """Two nodes have no common storage, and only the first has saved."""
    for rank in (0, 1):
        (tmp_path / f"node{rank}").mkdir()
    make_checkpoint(tmp_path / "node0/run", 2)
    script = tmp_path / "nodes.py"
    script.write_text(NODES)
    ended = torchrun(script, tmp_path / "node", recipes / "sft.yaml", "training.output_dir=run")
    assert ended.returncode != 0
    message = "the processes find different checkpoints to resume from: run/checkpoint-2 on rank 0; none on rank 1."
    assert ended.stderr.count(f"evotok train: run: {message} Put training.output_dir on storage") == 2
