"""Checks of a recipe: ranges of numbers, fields without effect, data of the stage, names of modules."""

import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

from .stages import STAGES


_LARGE = 2**31 - 1
# section.key -> least and largest value; outside of it a training would do nothing, or never end.
RANGES = {
    "training.gradient_accumulation_steps": (1, _LARGE),
    "training.per_device_train_batch_size": (1, _LARGE),
    "training.per_device_eval_batch_size": (1, _LARGE),
    "training.dataloader_num_workers": (0, 1024),
    "training.dataloader_prefetch_factor": (1, _LARGE),
    "training.max_steps": (-1, _LARGE),
    "training.save_total_limit": (0, _LARGE),
    "training.learning_rate": (0.0, 1e6),
    "training.weight_decay": (0.0, 1e6),
    "training.adam_beta1": (0.0, 1.0),
    "training.adam_beta2": (0.0, 1.0),
    "training.adam_epsilon": (0.0, 1e6),
    "training.max_grad_norm": (0.0, 1e6),
    "training.seed": (0, 2**32 - 1),
    "optimizer.matrix_learning_rate": (0.0, 1e6),
    "loss.discriminator_learning_rate": (0.0, 1e6),
    "loss.discriminator_channels": (1, 65_536),
    "loss.discriminator_layers": (1, 16),
    "data.pool_batches": (1, 1_000_000),
    "data.max_length": (1, _LARGE),
    "data.caption_dropout": (0.0, 1.0),
    "data.validation_samples": (1, _LARGE),
    "data.block": (1, _LARGE),
}

# Fields of TrainingArguments that a stage would ignore, with the reason. All others work as documented.
_ANYWHERE = {
    "label_smoothing_factor": "the losses are plain cross-entropies",
    "use_liger_kernel": "Liger has no kernels for this model",
    "liger_kernel_config": "Liger has no kernels for this model",
    "fsdp": "give training.deepspeed, which shards, too",
    "fsdp_config": "give training.deepspeed, which shards, too",
    "parallelism_config": "give training.deepspeed, which shards, too",
    "tf32": "codes need all bits of float32; give training.bf16 for the rest",
    "auto_find_batch_size": "`evotok plan` estimates which batch fits",
    "remove_unused_columns": "rows have columns that are no arguments of the model",
    "label_names": "the labels have a fixed name",
    "save_only_model": "a run could not resume from such checkpoints; training.save_total_limit keeps few of them",
    "push_to_hub": "upload the finished folder: hf upload",
    "resume_from_checkpoint": "a run resumes by itself from the last checkpoint in training.output_dir",
    "do_eval": "training.eval_strategy switches validation on",
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
    "num_train_epochs": "rows never end: set training.max_steps",
    "data_seed": "training.seed also seeds the data",
}
_STREAM = {
    "train_sampling_strategy": "a mixture has an order of its own, of rows of similar length",
    "length_column_name": "a mixture has an order of its own, of rows of similar length",
    "dataloader_multiprocessing_context": "a mixture has a loader of its own",
    "dataloader_in_order": "a mixture has a loader of its own",
    "accelerator_config": "a mixture has a loader of its own",
}
_MUON = dict.fromkeys(("optim", "optim_args", "optim_target_modules"), "optimizer.name muon selects the optimizer")
_NEEDS_METRICS = ("reduce_lr_on_plateau", "greedy")

COMPILE_FIELDS = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
"""Fields of `TrainingArguments` that are read by `training/compilation.py` in place of the Trainer."""

# PEFT takes most names of modules for regular expressions. These match in linear time.
_MODULE_NAME = re.compile(r"[\w.]{1,500}")
_MODULE_PATTERN = re.compile(r"(?:\.\*|\\\.|\w|\((?:\w+\|)*\w+\))+")
_MAX_WILDCARDS = 3
_PATTERN_KEYS = ("target_modules", "exclude_modules")
NAME_KEYS = (*_PATTERN_KEYS, "modules_to_save", "layers_pattern", "target_parameters", "rank_pattern", "alpha_pattern")


