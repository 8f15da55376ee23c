"""Changes of a recipe between a checkpoint and the run that resumes from it."""

import json
import re
import shutil

import pytest
import torch
import yaml
from test_checkpoints import trained  # noqa: F401 - a fixture
from test_training import recipes  # noqa: F401 - a fixture

from evotok.training.recipes import read_recipe
from evotok.training.resuming.recipe_changes import RECIPE, compare_recipe, write_recipe
from evotok.training.train import main


def recipe_of(words, *more):
    return read_recipe(words[0], [*words[1:], *more])


@pytest.mark.parametrize(
    "word",
    [
        "model.config.codebook_size=64",
        "model.config={codebook_dim: 4}",
        "loss.discriminator_channels=16",
        "optimizer.name=trainer",
        "training.lr_scheduler_type=cosine",
    ],
)
def test_compare_recipe_refuses_changes_of_the_tensors(trained, word):  # noqa: F811
    words, folder = trained
    with pytest.raises(ValueError, match=re.escape(word.partition("=")[0])) as refused:
        compare_recipe(recipe_of(words, word), folder / "checkpoint-4")
    assert "--restart" in str(refused.value) and "\n" not in str(refused.value)


def test_compare_recipe_returns_applied_changes(trained):  # noqa: F811
    words, folder = trained
    more = ["training.learning_rate=2e-4", "training.weight_decay=0.5", "optimizer.matrix_learning_rate=0.5"]
    changed = compare_recipe(recipe_of(words, *more, "training.output_dir=elsewhere"), folder / "checkpoint-4")
    assert changed == [
        "optimizer.matrix_learning_rate: 0.02 -> 0.5",
        "training.learning_rate: 0.001 -> 0.0002",
        "training.weight_decay: 0.0 -> 0.5",
    ]
    assert compare_recipe(recipe_of(words, "training.weight_decay=0.0"), folder / "checkpoint-4") == []


def test_recipe_of_a_checkpoint_equals_the_recipe_of_the_run(trained):  # noqa: F811
    words, folder = trained
    expected = recipe_of(words, f"training.output_dir={folder}")
    assert read_recipe(folder / "checkpoint-4" / RECIPE) == expected


def test_compare_recipe_ignores_fields_of_a_newer_version(trained, tmp_path):  # noqa: F811
    words, _ = trained
    recipe = recipe_of(words)
    write_recipe(recipe, tmp_path)
    tree = yaml.safe_load((tmp_path / RECIPE).read_text())
    del tree["loss"]["teacher_share"], tree["preference"]
    (tmp_path / RECIPE).write_text(yaml.safe_dump(tree))
    assert compare_recipe(recipe, tmp_path) == []


def settings(checkpoint):
    """Returns learning rate, peak and decay of every group in a checkpoint, and those of the schedule."""
    groups = torch.load(checkpoint / "optimizer.pt", weights_only=True)["param_groups"]
    schedule = torch.load(checkpoint / "scheduler.pt", weights_only=True)
    return [(g["lr"], g["initial_lr"], g["weight_decay"]) for g in groups], schedule["base_lrs"], schedule["_last_lr"]


def test_resumed_run_applies_changed_rates_and_decays(trained, tmp_path, caplog):  # noqa: F811
    """The settings equal those of a run that had them from the start; moments and counts are the checkpoint's."""
    words, folder = trained
    more = ["training.learning_rate=2e-4", "training.weight_decay=0.5", "optimizer.matrix_learning_rate=0.5"]
    more += ["loss.discriminator_learning_rate=3e-3", "training.max_steps=6"]
    shutil.copytree(folder / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    assert main([*words, *more, f"training.output_dir={tmp_path / 'run'}"]) == 0
    assert "has changed since: loss.discriminator_learning_rate: 0.0001 -> 0.003; " in caplog.text
    assert main([*words, *more, f"training.output_dir={tmp_path / 'fresh'}"]) == 0
    found, expected = (settings(tmp_path / name / "checkpoint-6") for name in ("run", "fresh"))
    assert found == expected != settings(folder / "checkpoint-6")
    assert {peak for _, peak, _ in found[0]} == {2e-4, 0.5} and 0.5 in {decay for *_, decay in found[0]}
    state, fresh = (
        json.loads((tmp_path / name / "checkpoint-6" / "trainer_state.json").read_text()) for name in ("run", "fresh")
    )
    assert state["log_history"][4]["learning_rate"] == fresh["log_history"][4]["learning_rate"], "the very next step"
    schedules = [
        torch.load(tmp_path / name / "checkpoint-6" / "discriminator_optimizer.pt", weights_only=True)["scheduler"]
        for name in ("run", "fresh")
    ]
    assert schedules[0] == schedules[1] and schedules[0]["base_lrs"] == [3e-3]
