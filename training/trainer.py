"""What the trainers of all stages share: terms of the loss in the log and a stop when they are not finite, checkpoints
that are whole or not there, streams that resume, a bar with the speed."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import ProgressCallback, Trainer
from transformers.integrations import is_deepspeed_zero3_enabled

from ..data.mixture import MixtureStream
from ..data.stream_loader import ResumableLoader
from .recipes import Recipe
from .resuming.checkpoints import (
    last_complete_checkpoint,
    room_on_disk,
    rotate_checkpoints,
    tell_groups_apart,
    whole_or_none,
)
from .resuming.manifest import begin_manifest, discard, finish_manifest, hash_share
from .resuming.recipe_changes import keeping_settings, write_recipe


class ThroughputBar(ProgressCallback):
    """Transformers' bar with `loss` and `images/s` behind it, instead of a line for every step logged."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.since = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None:
            return
        if "loss" not in logs:  # an evaluation: worth a line of its own, the codebooks one by one are for the curves
            logs = {name: value for name, value in logs.items() if "_level" not in name}
            super().on_log(args, state, control, logs=logs, **kwargs)
            return
        (start, step), now = self.since, time.monotonic()
        speed = (state.global_step - step) * self.samples / max(now - start, 1e-6)
        self.since = now, state.global_step
        self.training_bar.set_postfix({"loss": f"{float(logs['loss']):.3f}", "images/s": f"{speed:.1f}"})


