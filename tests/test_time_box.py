"""The time box of a stage: when it ends, what the learning rate does meanwhile, and how a run goes on."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from test_tokenizer_stage import RECIPE, history
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerControl, TrainerState, TrainingArguments, get_cosine_schedule_with_warmup

from evotok.training import time_box as module
from evotok.training.recipes import Recipe, read_recipe
from evotok.training.resuming.checkpoints import last_complete_checkpoint
from evotok.training.time_box import TimeBox, time_box
from evotok.training.tokenizer import stage as tokenizer_stage
from evotok.training.train import main


class Clock:
    """Stands in for the module `time`."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def schedule(steps=100, warmup=10):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, steps)


def run(box, clock, seconds_a_step, steps=100):
    """Learning rate of every step of a run that takes so long a step."""
    optimizer, scheduler = schedule(steps)
    state, control = TrainerState(max_steps=steps), TrainerControl()
    box.on_train_begin(None, state, control, lr_scheduler=scheduler)
    rates = []
    while not control.should_training_stop and state.global_step < steps:
        rates.append(optimizer.param_groups[0]["lr"])
        clock.now += seconds_a_step
        optimizer.step()
        scheduler.step()
        state.global_step += 1
        box.on_step_end(None, state, control)
    return rates, control


def test_a_run_that_is_fast_enough_is_as_one_without(clock):
    rates, control = run(TimeBox(minutes=10), clock, seconds_a_step=1)
    optimizer, plain = schedule()
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plain.step()
    assert rates == pytest.approx(expected) and not control.should_training_stop


def test_a_run_that_is_too_slow_ends_in_time_with_its_learning_rate_at_the_end(clock):
    rates, control = run(TimeBox(minutes=1), clock, seconds_a_step=2)  # 30 of 100 steps
    assert len(rates) == 30 and control.should_save and control.should_log
    peak = rates.index(max(rates))
    assert 1 <= peak <= 5 and rates[peak:] == sorted(rates[peak:], reverse=True), "one rise, one fall"
    assert max(rates) > 0.9 and rates[-1] < 0.02


def test_minutes_before_a_checkpoint_count(clock):
    box = TimeBox(minutes=1)
    run(box, clock, seconds_a_step=1, steps=40)
    saved = {"TimeBox": box.state()}
    assert saved["TimeBox"]["attributes"]["minutes_used"] == pytest.approx(40 / 60)
    again, control = TimeBox(minutes=1), TrainerControl()
    clock.now += 500
    state = TrainerState(max_steps=100, global_step=40)
    state.stateful_callbacks = saved
    again.on_train_begin(None, state, control)
    assert again.share == pytest.approx(40 / 60)
    clock.now += 20
    again.on_step_end(None, state, control)
    assert control.should_training_stop
    ended = TimeBox(minutes=0.5)
    optimizer, scheduler = schedule()
    ended.on_train_begin(None, state, control := TrainerControl(), lr_scheduler=scheduler)
    ended.on_step_end(None, state, control)
    optimizer.step()
    scheduler.step()
    assert control.should_training_stop and scheduler.get_last_lr() == [0.0], "nothing is left of half a minute"


def test_recipes_have_one_or_none(tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    assert time_box(Recipe("tokenizer"), arguments) == []
    [box] = time_box(Recipe("tokenizer", max_minutes=3), arguments)
    assert box.minutes == 3
    with pytest.raises(ValueError, match="max_minutes: for one process only"):
        time_box(Recipe("tokenizer", max_minutes=3), SimpleNamespace(world_size=2))
    path = tmp_path / "recipe.yaml"
    path.write_text("stage: tokenizer\nmax_minutes: 0\n")
    with pytest.raises(ValueError, match="max_minutes 0 is not above 0"):
        read_recipe(path)


def test_a_stage_ends_with_a_checkpoint_and_its_model(tmp_path, monkeypatch):
    """Within the first steps of six; called again, it is at its end."""
    recipe = RECIPE | {"max_minutes": 1e-4, "training": RECIPE["training"] | {"output_dir": str(tmp_path / "run")}}
    recipe["training"] |= {"max_steps": 1000, "save_steps": 1000, "eval_strategy": "no"}
    monkeypatch.setattr(tokenizer_stage, "HELD_OUT_SCENES", 4)
    (tmp_path / "tokenizer.yaml").write_text(yaml.safe_dump(recipe))
    begun = time.monotonic()
    assert main([str(tmp_path / "tokenizer.yaml")]) == 0
    checkpoint = Path(last_complete_checkpoint(tmp_path / "run"))
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert 1 <= state["global_step"] < 1000 and history(checkpoint)[-1]["learning_rate"] < 1e-4
    used = state["stateful_callbacks"]["TimeBox"]["attributes"]["minutes_used"]
    assert 1e-4 <= used < (time.monotonic() - begun) / 60
    assert (tmp_path / "run/model.safetensors").is_file()
    assert main([str(tmp_path / "tokenizer.yaml")]) == 0
    again = json.loads((Path(last_complete_checkpoint(tmp_path / "run")) / "trainer_state.json").read_text())
    assert again["global_step"] <= state["global_step"] + 1


def test_other_schedules_end_in_time_all_the_same(clock):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    box, control = TimeBox(minutes=1), TrainerControl()
    box.on_train_begin(None, TrainerState(max_steps=10), control, lr_scheduler=plateau)
    clock.now += 61
    box.on_step_end(None, TrainerState(max_steps=10), control)
    assert control.should_training_stop and not isinstance(plateau, LambdaLR)
