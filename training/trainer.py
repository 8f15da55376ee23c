"""What the trainers of all stages share: terms of the loss in the log, streams that resume, a bar with the speed."""

import shutil
import time
from collections import Counter
from pathlib import Path

import torch
from transformers import ProgressCallback, Trainer

from .mixture import RecordStream
from .streaming import ResumableLoader, add_skipped


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
    """`Trainer` that logs the mean of every term of the loss beside the loss, under the term's own name.

    A [`RecordStream`] is read as it is, shared out already, and its place is in every checkpoint; what it skipped in
    this process so far is logged as `skipped_REASON`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._terms: dict[str, list[torch.Tensor]] = {}
        self._stream_loader: ResumableLoader | None = None
        self._resume_from: str | None = None
        self.skipped: Counter[str] = Counter()
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
        if "loss" in logs:
            logs |= {f"skipped_{reason}": count for reason, count in self.skipped.items()}
        super().log(logs, *args, **kwargs)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As in Transformers; `resume_from_checkpoint` is a folder or None."""
        self._resume_from = resume_from_checkpoint
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self):
        """Of a stream: its own loader, from where the checkpoint left it."""
        if not isinstance(self.train_dataset, RecordStream):
            return super().get_train_dataloader()
        self._stream_loader = ResumableLoader(self.train_dataset, self.args)
        if self._resume_from:
            step = int(Path(self._resume_from).name.rpartition("-")[2])
            self._stream_loader.load(self._resume_from, step)
        return self._stream_loader.loader

    def _prepare_inputs(self, inputs):
        add_skipped(self.skipped, inputs)
        return super()._prepare_inputs(inputs)

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed in here has left
        self.accelerator.wait_for_everyone()
        if self._stream_loader is not None:
            self._stream_loader.save(folder)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        # Next comes `trainer_state.json`, which marks the checkpoint as whole: nobody may still be writing.
        self.accelerator.wait_for_everyone()
