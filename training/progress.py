"""A progress bar that says the loss and how many samples pass in a second."""

import time

from transformers import ProgressCallback, Trainer


class ThroughputBar(ProgressCallback):
    """Transformers' bar with `loss` and `images/s` behind it, instead of a line for every step logged."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.since = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None:
            return
        if "loss" not in logs:  # an evaluation: worth a line of its own
            super().on_log(args, state, control, logs=logs, **kwargs)
            return
        (start, step), now = self.since, time.monotonic()
        speed = (state.global_step - step) * self.samples / max(now - start, 1e-6)
        self.since = now, state.global_step
        self.training_bar.set_postfix({"loss": f"{float(logs['loss']):.3f}", "images/s": f"{speed:.1f}"})


def use_throughput_bar(trainer: Trainer) -> None:
    """Put the bar in the place of the trainer's own, unless bars are switched off."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ThroughputBar)
