"""Callbacks of the trainers: the progress bar with the speed, the last evaluation, and the limit of minutes."""

import time
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import ProgressCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from .recipes import Recipe


class ThroughputBar(ProgressCallback):
    """Progress bar of Transformers with `loss` and `images/s` behind it, instead of a line for every logged step."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.since = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs: Any = None, **kwargs):
        if self.training_bar is None:
            return
        if "loss" not in logs:  # an evaluation gets a line, without the metrics of single codebooks
            logs = {name: value for name, value in logs.items() if "_level" not in name}
            super().on_log(args, state, control, logs=logs, **kwargs)
            return
        (start, step), now = self.since, time.monotonic()
        speed = (state.global_step - step) * self.rows / max(now - start, 1e-6)
        self.since = now, state.global_step
        self.training_bar.set_postfix({"loss": f"{float(logs['loss']):.3f}", "images/s": f"{speed:.1f}"})


class LastEvaluation(TrainerCallback):
    """Keeps the metrics of the last evaluation, and the step after which it was made; None before the first one."""

    def __init__(self):
        self.step: int | None = None
        self.metrics: dict[str, float] = {}

    def on_evaluate(self, args, state, control, metrics: Any = None, **kwargs):
        self.step, self.metrics = state.global_step, dict(metrics)


class TimeLimitCallback(TrainerCallback, ExportableState):
    """Ends training with a checkpoint after a number of minutes, and scales the learning rate to end by then.

    The learning rate is that of the step that would be reached by now if `max_steps` took all of the time, or of the
    true step where that is further on. The minutes of a resumed run count from its first start, as far as they are in a
    checkpoint; a run that had ended takes one more step, at a learning rate of 0. Weights depend on the speed of the
    machine, so that no two runs are equal to the bit.

    Args:
        minutes: of training; building the model and the last evaluation come on top.
    """

    def __init__(self, minutes: float):
        self.minutes = minutes
        self._start, self._before = time.monotonic(), 0.0

    @property
    def share(self) -> float:
        """Returns the share of the time that is used."""
        return (self._before + time.monotonic() - self._start) / 60 / self.minutes

    def state(self) -> dict:
        """Returns the state for a checkpoint."""
        return {"args": {"minutes": self.minutes}, "attributes": {"minutes_used": self.share * self.minutes}}

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        states = state.stateful_callbacks or {}
        saved = states.get(type(self).__name__) or states.get("TimeBox")  # its name in older checkpoints
        self._before = 60 * saved["attributes"]["minutes_used"] if saved and state.global_step else 0.0
        self._start = time.monotonic()
        if isinstance(lr_scheduler, LambdaLR):
            lr_scheduler.lr_lambdas = [self._scaled(factor, state.max_steps) for factor in lr_scheduler.lr_lambdas]

    def on_step_end(self, args, state, control, **kwargs):
        if self.share >= 1:
            control.should_training_stop = control.should_save = control.should_log = True

    def _scaled(self, factor: Callable[[int], float], max_steps: int) -> Callable[[int], float]:
        return lambda step: factor(max(step, int(min(1.0, self.share) * max_steps)))


def time_limit_callbacks(recipe: Recipe, arguments: TrainingArguments) -> list[TimeLimitCallback]:
    """Returns the callbacks of a recipe with `max_minutes`, none without.

    Raises:
        ValueError: several processes, whose clocks would end at different steps.
    """
    if recipe.max_minutes is None:
        return []
    if arguments.world_size > 1:
        raise ValueError("max_minutes: for one process only: leave it out, and set training.max_steps.")
    return [TimeLimitCallback(recipe.max_minutes)]