class EvoTokTrainer(Trainer):
    """`Trainer` that logs the mean of every term of the loss, over all processes, beside the loss under its own name.

    Training stops with a ValueError once a term, the loss or the gradient is not finite. That is looked at whenever
    something is logged, evaluated or saved, so no step waits for the device because of it; nothing is saved after it.

    A checkpoint that cannot be written to its end is removed. One that is counts from its manifest on, which comes
    last, when all the rest is on the disk; older ones go only after that. In a run that goes on, settings of the
    optimizer are the recipe's, not those of the checkpoint.

    A [`MixtureStream`] is read as it is, shared out already, and its place is in every checkpoint; what all
    processes skipped since they began is logged as `skipped_REASON`.
    """

    def __init__(self, *args, recipe: Recipe | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        self._terms: dict[str, list[tuple[int, torch.Tensor]]] = {}
        self._groups: list[dict[str, Any]] = []
        self._stream_loader: ResumableLoader | None = None
        self._resume_from: str | None = None
        self.skipped: Counter[str] = Counter()
        if self.pop_callback(ProgressCallback) is not None:  # else bars are switched off
            self.add_callback(ThroughputBar)

    def note_terms(self, terms: dict[str, torch.Tensor]) -> None:
        """Remember scalars of this step until the next log."""
        for name, term in terms.items():
            self._terms.setdefault(name, []).append((self.state.global_step + 1, term.detach()))

    def training_step(self, *args, **kwargs):
        """As in Transformers; the loss is noted among the terms."""
        loss = super().training_step(*args, **kwargs)
        self.note_terms({"loss": loss})
        return loss

    def log(self, logs, *args, **kwargs):
        """Adds the mean of every term since the last log, and what was skipped."""
        if "loss" in logs:  # of training: `_maybe_log_save_evaluate`, on all processes
            logs |= self._sum_up_processes()
            self._terms = {}
        super().log(logs, *args, **kwargs)

    def _sum_up_processes(self) -> dict[str, float]:
        """Means of the terms and counts of what was skipped, of all processes. A process knows those alone that its
        own batches had, so they are sent by name."""
        sums = {name: torch.stack([value.float() for _, value in noted]).sum() for name, noted in self._terms.items()}
        mine = {name: (total.item(), len(self._terms[name])) for name, total in sums.items() if name != "loss"}
        terms, skipped = {}, Counter()
        for theirs, count in gather_object([(mine, self.skipped)]):
            skipped.update(count)
            for name, (total, number) in theirs.items():
                before = terms.get(name, (0.0, 0))
                terms[name] = before[0] + total, before[1] + number
        means = {name: total / number for name, (total, number) in terms.items()}
        return means | {f"skipped_{reason}": count for reason, count in skipped.items()}

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *args, **kwargs):
        control = self.control
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            self._check_finite(grad_norm)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _check_finite(self, grad_norm: torch.Tensor | float | None) -> None:
        """All that was noted since the last log, on all processes, with one synchronisation."""
        noted = [(step, name, value) for name, values in self._terms.items() for step, value in values]
        # A step that overflowed in half precision is skipped, and its gradient never used.
        if grad_norm is not None and not self.accelerator.optimizer_step_was_skipped:
            grad_norm = torch.as_tensor(grad_norm, device=self.args.device)
            noted.append((self.state.global_step, "the gradient", grad_norm))
        if not noted:
            return
        finite = torch.stack([value.float() for *_, value in noted]).isfinite()
        if self.accelerator.gather(finite.all()[None]).all():
            return
        bad = [(step, name) for (step, name, _), fine in zip(noted, finite.tolist(), strict=True) if not fine]
        bad = sorted(gather_object(bad))
        step = bad[0][0]
        names = {name for at, name in bad if at == step}
        # What is summed up from terms, or follows from them, says nothing more.
        names = sorted(names - {"loss", "the gradient"}) or sorted(names - {"the gradient"}) or sorted(names)
        last = last_complete_checkpoint(self.args.output_dir) or "none, there was no checkpoint yet"
        raise ValueError(
            f"step {step}: {', '.join(names)}: not finite (NaN or infinite), training stopped and nothing was saved "
            f"after it; kept: {last}. Lower training.learning_rate or the weight of that term, or leave fp16 for bf16, "
            "and give the command again: it goes on from there."
        )

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As in Transformers; `resume_from_checkpoint` is a folder or None."""
        self._resume_from = resume_from_checkpoint
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self):
        """Of a stream: its own loader, from where the checkpoint left it."""
        if not isinstance(self.train_dataset, MixtureStream):
            return super().get_train_dataloader()
        self._stream_loader = ResumableLoader(self.train_dataset, self.args)
        if self._resume_from:
            step = int(Path(self._resume_from).name.rpartition("-")[2])
            self._stream_loader.load(self._resume_from, step)
        return self._stream_loader.loader

    def create_optimizer(self, *args, **kwargs):
        """As in Transformers; what its groups are told is remembered."""
        optimizer = super().create_optimizer(*args, **kwargs)
        common = ("params", "lr")
        self._groups = [{k: v for k, v in group.items() if k not in common} for group in optimizer.param_groups]
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint):
        with keeping_settings(self.optimizer, self.lr_scheduler, self._groups):  # an engine has loaded its own by now
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and (Path(checkpoint) / "latest_universal").is_file() and is_deepspeed_zero3_enabled():
            tell_groups_apart(self.optimizer, self._groups)

    def _prepare_inputs(self, inputs):
        self.skipped.update(inputs.pop("skipped", {}))
        return super()._prepare_inputs(inputs)

    def _save_checkpoint(self, model, trial):
        runs, step = self._get_output_dir(trial), self.state.global_step
        folder = Path(runs) / f"checkpoint-{step}"
        if self.args.should_save:
            discard(folder)  # what a run that was killed in here has left
        with whole_or_none(folder):
            if self.args.should_save:
                begin_manifest(folder)
            self.accelerator.wait_for_everyone()
            if self._stream_loader is not None:
                self._stream_loader.save(folder)
            limit, self.args.save_total_limit = self.args.save_total_limit, None  # not before the new one is safe
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            self._finish_checkpoint(folder)
        if self.args.should_save:
            rotate_checkpoints(runs, step, limit, self.state.best_model_checkpoint)

    def _finish_checkpoint(self, folder: Path) -> None:
        """Syncs and hashes what every process wrote, then marks the checkpoint as whole."""
        if self.recipe is not None and self.args.should_save:
            write_recipe(self.recipe, folder)
        shares = gather_object([hash_share(folder, self.args.process_index, self.args.world_size)])
        if self.args.should_save:
            finish_manifest(folder, {name: fact for share in shares for name, fact in share.items()})
        self.accelerator.wait_for_everyone()

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # what has no rank in its name is hashed by the first process

    def save_model(self, output_dir=None, _internal_call=False):
        """As in Transformers; a full disk is named as one."""
        with room_on_disk(Path(output_dir or self.args.output_dir)):
            super().save_model(output_dir, _internal_call)
