"""Files that are whole or not there, whoever else writes them."""

import os

import pytest
import torch
from safetensors.torch import load_file

from evotok.eval import files
from evotok.eval.files import whole_file
from evotok.training import taught_images


def test_two_processes_may_write_one_file(tmp_path, monkeypatch):
    path = tmp_path / "new/file.txt"
    with whole_file(path) as first:
        first.write_text("half")
        monkeypatch.setattr(files.os, "getpid", lambda: 7)
        with whole_file(path) as second:
            second.write_text("of the second")
        monkeypatch.undo()
        assert path.read_text() == "of the second"
        first.write_text("of the first")
    assert path.read_text() == "of the first" and list(path.parent.iterdir()) == [path]


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "file.txt") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_features_of_a_teacher_are_written_so(tmp_path, monkeypatch):
    class Teacher:
        mean = torch.zeros(1)

        def state_dict(self):
            return {"mean": self.mean}

        def __call__(self, pixels):
            return pixels.mean((1, 2, 3)).view(-1, 1, 1)

    written, save = [], taught_images.save_file
    monkeypatch.setattr(taught_images, "save_file", lambda content, path: written.append(path) or save(content, path))
    pixels = torch.full((3, 3, 8, 8), 255, dtype=torch.uint8)
    features = taught_images.teacher_features(Teacher(), pixels, tmp_path)
    assert torch.equal(features, torch.ones(3, 1, 1).half()) and f".{os.getpid()}." in written[0].name
    [path] = tmp_path.iterdir()
    assert torch.equal(load_file(path)["features"], features)
    assert torch.equal(taught_images.teacher_features(Teacher(), pixels, tmp_path), features) and len(written) == 1
