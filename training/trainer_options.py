"""Fields of `TrainingArguments` that a stage would take and do nothing with, or something else: refused in one line.

What is not named here works with the losses of every stage, as Transformers documents it.
"""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from .stages import STAGES


_ANYWHERE = {
    "label_smoothing_factor": "the losses are plain cross-entropies",
    "use_liger_kernel": "Liger has no kernels for this model",
    "liger_kernel_config": "Liger has no kernels for this model",
    "torch_compile": "batches change their shape from step to step",
    "torch_compile_backend": "batches change their shape from step to step",
    "torch_compile_mode": "batches change their shape from step to step",
    "fsdp": "give training.deepspeed, which shards, too",
    "fsdp_config": "give training.deepspeed, which shards, too",
    "parallelism_config": "give training.deepspeed, which shards, too",
    "tf32": "codes need all bits of float32; training.bf16 is for what does not",
    "auto_find_batch_size": "`evotok plan` says which batch fits",
    "remove_unused_columns": "records have columns that no model knows",
    "label_names": "labels are called so",
    "save_only_model": "a run could not go on from such checkpoints; training.save_total_limit keeps few of them",
    "push_to_hub": "upload the finished folder: hf upload",
    "resume_from_checkpoint": "a run goes on by itself from the last checkpoint in training.output_dir",
    "do_eval": "validation is what training.eval_strategy says",
    "do_predict": "`evotok eval` measures finished models",
}
_LOGITS = (
    "bf16_full_eval",
    "fp16_full_eval",
    "prediction_loss_only",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "eval_accumulation_steps",
    "include_for_metrics",
    "batch_eval_metrics",
)
_VALIDATION = (
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "per_device_eval_batch_size",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
)
_NO_VALIDATION = "this stage validates nothing, `evotok eval` measures checkpoints"
_IMAGES = dict.fromkeys(_LOGITS, "validation is of images, not of logits") | {
    "neftune_noise_alpha": "it is noise on embeddings of text",
    "include_num_input_tokens_seen": "images have no tokens here",
}
_MULTIMODAL = dict.fromkeys((*_LOGITS, *_VALIDATION), _NO_VALIDATION)
_ENDLESS = {
    "num_train_epochs": "samples never end: set training.max_steps",
    "data_seed": "training.seed is the data's, too",
}
_STREAM = {
    "train_sampling_strategy": "a mixture has an order of its own, of rows of like length",
    "length_column_name": "a mixture has an order of its own, of rows of like length",
    "dataloader_multiprocessing_context": "a mixture has a loader of its own",
    "dataloader_in_order": "a mixture has a loader of its own",
    "accelerator_config": "a mixture has a loader of its own",
}
_MUON = dict.fromkeys(("optim", "optim_args", "optim_target_modules"), "optimizer.name muon is another one")
_NEEDS_METRICS = ("reduce_lr_on_plateau", "greedy")


def check_options(recipe: Any, where: str) -> None:
    """Look at `training` of a recipe.

    Raises:
        ValueError: a field that would be without effect in this stage, with these data, or a length that is none.
    """
    from transformers import TrainingArguments

    given = recipe.training
    defaults = {f.name: f.default for f in fields(TrainingArguments) if f.default is not MISSING}
    defaults["remove_unused_columns"] = False  # ours
    for name, reason in _refused(recipe):
        if name in given and not _is_neutral(given[name], defaults.get(name)):
            raise ValueError(f"{where}: training.{name} has no effect: {reason}. Remove it.")
    if "max_steps" in given:
        check_length(recipe, given["max_steps"], where)


def check_length(recipe: Any, max_steps: int, where: str = "recipe") -> None:
    """Raises ValueError for a training on data without end that does not say how long it is."""
    if _is_endless(recipe.data) and max_steps <= 0:
        raise ValueError(f"{where}: samples of {recipe.data.name} never end: set training.max_steps, to 1 or more.")


def _refused(recipe: Any) -> Iterator[tuple[str, str]]:
    of_images, training = STAGES[recipe.stage].of_images, recipe.training
    tables = [_ANYWHERE, _IMAGES if of_images else _MULTIMODAL]
    if _is_endless(recipe.data):
        tables.append(_ENDLESS)
    if recipe.data.name == "mixture":
        tables.append(_STREAM)
    if recipe.optimizer.name == "muon":
        tables.append(_MUON)
    if training.get("save_strategy") == "best" and not of_images:
        tables.append({"save_strategy": _NO_VALIDATION})
    if recipe.stage == "tokenizer" and recipe.loss.adversarial and training.get("lr_scheduler_type") in _NEEDS_METRICS:
        tables.append({"lr_scheduler_type": "the discriminator has no metric to follow"})
    for table in tables:
        yield from table.items()


def _is_endless(data: Any) -> bool:
    return data.name in ("mixture", "world")


def _is_neutral(value: Any, default: Any) -> bool:
    return value == default or value is None or (value is False and not default) or value in ("", [], {}, "no")


__all__ = ["check_length", "check_options"]