def check_ranges(tree: Mapping[str, Any], where: str, prefix: str = "") -> None:
    """Raises ValueError for a number of a recipe that is not finite or out of its range.

    Args:
        tree: sections by their names.
        where: the file, for the message.
    """
    for key, value in tree.items():
        key = f"{prefix}{key}"
        if isinstance(value, Mapping):
            check_ranges(value, where, f"{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            least, largest = RANGES.get(key, (-math.inf, math.inf))
            if not math.isfinite(value):
                raise ValueError(f"{where}: {key} is {value}: give a finite number.")
            if not least <= value <= largest:
                span = f"at least {least:g}" if largest >= 1e6 else f"from {least:g} to {largest:g}"
                raise ValueError(f"{where}: {key} must be {span}, not {value:g}.")


def check_options(recipe: Any, where: str) -> None:
    """Checks the section `training` of a recipe.

    Raises:
        ValueError: a field that has no effect in this stage or on these data, or a number of steps that is none.
    """
    from transformers import TrainingArguments

    given = recipe.training
    defaults = {f.name: f.default for f in fields(TrainingArguments) if f.default is not MISSING}
    defaults["remove_unused_columns"] = False  # ours
    for name, reason in _ignored_fields(recipe):
        if name in given and not _is_neutral(given[name], defaults.get(name)):
            raise ValueError(f"{where}: training.{name} has no effect: {reason}. Remove it.")
    if "max_steps" in given:
        check_max_steps(recipe, given["max_steps"], where)
    if given.get("deepspeed") and is_compiled(given):
        raise ValueError(
            f"{where}: training.torch_compile: not under DeepSpeed, which changes the modules that would be compiled: "
            "leave one of them out."
        )


def is_compiled(training: Mapping[str, Any]) -> bool:
    """Returns whether a section `training` asks for compiled blocks; a backend or a mode does so as well."""
    return any(training.get(name) for name in COMPILE_FIELDS)


def _ignored_fields(recipe: Any) -> Iterator[tuple[str, str]]:
    stage, training = STAGES[recipe.stage], recipe.training
    tables = [_ANYWHERE, _IMAGES if stage.reads_images else _MULTIMODAL]
    if _is_endless(recipe.data):
        tables.append(_ENDLESS)
    if recipe.data.name == "mixture":
        tables.append(_STREAM)
    if recipe.optimizer.name == "muon":
        tables.append(_MUON)
    if training.get("save_strategy") == "best" and not stage.reads_images:
        tables.append({"save_strategy": _NO_VALIDATION})
    adversarial = stage.has_discriminator and recipe.loss.adversarial
    if adversarial and training.get("lr_scheduler_type") in _NEEDS_METRICS:
        tables.append({"lr_scheduler_type": "the discriminator has no metric to follow"})
    for table in tables:
        yield from table.items()


def _is_neutral(value: Any, default: Any) -> bool:
    return value == default or value is None or (value is False and not default) or value in ("", [], {}, "no")


def check_max_steps(recipe: Any, max_steps: int, where: str = "recipe") -> None:
    """Raises ValueError for a training on endless data without a number of steps."""
    if _is_endless(recipe.data) and max_steps <= 0:
        raise ValueError(f"{where}: rows of {recipe.data.name} never end: set training.max_steps, to 1 or more.")


def _is_endless(data: Any) -> bool:
    return data.name in ("mixture", "world")


def check_data(recipe: Any) -> None:
    """Raises ValueError for data that the stage of a recipe does not read."""
    stage, data = STAGES[recipe.stage], recipe.data
    if data.name not in stage.data:
        raise ValueError(
            f"data.name {data.name!r} is not one of {', '.join(stage.data)}, which the stage {stage.name} reads: give "
            "one of them."
        )
    if data.name == "llava" and data.path is None:
        raise ValueError("data.name llava: reads a file, and data.path names none: set it to a JSON or JSONL file.")
    if not stage.compares_answers:
        return
    from ..data.sources import SOURCES

    known = [name for name, source in SOURCES.items() if source.preferences]
    for source in data.sources:
        if source.source not in known:
            raise ValueError(
                f"data.sources: {source.source!r} has no rejected answers: the stage {stage.name} reads "
                f"{', '.join(known)}."
            )


def check_module_names(config: dict[str, Any], where: str) -> None:
    """Raises ValueError for modules that a LoRA config names by anything but plain names, or patterns of which `.*` and
    `(a|b)` are all that is not plain."""
    for key in NAME_KEYS:
        value = config.get(key) or []
        if not _is_plain(value) and not (key in _PATTERN_KEYS and _is_pattern(value)):
            raise ValueError(
                f"{where}: {key} should be plain names of modules, not {reprlib.repr(value)}: write them out."
            )


def _is_plain(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return isinstance(names, (list, tuple, set, dict)) and all(_MODULE_NAME.fullmatch(str(name)) for name in names)


def _is_pattern(text: Any) -> bool:
    return (
        isinstance(text, str)
        and len(text) <= 500
        and text.count(".*") <= _MAX_WILDCARDS
        and _MODULE_PATTERN.fullmatch(text) is not None
    )
