"""Which checkpoint is resumed and which ones are kept: in real runs of a tiny stage, and on folders made by hand."""

import os
import shutil
from pathlib import Path

import pytest
from test_manifest import spoil
from test_streaming import torchrun
from test_training import losses, recipes  # noqa: F401 - a fixture

from evotok.training.checkpoints import agreed_checkpoint, last_complete_checkpoint, rotate_checkpoints
from evotok.training.manifest import MANIFEST, begin_manifest, finish_manifest, hash_share
from evotok.training.train import main


def make_checkpoint(folder, step):
    """A finished checkpoint of small files."""
    checkpoint = folder / f"checkpoint-{step}"
    begin_manifest(checkpoint)
    for name in ("trainer_state.json", "rng_state.pth"):
        (checkpoint / name).write_text("{}")
    finish_manifest(checkpoint, hash_share(checkpoint))
    return checkpoint


def steps(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def trained(recipes, tmp_path_factory):  # noqa: F811
    """The words of a run, and the folder that it left, with checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("trained")
    words = [str(recipes / "tokenizer.yaml"), "training.save_steps=2"]
    assert main([*words, f"training.output_dir={folder}"]) == 0
    return words, folder


def test_a_torn_checkpoint_is_passed_over_whatever_is_torn(trained, tmp_path):
    """Each file of it cut, emptied, flipped or removed."""
    _, folder = trained
    shutil.copytree(folder / "checkpoint-2", tmp_path / "checkpoint-2")
    names = [path.relative_to(folder / "checkpoint-4") for path in (folder / "checkpoint-4").rglob("*")]
    assert {"optimizer.pt", "scheduler.pt", "model.safetensors", "discriminator_optimizer.pt", "recipe.yaml"} <= set(
        map(str, names)
    )
    for name in names:
        for how in ("cut", "emptied", "flipped", "removed"):
            shutil.copytree(folder / "checkpoint-4", tmp_path / "checkpoint-4")
            spoil(tmp_path / "checkpoint-4" / name, how)
            assert agreed_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2"), (name, how)
            shutil.rmtree(tmp_path / "checkpoint-4")


def test_from_a_torn_checkpoint_a_run_ends_like_the_whole(trained, tmp_path, caplog):
    words, folder = trained
    for step in (2, 4):
        shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    spoil(tmp_path / "checkpoint-4" / "optimizer.pt", "removed")
    assert main([*words, f"training.output_dir={tmp_path}"]) == 0
    assert f"{tmp_path / 'checkpoint-4'}: optimizer.pt is missing: passed over" in caplog.text
    assert losses(tmp_path) == losses(folder)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_without_a_whole_checkpoint_a_run_does_not_begin_anew_unasked(trained, tmp_path, capsys):
    words, folder = trained
    shutil.copytree(folder / "checkpoint-4", tmp_path / "checkpoint-4")
    spoil(tmp_path / "checkpoint-4" / "model.safetensors", "flipped")
    assert main([*words, f"training.output_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "no checkpoint to go on from is whole (checkpoint-4: model.safetensors is damaged)" in said
    assert "--restart" in said and not (tmp_path / "model.safetensors").exists()
    (tmp_path / "checkpoint-4" / MANIFEST).unlink()
    assert main([*words, f"training.output_dir={tmp_path}"]) == 2
    assert "no manifest.json" in capsys.readouterr().err


def test_one_that_was_not_written_to_its_end_is_passed_over(tmp_path):
    begin_manifest(tmp_path / "checkpoint-9")
    assert agreed_checkpoint(tmp_path) is None, "a run that was killed before its first save begins anew"
    whole = make_checkpoint(tmp_path, 5)
    begin_manifest(tmp_path / "checkpoint-7")
    assert agreed_checkpoint(tmp_path) == last_complete_checkpoint(tmp_path) == str(whole)


def test_rotation_goes_by_steps_whatever_the_clock_says(tmp_path):
    for step in (8, 10, 12):
        make_checkpoint(tmp_path, step)
        os.utime(tmp_path / f"checkpoint-{step}", (10**9 - step, 10**9 - step))  # the newest is the oldest by its date
    rotate_checkpoints(tmp_path, 12, limit=2)
    assert steps(tmp_path) == [10, 12]
    rotate_checkpoints(tmp_path, 12, limit=1, best=str(tmp_path / "checkpoint-10"))
    assert steps(tmp_path) == [10, 12]
    rotate_checkpoints(tmp_path, 12, limit=None)
    rotate_checkpoints(tmp_path, 12, limit=1)
    assert steps(tmp_path) == [12]


def test_a_damaged_later_checkpoint_does_not_push_out_the_new_one(tmp_path):
    for step in (2, 4, 90):
        make_checkpoint(tmp_path, step)
    spoil(tmp_path / "checkpoint-90" / "trainer_state.json", "cut")
    rotate_checkpoints(tmp_path, 4, limit=1)
    assert steps(tmp_path) == [4, 90]


class Recorder:
    """The order in which files and folders below one are synced, renamed and removed."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.calls = folder, []
        fsync = os.fsync

        def syncing(handle):
            self.note("sync", os.readlink(f"/proc/self/fd/{handle}"))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", syncing)
        for module, name in ((os, "replace"), (os, "rename"), (shutil, "rmtree")):
            monkeypatch.setattr(module, name, self.noting(name, getattr(module, name)))

    def noting(self, name, act):
        def acting(path, *args, **kwargs):
            self.note(name, path)
            return act(path, *args, **kwargs)

        return acting

    def note(self, name, path):
        if str(path).startswith(str(self.folder)):
            self.calls.append((name, Path(path).relative_to(self.folder).as_posix()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="paths of open files are read from /proc")
def test_a_power_cut_at_any_moment_leaves_a_whole_checkpoint(recipes, tmp_path, monkeypatch):  # noqa: F811
    """Files are on the disk before the manifest has its name, and that is before the older checkpoint goes."""
    recorder = Recorder(monkeypatch, tmp_path)
    words = ["training.save_steps=2", "training.max_steps=4", "training.save_total_limit=1"]
    assert main([str(recipes / "tokenizer.yaml"), *words, f"training.output_dir={tmp_path}"]) == 0
    monkeypatch.undo()
    assert steps(tmp_path) == [4]
    part = f"checkpoint-4/.{MANIFEST}.{os.getpid()}.part"
    _, named = (place for place, call in enumerate(recorder.calls) if call == ("replace", part))  # begun, finished
    before, after = recorder.calls[:named], recorder.calls[named + 1 :]
    for path in (tmp_path / "checkpoint-4").iterdir():
        if path.name != MANIFEST:
            assert ("sync", f"checkpoint-4/{path.name}") in before, path.name
    assert before[-3:] == [("sync", "checkpoint-4"), ("sync", "."), ("sync", part)]
    assert after[:3] == [("sync", "checkpoint-4"), ("rename", "checkpoint-2"), ("rmtree", ".removed-checkpoint-2")]
    assert ("sync", "model.safetensors") in after[3:], "the finished model reaches the disk as well"


def test_a_run_begun_anew_does_not_go_on_from_the_one_before(recipes, tmp_path):  # noqa: F811
    words = [str(recipes / "tokenizer.yaml"), f"training.output_dir={tmp_path}", "training.save_steps=1"]
    assert main([*words, "training.max_steps=2"]) == 0
    assert main([*words, "training.max_steps=1", "--restart"]) == 0
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1"}
    assert {path.name for path in (tmp_path / "earlier-1").iterdir()} == {"checkpoint-1", "checkpoint-2"}
    assert len(losses(tmp_path)) == 1


# A node each, with a disk of its own.
NODES = """
import os, sys
from evotok.training.train import main
os.chdir(sys.argv[1] + os.environ["RANK"])
sys.exit(main(sys.argv[2:]))
"""


def test_processes_that_find_different_checkpoints_do_not_begin(recipes, tmp_path):  # noqa: F811
    """As on two nodes without common storage: the first has saved what the second has never seen."""
    for rank in (0, 1):
        (tmp_path / f"node{rank}").mkdir()
    make_checkpoint(tmp_path / "node0/run", 2)
    script = tmp_path / "nodes.py"
    script.write_text(NODES)
    ended = torchrun(script, tmp_path / "node", recipes / "sft.yaml", "training.output_dir=run")
    assert ended.returncode != 0
    said = (
        "evotok train: run: the processes find different checkpoints to go on from: run/checkpoint-2 on rank 0; none on"
    )
    assert ended.stderr.count(f"{said} rank 1. Put training.output_dir on storage that all nodes share") == 2
