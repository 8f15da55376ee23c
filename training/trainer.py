"""What the trainers of all stages share: terms of the loss in the log, and a progress bar that says the speed."""

import time

import torch
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


class EvoTokTrainer(Trainer):
    """`Trainer` that logs the mean of every term of the loss beside the loss, under the term's own name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._terms: dict[str, list[torch.Tensor]] = {}
        if self.pop_callback(ProgressCallback) is not None:  # else bars are switched off
            self.add_callback(ThroughputBar)

    def note_terms(self, terms: dict[str, torch.Tensor]) -> None:
        """Remember scalars of this step until the next log."""
        for name, term in terms.items():
            self._terms.setdefault(name, []).append(term.detach())

    def log(self, logs, *args, **kwargs):
        """Adds the mean of every term since the last log."""
        if "loss" in logs and self._terms:
            logs |= {name: torch.stack(values).mean().item() for name, values in self._terms.items()}
            self._terms = {}
        super().log(logs, *args, **kwargs)
