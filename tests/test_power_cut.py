"""A power cut at any moment of a training: its disk is an ext4 file system in a file, and what has reached that file by
then is what would be left. Skipped where nothing may be mounted; `test_checkpoints.py` has the order of the calls."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from test_checkpoints import Recorder, steps
from test_training import recipes  # noqa: F401 - a fixture

from evotok.training.checkpoints import agreed_checkpoint
from evotok.training.manifest import find_damage
from evotok.training.train import main


MEGABYTES = 64
# Nothing is written back on its own while a test runs.
OPTIONS = "loop,commit=600"


def call(*words):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)


@contextmanager
def mounted(image, place):
    """A file system in a file, as the folder `place`."""
    place.mkdir(exist_ok=True)
    done = call("mount", "-o", OPTIONS, image, place)
    if done.returncode:
        pytest.skip(f"nothing may be mounted: {done.stderr.strip()}")
    try:
        yield place
    finally:
        assert call("umount", place).returncode == 0


@pytest.fixture
def image(tmp_path):
    """An empty file system in a file."""
    if shutil.which("mkfs.ext4") is None or os.getuid() != 0:
        pytest.skip("needs ext4 and root")
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(MEGABYTES * 2**20)
    assert call("mkfs.ext4", "-q", "-F", path).returncode == 0
    return path


class Cuts(Recorder):
    """Copies of a disk before every call that matters to it."""

    def __init__(self, monkeypatch, folder, image):
        super().__init__(monkeypatch, folder)
        self.image, self.copies = image, []

    def note(self, name, path):
        before = len(self.calls)
        super().note(name, path)
        if len(self.calls) > before:
            self.cut()

    def cut(self):
        """What would be left after a power cut at this moment."""
        copy = self.image.with_name(f"cut-{len(self.copies)}.img")
        assert call("cp", "--sparse=always", self.image, copy).returncode == 0
        self.copies.append(copy)


def train(recipes, folder, image, monkeypatch):  # noqa: F811
    """Four steps with two checkpoints, of which the newest is kept: the disk at all moments, and at the end."""
    cuts = Cuts(monkeypatch, folder, image)
    words = ["training.save_steps=2", "training.max_steps=4", "training.save_total_limit=1"]
    assert main([str(recipes / "tokenizer.yaml"), *words, f"training.output_dir={folder / 'run'}"]) == 0
    cuts.cut()
    monkeypatch.undo()
    return cuts


def test_a_power_cut_at_any_moment_leaves_a_whole_checkpoint(recipes, image, tmp_path, monkeypatch):  # noqa: F811
    with mounted(image, tmp_path / "disk") as disk:
        cuts = train(recipes, disk, image, monkeypatch)
        model = (disk / "run" / "model.safetensors").read_bytes()
    assert len(cuts.copies) > 30
    found = []
    for copy in cuts.copies:
        with mounted(copy, tmp_path / "after") as after:
            start = agreed_checkpoint(after / "run") if (after / "run").is_dir() else None  # raises for damaged ones
            found.append(0 if start is None else int(start.rpartition("-")[2]))
            if copy == cuts.copies[-1]:
                assert steps(after / "run") == [4] and (after / "run" / "model.safetensors").read_bytes() == model
        copy.unlink()
    assert found == sorted(found) and set(found) == {0, 2, 4}, "what was whole once stays so"


def test_without_syncing_nothing_is_left(recipes, image, tmp_path, monkeypatch):  # noqa: F811
    """Or the test above would prove nothing."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    with mounted(image, tmp_path / "disk") as disk:
        cuts = train(recipes, disk, image, monkeypatch)
        assert steps(disk / "run") == [4]
    with mounted(cuts.copies[-1], tmp_path / "after") as after:
        assert all(find_damage(folder) for folder in (after / "run").glob("checkpoint-*"))
