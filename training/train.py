"""Trains one stage of EvoTok from a recipe.

    evotok train configs/mini/tokenizer.yaml training.max_steps=100
    torchrun --nproc-per-node 2 -m evotok.training.train configs/mini/sft.yaml \\
        training.deepspeed=configs/deepspeed/zero2.json

A run that was stopped resumes from its last complete checkpoint; `--restart` moves them aside and starts again.
"""

import argparse
import sys
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import TrainingArguments, set_seed
from transformers.integrations import is_tensorboard_available
from transformers.utils import logging

from ..data.atomic_files import sync_files
from ..data.errors import one_line
from .callbacks import LastEvaluation
from .checkpoint_configs import check_checkpoint
from .deepspeed_setup import check_engine, prepare_engine, start_process_group
from .recipe_checks import COMPILE_FIELDS, check_data, check_max_steps
from .recipes import Recipe, read_recipe
from .resuming.checkpoints import find_resumable_checkpoint, move_aside
from .resuming.recipe_changes import compare_recipe
from .resuming.run_lock import lock_folder
from .stages import STAGES


logger = logging.get_logger(__name__)


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """Builds the TrainingArguments of a recipe, with the defaults of this project.

    Raises:
        ValueError: values that TrainingArguments or the stage refuse.
    """
    fields = {name: value for name, value in recipe.training.items() if name not in COMPILE_FIELDS}
    on_cpu = not torch.accelerator.is_available()
    if fields.get("deepspeed") and on_cpu:
        start_process_group()
    if on_cpu:
        fields.setdefault("use_cpu", True)
        if fields.get("deepspeed"):
            fields.setdefault("accelerator_config", {"use_configured_state": True})
    fields.setdefault("remove_unused_columns", False)
    fields.setdefault("ddp_broadcast_buffers", False)
    fields.setdefault("dataloader_pin_memory", not on_cpu)
    # The filter would hide losses that are not finite, and synchronize with the device at every step.
    fields.setdefault("logging_nan_inf_filter", False)
    fields.setdefault("disable_tqdm", not sys.stderr.isatty())  # without a terminal, losses are plain lines
    if recipe.data.name == "mixture":
        fields["ignore_data_skip"] = True  # a stream resumes from its own state
    fields.setdefault("report_to", "tensorboard" if is_tensorboard_available() else "none")
    try:
        return STAGES[recipe.stage].load("arguments")(recipe, fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"training: {error}: correct the recipe.") from error


def default_arguments(recipe: Recipe, fields: dict[str, Any]) -> TrainingArguments:
    """Builds the TrainingArguments of a stage that needs no subclass and no other fields."""
    return TrainingArguments(**fields)


def train(recipe: Recipe, restart: bool = False) -> dict[str, Any]:
    """Runs the stage of a recipe, from its last complete checkpoint unless `restart`.

    Returns:
        `stage`, `folder` of the model, the `step` at the end, and the metrics of this run, such as `train_loss` (the
        mean) and `train_runtime` (seconds).

    Raises:
        ValueError: a recipe or a checkpoint that cannot be trained or resumed; or another run trains into the folder.
    """
    for key in ("checkpoint", "vq_checkpoint", "encoder_checkpoint", "language_model_checkpoint"):
        check_checkpoint(getattr(recipe.model, key), f"model.{key}")
    arguments = training_arguments(recipe)
    set_seed(arguments.seed)  # before the model is built: Trainer seeds only itself
    folder = cast(str, arguments.output_dir)  # which is None in its constructor only
    with lock_folder(folder, arguments.process_index == 0):
        if restart:
            with arguments.main_process_first(local=False, desc="moving earlier checkpoints aside"):
                move_aside(folder)
        metrics = _train_stage(recipe, arguments, find_start(recipe, arguments))
        if arguments.should_save:
            sync_files(folder)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return {"stage": recipe.stage, "folder": folder} | metrics


def find_start(recipe: Recipe, arguments: TrainingArguments) -> str | None:
    """Returns the checkpoint that a run resumes from, or None; warns of what has changed in the recipe since.

    Raises:
        ValueError: all checkpoints are damaged, or the recipe, its engine or the number of processes do not match the
            one that is complete.
    """
    folder = cast(str, arguments.output_dir)
    checkpoint = find_resumable_checkpoint(folder, arguments.process_index, arguments.world_size)
    if checkpoint is None:
        return None
    changed = compare_recipe(recipe, checkpoint)
    if changed and arguments.process_index == 0:
        logger.warning(f"{checkpoint}: resumed by a recipe that has changed since: {'; '.join(changed)}.")
    check_engine(arguments, checkpoint)
    if arguments.deepspeed:
        prepare_engine(arguments, checkpoint)
    return checkpoint


def _train_stage(recipe: Recipe, arguments: TrainingArguments, resume_from: str | None) -> dict[str, Any]:
    check_data(recipe)  # before a model is built, which may take long
    check_max_steps(recipe, arguments.max_steps)
    last = LastEvaluation()
    try:
        trainer = STAGES[recipe.stage].load("build")(recipe, arguments)
        trainer.add_callback(last)
        result = trainer.train(resume_from_checkpoint=resume_from)
    except StrictDataclassError as error:
        raise ValueError(f"model.config: {error}") from error
    except RuntimeError as error:  # of a worker that was killed, or whose error cannot be rebuilt here
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError(f"{one_line(error)}: correct it, or lower training.dataloader_num_workers.") from error
    trainer.save_metrics("train", result.metrics)
    # Transformers evaluates after the last step where it evaluates during training; the best model may be another one.
    if trainer.eval_dataset is not None and (last.step != result.global_step or arguments.load_best_model_at_end):
        trainer.evaluate()
    trainer.save_model()
    return {"step": result.global_step} | result.metrics | last.metrics


def main(argv: list[str] | None = None) -> int:
    """Runs the command line of this module; exit code 2 for a mistake in the recipe."""
    parser = argparse.ArgumentParser(prog="evotok train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", help="YAML file, such as configs/mini/tokenizer.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    parser.add_argument("--restart", action="store_true", help="start again although the output folder has checkpoints")
    options = parser.parse_intermixed_args(argv)
    try:
        train(read_recipe(options.recipe, options.overrides), options.restart)
    except (ValueError, ImportError, OSError) as error:
        print(f"evotok train: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
