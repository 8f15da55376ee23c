"""What ends a training early, in real runs of tiny stages: numbers that are not finite, and a disk that is full."""

import contextlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from test_training import losses, recipes  # noqa: F401 - a fixture
from transformers import Trainer

from evotok.training import trainer as trainer_module
from evotok.training.resuming.checkpoints import last_complete_checkpoint, room_on_disk, whole_or_none
from evotok.training.train import main


# Stage -> the weight that goes bad, and the terms that show it.
BROKEN = {
    "tokenizer": ("pixel_decoder.conv_out.bias", "adversarial, discriminator, reconstruction"),
    "sft": ("lm_head.weight", "text_loss"),
    "gen": ("depth_decoder.classifiers.0.norm.weight", "image_loss, image_loss_level1"),
}


def break_at(monkeypatch, step, harm):
    """Do harm to the model before the forward pass of this step."""
    take = Trainer.training_step

    def breaking(self, model, *args, **kwargs):
        if self.state.global_step == step - 1:
            harm(self.accelerator.unwrap_model(model))
        return take(self, model, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", breaking)


def message(capsys):
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("evotok train: ") and len(said) < 500
    return said


@pytest.mark.parametrize("stage", BROKEN)
def test_a_loss_that_is_not_finite_ends_any_stage(recipes, tmp_path, monkeypatch, capsys, stage):  # noqa: F811
    """It is noticed when the next checkpoint is due, and yet the step is named that it began at."""
    name, terms = BROKEN[stage]
    break_at(monkeypatch, 5, lambda model: model.get_parameter(name).data.fill_(float("nan")))
    words = [str(recipes / f"{stage}.yaml"), f"training.output_dir={tmp_path}", "training.logging_steps=100"]
    assert main(words) == 2
    said = message(capsys)
    assert f"step 5: {terms}: not finite" in said and f"kept: {tmp_path / 'checkpoint-3'}" in said
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "model.safetensors").exists()


def test_a_gradient_that_is_not_finite_is_not_saved(recipes, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The loss of that step still is."""

    def harm(model):
        model.pixel_decoder.conv_out.weight.register_hook(lambda gradient: gradient / 0)

    break_at(monkeypatch, 3, harm)
    assert main([str(recipes / "tokenizer.yaml"), f"training.output_dir={tmp_path}"]) == 2
    said = message(capsys)
    assert "step 3: the gradient: not finite" in said and "kept: none, there was no checkpoint yet" in said
    assert not list(tmp_path.glob("checkpoint-*"))


def test_looking_for_it_costs_no_step_a_wait(recipes, tmp_path, monkeypatch):  # noqa: F811
    """Nothing is asked of the device between one log and the next."""
    asked = []
    check = trainer_module.EvoTokTrainer._check_finite
    monkeypatch.setattr(
        trainer_module.EvoTokTrainer,
        "_check_finite",
        lambda self, norm: asked.append(self.state.global_step) or check(self, norm),
    )
    finite = torch.isnan
    monkeypatch.setattr(torch, "isnan", lambda *args: asked.append("isnan") or finite(*args))
    words = [f"training.output_dir={tmp_path}", "training.logging_steps=2", "training.save_steps=4"]
    assert main([str(recipes / "tokenizer.yaml"), *words]) == 0
    assert asked == [2, 4, 6, 6]  # the last at the end of the epoch


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "discriminator.safetensors", "rng_state.pth"])
def test_a_full_disk_leaves_the_last_checkpoint(recipes, tmp_path, monkeypatch, capsys, file):  # noqa: F811
    """Every writer of a checkpoint meets the error of the system; but safetensors, which writes aside and renames, only
    what it makes of it."""
    words = [str(recipes / "tokenizer.yaml"), f"training.output_dir={tmp_path}"]
    whole_or_none, serialize = trainer_module.whole_or_none, safetensors.torch.serialize_file

    @contextlib.contextmanager
    def on_a_full_disk(folder):
        if folder.name == "checkpoint-6":
            folder.mkdir()
            (folder / file).symlink_to("/dev/full")
        with whole_or_none(folder):
            yield

    def serializing(tensors, path, *args, **kwargs):
        if Path(path).is_symlink():
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        serialize(tensors, path, *args, **kwargs)

    monkeypatch.setattr(safetensors.torch, "serialize_file", serializing)
    monkeypatch.setattr(trainer_module, "whole_or_none", on_a_full_disk)
    assert main(words) == 2
    said = message(capsys)
    assert f"{tmp_path / 'checkpoint-6'}: the disk is full" in said and f"kept: {tmp_path / 'checkpoint-3'}" in said
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    monkeypatch.undo()
    assert main(words) == 0 and len(losses(tmp_path)) == 6


@pytest.mark.parametrize(
    "write",
    [
        lambda place: torch.save({}, place),
        lambda place: torch.save({}, place, _use_new_zipfile_serialization=False),
        lambda place: safetensors.torch.save_file({}, place),
    ],
)
def test_a_process_whose_checkpoint_another_one_removed_says_so(tmp_path, write):
    """The other one has met a full disk, or whatever it was; this one has not."""
    folder = tmp_path / "checkpoint-1"
    with pytest.raises(OSError, match="checkpoint-1: gone while .* another one .* kept: none"), whole_or_none(folder):
        write(folder / "file")


def test_other_errors_are_let_through(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"), room_on_disk(tmp_path / "checkpoint-1"):
        raise RuntimeError("out of memory")
