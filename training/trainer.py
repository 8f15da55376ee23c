"""The trainer that all stages share: loss terms in the log, a stop at values that are not finite, atomic checkpoints,
and streams that resume."""

from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, ProgressCallback, Trainer
from transformers.integrations import is_deepspeed_zero3_enabled

from ..data.mixture import MixtureStream
from ..data.stream_loader import ResumableLoader
from .callbacks import ThroughputBar, time_limit_callbacks
from .compilation import compile_blocks
from .deepspeed_setup import restore_param_groups
from .optimizers import group_settings, keep_settings, optimizer_choice
from .recipes import Recipe
from .resuming.checkpoints import atomic_directory, describe_kept, rotate_checkpoints, translate_disk_errors
from .resuming.manifest import begin_manifest, discard, finish_manifest, hash_files, step_of
from .resuming.recipe_changes import write_recipe


class EvoTokTrainer(Trainer):
    """`Trainer` that logs the mean of every term of the loss, over all processes, under its own name beside the loss.

    Training stops with a ValueError once a term, the loss or the gradient is not finite, before anything is saved. This
    is checked only where something is logged, evaluated or saved, so that no step synchronizes with the device.

    A checkpoint that cannot be completed is removed. A complete one is valid from its manifest on, which is written
    last, when all else is on the disk; older ones are removed only after that. In a resumed run, settings of the
    optimizer are those of the recipe, not of the checkpoint.

    A [`MixtureStream`] is read as it is, sharded already, and its position is in every checkpoint; the rows that all
    processes have skipped are logged as `skipped_REASON`.

    Args:
        recipe: optimizer and time limit are built from it, and every checkpoint contains it; none of this when None.
    """

    # None is possible in `Trainer`.
    model: nn.Module
    optimizer: Optimizer
    lr_scheduler: LRScheduler

    def __init__(self, *args, recipe: Recipe | None = None, **kwargs):
        if recipe is not None:
            kwargs["callbacks"] = time_limit_callbacks(recipe, kwargs["args"])
        super().__init__(*args, **kwargs)
        self.recipe = recipe
        if recipe is not None:
            compile_blocks(self.model, recipe.training)
            self.optimizer_cls_and_kwargs = optimizer_choice(recipe.optimizer, self.args)
        self._terms: dict[str, list[tuple[int, torch.Tensor]]] = {}
        self._groups: list[dict[str, Any]] = []
        self._stream_loader: ResumableLoader | None = None
        self._resume_from: str | None = None
        self.skipped: Counter[str] = Counter()
        if self.pop_callback(ProgressCallback) is not None:  # otherwise bars are switched off
            self.add_callback(ThroughputBar)

    @property
    def output_folder(self) -> Path:
        """Returns the folder of the run."""
        return Path(cast(str, self.args.output_dir))  # which is None in its constructor only

    def record_terms(self, terms: dict[str, torch.Tensor]) -> None:
        """Records scalars of this step for the next log."""
        for name, term in terms.items():
            self._terms.setdefault(name, []).append((self.state.global_step + 1, term.detach()))

    def training_step(self, *args, **kwargs):
        """Takes a step as in Transformers; the loss is recorded among the terms."""
        loss = super().training_step(*args, **kwargs)
        self.record_terms({"loss": loss})
        return loss

    def log(self, logs, *args, **kwargs):
        """Logs, with the mean of every term since the last log, and the number of skipped rows."""
        if "loss" in logs:  # of training: `_maybe_log_save_evaluate`, on all processes
            logs |= self._reduce_terms()
            self._terms = {}
        super().log(logs, *args, **kwargs)

    def _reduce_terms(self) -> dict[str, float]:
        """Returns means of the terms and counts of skipped rows over all processes. A process has only the terms of
        its own batches, so they are gathered by name."""
        sums = {name: torch.stack([value.float() for _, value in terms]).sum() for name, terms in self._terms.items()}
        own = {name: (total.item(), len(self._terms[name])) for name, total in sums.items() if name != "loss"}
        terms, skipped = {}, Counter()
        for gathered, count in gather_object([(own, self.skipped)]):
            skipped.update(count)
            for name, (total, number) in gathered.items():
                before = terms.get(name, (0.0, 0))
                terms[name] = before[0] + total, before[1] + number
        means: dict[str, float] = {name: total / number for name, (total, number) in terms.items()}
        means.update({f"skipped_{reason}": count for reason, count in skipped.items()})
        return means

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *args, **kwargs):
        control = self.control
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            self._check_finite(grad_norm)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _check_finite(self, grad_norm: torch.Tensor | float | None) -> None:
        """Raises ValueError for a recorded term that is not finite, on any process, with one synchronization."""
        recorded = [(step, name, value) for name, values in self._terms.items() for step, value in values]
        # A step that overflowed in half precision is skipped, and its gradient never used.
        if grad_norm is not None and not self.accelerator.optimizer_step_was_skipped:
            grad_norm = torch.as_tensor(grad_norm, device=self.args.device)
            recorded.append((self.state.global_step, "the gradient", grad_norm))
        if not recorded:
            return
        finite = torch.stack([value.float() for *_, value in recorded]).isfinite()
        if self.accelerator.gather(finite.all()[None]).all():
            return
        bad = [(step, name) for (step, name, _), fine in zip(recorded, finite.tolist(), strict=True) if not fine]
        bad = sorted(gather_object(bad))
        step = bad[0][0]
        names = {name for at, name in bad if at == step}
        # The loss is a sum of terms, and the gradient follows from it: they are named only where no term is.
        names = sorted(names - {"loss", "the gradient"}) or sorted(names - {"the gradient"}) or sorted(names)
        raise ValueError(
            f"step {step}: {', '.join(names)}: not finite (NaN or infinite), training stopped and nothing was saved "
            f"after it; kept: {describe_kept(self.output_folder)}. Lower training.learning_rate or the weight of "
            "that term, or replace fp16 by bf16, and run the command again: it resumes from there."
        )

    def train(self, resume_from_checkpoint=None, **kwargs):
        """Trains as in Transformers; `resume_from_checkpoint` is a folder or None."""
        self._resume_from = resume_from_checkpoint
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self):
        """Returns the loader; that of a stream starts where the checkpoint was written."""
        if not isinstance(self.train_dataset, MixtureStream):
            return super().get_train_dataloader()
        self._stream_loader = ResumableLoader(self.train_dataset, self.args)
        if self._resume_from:
            self._stream_loader.load(self._resume_from, step_of(Path(self._resume_from)))
        return self._stream_loader.loader

    def create_optimizer(self, *args, **kwargs):
        """Builds the optimizer as in Transformers; the settings of its groups are kept for [`keep_settings`]."""
        optimizer = super().create_optimizer(*args, **kwargs)
        self._groups = group_settings(optimizer)
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint):
        with keep_settings(self.optimizer, self.lr_scheduler, self._groups):  # DeepSpeed has loaded its own by now
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and (Path(checkpoint) / "latest_universal").is_file() and is_deepspeed_zero3_enabled():
            restore_param_groups(self.optimizer, self._groups)

    def _prepare_inputs(self, inputs):
        self.skipped.update(cast("dict[str, int]", inputs.pop("skipped", {})))
        return super()._prepare_inputs(inputs)

    def _save_checkpoint(self, model, trial):
        runs, step = self._get_output_dir(trial), self.state.global_step
        folder = Path(runs) / f"checkpoint-{step}"
        if self.args.should_save:
            discard(folder)  # left by a run that was killed here
        with atomic_directory(folder):
            if self.args.should_save:
                begin_manifest(folder)
            self.accelerator.wait_for_everyone()
            if self._stream_loader is not None:
                self._stream_loader.save(folder)
            limit, self.args.save_total_limit = self.args.save_total_limit, None  # not before the new one is complete
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            self._finish_checkpoint(folder)
        if self.args.should_save:
            rotate_checkpoints(runs, step, limit, self.state.best_model_checkpoint)

    def _finish_checkpoint(self, folder: Path) -> None:
        """Syncs and hashes the files of every process, then marks the checkpoint as finished."""
        if self.recipe is not None and self.args.should_save:
            write_recipe(self.recipe, folder)
        shares = gather_object([hash_files(folder, self.args.process_index, self.args.world_size)])
        if self.args.should_save:
            finish_manifest(folder, {name: entry for share in shares for name, entry in share.items()})
        self.accelerator.wait_for_everyone()

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # files without a rank in their names are hashed by the first process

    @property
    def finished_model(self) -> PreTrainedModel | None:
        """Returns the model that is saved at the end, if it is not the trained one."""
        return None

    def save_model(self, output_dir=None, _internal_call=False):
        """Saves the finished model, or for a checkpoint the trained one; the error of a full disk names it."""
        folder = Path(output_dir or self.output_folder)
        with translate_disk_errors(folder):
            if _internal_call or self.finished_model is None:
                super().save_model(output_dir, _internal_call)
            elif self.args.should_save:
                self.finished_model.save_pretrained(folder)
