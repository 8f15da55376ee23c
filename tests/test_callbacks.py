"""The time limit of a stage: when it ends, how it scales the learning rate, and how a run resumes."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from test_tokenizer_stage import RECIPE
from test_training import history
from transformers import TrainerControl, TrainerState, TrainingArguments, get_cosine_schedule_with_warmup

from evotok.training import callbacks
from evotok.training.callbacks import TimeLimitCallback, time_limit_callbacks
from evotok.training.recipes import Recipe
from evotok.training.resuming.checkpoints import last_complete_checkpoint
from evotok.training.tokenizer import stage as tokenizer_stage
from evotok.training.train import main


class Clock:
    """Replacement of the module `time`."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def schedule(steps=100):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, 10, steps)


def run(callback, clock, seconds_a_step, steps=100):
    """Returns the learning rate of every step of a run with this speed."""
    optimizer, scheduler = schedule(steps)
    state, control = TrainerState(max_steps=steps), TrainerControl()
    if callback is not None:
        callback.on_train_begin(None, state, control, lr_scheduler=scheduler)
    rates = []
    while not control.should_training_stop and state.global_step < steps:
        rates.append(optimizer.param_groups[0]["lr"])
        clock.now += seconds_a_step
        optimizer.step()
        scheduler.step()
        state.global_step += 1
        if callback is not None:
            callback.on_step_end(None, state, control)
    return rates, control


def test_time_limit_leaves_a_fast_run_unchanged(clock):
    rates, control = run(TimeLimitCallback(minutes=10), clock, seconds_a_step=1)
    assert rates == pytest.approx(run(None, clock, 1)[0]) and not control.should_training_stop


def test_time_limit_ends_a_slow_run_with_its_schedule(clock):
    rates, control = run(TimeLimitCallback(minutes=1), clock, seconds_a_step=2)  # 30 of 100 steps
    assert len(rates) == 30 and control.should_save and control.should_log
    peak = rates.index(max(rates))
    assert 1 <= peak <= 5 and rates[peak:] == sorted(rates[peak:], reverse=True), "one rise, one fall"
    assert max(rates) > 0.9 and rates[-1] < 0.02


def test_time_limit_counts_the_minutes_before_a_checkpoint(clock):
    callback = TimeLimitCallback(minutes=1)
    run(callback, clock, seconds_a_step=1, steps=40)
    saved = {"TimeLimitCallback": callback.state()}
    assert saved["TimeLimitCallback"]["attributes"]["minutes_used"] == pytest.approx(40 / 60)
    clock.now += 500
    state = TrainerState(max_steps=100, global_step=40)
    state.stateful_callbacks = saved
    resumed, control = TimeLimitCallback(minutes=1), TrainerControl()
    resumed.on_train_begin(None, state, control)
    assert resumed.share == pytest.approx(40 / 60)
    clock.now += 20
    resumed.on_step_end(None, state, control)
    assert control.should_training_stop
    ended, control = TimeLimitCallback(minutes=0.5), TrainerControl()
    optimizer, scheduler = schedule()
    ended.on_train_begin(None, state, control, lr_scheduler=scheduler)
    ended.on_step_end(None, state, control)
    optimizer.step()
    scheduler.step()
    assert control.should_training_stop and scheduler.get_last_lr() == [0.0], "nothing is left of half a minute"


def test_time_limit_callbacks_follow_the_recipe(tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    assert time_limit_callbacks(Recipe("tokenizer"), arguments) == []
    [callback] = time_limit_callbacks(Recipe("tokenizer", max_minutes=3), arguments)
    assert callback.minutes == 3
    with pytest.raises(ValueError, match="max_minutes: for one process only"):
        time_limit_callbacks(Recipe("tokenizer", max_minutes=3), SimpleNamespace(world_size=2))


def test_stage_with_a_time_limit_saves_checkpoint_and_model(tmp_path, monkeypatch):
    """The limit is reached within the first of 1,000 steps; a second start finds a finished run."""
    recipe = RECIPE | {"max_minutes": 1e-4, "training": RECIPE["training"] | {"output_dir": str(tmp_path / "run")}}
    recipe["training"] |= {"max_steps": 1000, "save_steps": 1000, "eval_strategy": "no"}
    monkeypatch.setattr(tokenizer_stage, "HELD_OUT_SCENES", 4)
    (tmp_path / "tokenizer.yaml").write_text(yaml.safe_dump(recipe))
    start = time.monotonic()

    def train():
        assert main([str(tmp_path / "tokenizer.yaml")]) == 0
        checkpoint = Path(last_complete_checkpoint(tmp_path / "run"))
        return json.loads((checkpoint / "trainer_state.json").read_text())

    state = train()
    assert 1 <= state["global_step"] < 1000 and history(tmp_path / "run")[-1]["learning_rate"] < 1e-4
    used = state["stateful_callbacks"]["TimeLimitCallback"]["attributes"]["minutes_used"]
    assert 1e-4 <= used < (time.monotonic() - start) / 60
    assert (tmp_path / "run/model.safetensors").is_file()
    assert train()["global_step"] <= state["global_step"] + 1


def test_time_limit_ends_runs_with_other_schedules(clock):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    callback, control = TimeLimitCallback(minutes=1), TrainerControl()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    callback.on_train_begin(None, TrainerState(max_steps=10), control, lr_scheduler=plateau)
    clock.now += 61
    callback.on_step_end(None, TrainerState(max_steps=10), control)
    assert control.should_training_stop
