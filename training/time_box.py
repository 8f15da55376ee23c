"""A limit on how long a stage trains, for machines that are lent by the minute (`max_minutes` of a recipe)."""

import time
from collections.abc import Callable

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from .recipes import Recipe


class TimeBox(TrainerCallback, ExportableState):
    """Ends training with a checkpoint when its time is over, and has the learning rate come to its end by then.

    The learning rate is that of the step that would be reached by now if `max_steps` took all of the time, or of the
    true step where that is further on. The minutes of a run that goes on count from its first start, as far as they are
    in a checkpoint; one that had ended takes a step more, at a learning rate of 0. What is learnt depends on the
    machine's speed, so that no two runs are equal to the bit.

    Args:
        minutes: of training; building the model and the last evaluation come on top.
    """

    def __init__(self, minutes: float):
        self.minutes = minutes
        self._start, self._before = time.monotonic(), 0.0

    @property
    def share(self) -> float:
        """Of the time that is over."""
        return (self._before + time.monotonic() - self._start) / 60 / self.minutes

    def state(self) -> dict:
        """For checkpoints."""
        return {"args": {"minutes": self.minutes}, "attributes": {"minutes_used": self.share * self.minutes}}

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        saved = (state.stateful_callbacks or {}).get(type(self).__name__)
        self._before = 60 * saved["attributes"]["minutes_used"] if saved and state.global_step else 0.0
        self._start = time.monotonic()
        if isinstance(lr_scheduler, LambdaLR):
            lr_scheduler.lr_lambdas = [self._scaled(factor, state.max_steps) for factor in lr_scheduler.lr_lambdas]

    def on_step_end(self, args, state, control, **kwargs):
        if self.share >= 1:
            control.should_training_stop = control.should_save = control.should_log = True

    def _scaled(self, factor: Callable[[int], float], max_steps: int) -> Callable[[int], float]:
        return lambda step: factor(max(step, int(min(1.0, self.share) * max_steps)))


def time_box(recipe: Recipe, arguments: TrainingArguments) -> list[TimeBox]:
    """The callbacks of a recipe with `max_minutes`, none of one without.

    Raises:
        ValueError: several processes, whose clocks would end at different steps.
    """
    if recipe.max_minutes is None:
        return []
    if arguments.world_size > 1:
        raise ValueError("max_minutes: for one process only: leave it out, and set training.max_steps.")
    return [TimeBox(recipe.max_minutes)]
