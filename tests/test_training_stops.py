"""Trainings that stop early: values that are not finite, and a full disk."""

import contextlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from test_training import losses, recipes  # noqa: F401 - a fixture
from transformers import Trainer

from evotok.training import trainer as trainer_module
from evotok.training.resuming.checkpoints import atomic_directory, last_complete_checkpoint, translate_disk_errors
from evotok.training.train import main


def before_step(monkeypatch, step, act):
    """Calls `act(model)` before the forward pass of a step."""
    take = Trainer.training_step

    def patched(self, model, *args, **kwargs):
        if self.state.global_step == step - 1:
            act(self.accelerator.unwrap_model(model))
        return take(self, model, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", patched)


def error_line(capsys):
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("evotok train: ") and len(line) < 500
    return line


@pytest.mark.parametrize(
    ("stage", "weight", "terms"),
    [
        ("tokenizer", "pixel_decoder.conv_out.bias", "adversarial, discriminator, reconstruction"),
        ("gen", "depth_decoder.classifiers.0.norm.weight", "image_loss, image_loss_level1"),
    ],
)
def test_training_stops_at_non_finite_loss(recipes, tmp_path, monkeypatch, capsys, stage, weight, terms):  # noqa: F811
    """It is detected when the next checkpoint is due, and the message names its first step."""
    before_step(monkeypatch, 5, lambda model: model.get_parameter(weight).data.fill_(float("nan")))
    words = [str(recipes / f"{stage}.yaml"), f"training.output_dir={tmp_path}", "training.logging_steps=100"]
    assert main(words) == 2
    line = error_line(capsys)
    assert f"step 5: {terms}: not finite" in line and f"kept: {tmp_path / 'checkpoint-3'}" in line
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "model.safetensors").exists()


def test_training_stops_at_non_finite_gradient(recipes, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The loss of that step is still finite."""

    def spoil(model):
        model.pixel_decoder.conv_out.weight.register_hook(lambda gradient: gradient / 0)

    before_step(monkeypatch, 3, spoil)
    assert main([str(recipes / "tokenizer.yaml"), f"training.output_dir={tmp_path}"]) == 2
    line = error_line(capsys)
    assert "step 3: the gradient: not finite" in line and "kept: none, there was no checkpoint yet" in line
    assert not list(tmp_path.glob("checkpoint-*"))


def test_finite_check_runs_at_logging_and_saving_only(recipes, tmp_path, monkeypatch):  # noqa: F811
    """No step synchronizes with the device because of it."""
    calls = []
    check, isnan = trainer_module.EvoTokTrainer._check_finite, torch.isnan
    monkeypatch.setattr(
        trainer_module.EvoTokTrainer,
        "_check_finite",
        lambda self, norm: calls.append(self.state.global_step) or check(self, norm),
    )
    monkeypatch.setattr(torch, "isnan", lambda *args: calls.append("isnan") or isnan(*args))
    words = [f"training.output_dir={tmp_path}", "training.logging_steps=2", "training.save_steps=4"]
    assert main([str(recipes / "tokenizer.yaml"), *words]) == 0
    assert calls == [2, 4, 6, 6]  # the last at the end of the epoch


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_full_disk_keeps_the_last_checkpoint(recipes, tmp_path, monkeypatch, capsys, file):  # noqa: F811
    """PyTorch raises the error of the system; safetensors, which writes a part file, has a message of its own."""
    words = [str(recipes / "tokenizer.yaml"), f"training.output_dir={tmp_path}"]
    serialize = safetensors.torch.serialize_file

    @contextlib.contextmanager
    def on_a_full_disk(folder):
        if folder.name == "checkpoint-6":
            folder.mkdir()
            (folder / file).symlink_to("/dev/full")
        with atomic_directory(folder):
            yield

    def serialize_to_full_disk(tensors, path, *args, **kwargs):
        if Path(path).is_symlink():
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        serialize(tensors, path, *args, **kwargs)

    monkeypatch.setattr(safetensors.torch, "serialize_file", serialize_to_full_disk)
    monkeypatch.setattr(trainer_module, "atomic_directory", on_a_full_disk)
    assert main(words) == 2
    line = error_line(capsys)
    assert f"{tmp_path / 'checkpoint-6'}: the disk is full" in line and f"kept: {tmp_path / 'checkpoint-3'}" in line
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    monkeypatch.undo()
    assert main(words) == 0 and len(losses(tmp_path)) == 6


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({}, path),
        lambda path: torch.save({}, path, _use_new_zipfile_serialization=False),
        lambda path: safetensors.torch.save_file({}, path),
    ],
)
def test_atomic_directory_reports_a_removed_folder(tmp_path, write):
    folder = tmp_path / "checkpoint-1"
    with pytest.raises(OSError, match="checkpoint-1: removed while .* another .* kept: none"), atomic_directory(folder):
        write(folder / "file")


def test_translate_disk_errors_raises_other_errors_unchanged(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"), translate_disk_errors(tmp_path / "checkpoint-1"):
        raise RuntimeError("out of memory")
