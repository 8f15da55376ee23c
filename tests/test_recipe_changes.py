"""What a run that goes on makes of a recipe that has changed: applied to the optimizer, or refused by name."""

import json
import re
import shutil

import pytest
import torch
import yaml
from test_checkpoints import trained  # noqa: F401 - a fixture
from test_training import recipes  # noqa: F401 - a fixture
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from evotok.training.recipes import read_recipe
from evotok.training.resuming.recipe_changes import RECIPE, compare_recipe, keeping_settings, write_recipe
from evotok.training.train import main


def recipe_of(words, *more):
    return read_recipe(words[0], [*words[1:], *more])


@pytest.mark.parametrize(
    "word",
    [
        "model.config.codebook_size=64",
        "model.config={codebook_dim: 4}",
        "model.variant=reversed",
        "loss.discriminator_channels=16",
        "optimizer.name=trainer",
        "training.seed=5",
        "training.lr_scheduler_type=cosine",
    ],
)
def test_what_a_checkpoint_does_not_go_with_is_refused_by_name(trained, word):  # noqa: F811
    words, folder = trained
    with pytest.raises(ValueError, match=re.escape(word.partition("=")[0])) as refused:
        compare_recipe(recipe_of(words, word), folder / "checkpoint-4")
    assert "--restart" in str(refused.value) and "\n" not in str(refused.value)


def test_what_it_goes_with_is_named(trained):  # noqa: F811
    words, folder = trained
    more = ["training.learning_rate=2e-4", "training.weight_decay=0.5", "optimizer.matrix_learning_rate=0.5"]
    changed = compare_recipe(recipe_of(words, *more, "training.output_dir=elsewhere"), folder / "checkpoint-4")
    assert changed == [
        "optimizer.matrix_learning_rate: 0.02 -> 0.5",
        "training.learning_rate: 0.001 -> 0.0002",
        "training.weight_decay: 0.0 -> 0.5",
    ]
    assert compare_recipe(recipe_of(words, "training.weight_decay=0.0"), folder / "checkpoint-4") == []


def test_the_recipe_of_a_checkpoint_is_one_that_can_be_trained_by(trained):  # noqa: F811
    words, folder = trained
    expected = recipe_of(words, f"training.output_dir={folder}")
    assert read_recipe(folder / "checkpoint-4" / RECIPE) == expected


def test_fields_of_a_newer_version_are_no_difference(trained, tmp_path):  # noqa: F811
    words, _ = trained
    recipe = recipe_of(words)
    write_recipe(recipe, tmp_path)
    tree = yaml.safe_load((tmp_path / RECIPE).read_text())
    del tree["loss"]["teacher_share"], tree["preference"]
    (tmp_path / RECIPE).write_text(yaml.safe_dump(tree))
    assert compare_recipe(recipe, tmp_path) == []


def settings(checkpoint):
    """Learning rate, peak, decay of every group in a checkpoint, and of the schedule."""
    groups = torch.load(checkpoint / "optimizer.pt", weights_only=True)["param_groups"]
    schedule = torch.load(checkpoint / "scheduler.pt", weights_only=True)
    return [(g["lr"], g["initial_lr"], g["weight_decay"]) for g in groups], schedule["base_lrs"], schedule["_last_lr"]


def test_other_rates_and_decays_count_from_the_checkpoint_on(trained, tmp_path, caplog):  # noqa: F811
    """They are those of a run that had them from the start; moments and counts are the checkpoint's."""
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
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())
    fresh = json.loads((tmp_path / "fresh" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["log_history"][4]["learning_rate"] == fresh["log_history"][4]["learning_rate"], "the very next step"
    of_both = [
        torch.load(tmp_path / name / "checkpoint-6" / "discriminator_optimizer.pt", weights_only=True)
        for name in ("run", "fresh")
    ]
    assert of_both[0]["scheduler"] == of_both[1]["scheduler"] and of_both[0]["scheduler"]["base_lrs"] == [3e-3]


def test_unchanged_settings_are_those_loaded_to_the_last_bit():
    def build(rate):
        optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=rate, weight_decay=rate)
        return optimizer, LambdaLR(optimizer, lambda step: 0.97**step)

    optimizer, scheduler = build(0.1)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    saved = optimizer.state_dict(), scheduler.state_dict()
    for rate in (0.1, 0.3):
        again, schedule = build(rate)
        with keeping_settings(again, schedule):
            again.load_state_dict(saved[0])
            schedule.load_state_dict(saved[1])
        [group] = again.param_groups
        assert (group["lr"], group["weight_decay"], schedule.base_lrs) == (rate * 0.97**7, rate, [rate])
        assert schedule.get_last_lr() == [group["lr"]] and schedule.last_epoch == 7
