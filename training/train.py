"""Train one stage of EvoTok from a recipe.

    evotok train configs/mini/tokenizer.yaml training.max_steps=100
    torchrun --nproc-per-node 2 -m evotok.training.train configs/mini/sft.yaml \\
        training.deepspeed=configs/deepspeed/zero2.json

A run that was stopped goes on from its last complete checkpoint; `--restart` puts them aside and begins anew.
"""

import argparse
import os
import sys
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import TrainingArguments, set_seed
from transformers.utils import logging

from ..data.atomic_files import sync_files
from ..data.errors import one_line
from .recipes import Recipe, read_recipe
from .resuming.checkpoints import agreed_checkpoint, check_engine, check_source, prepare_engine, put_aside
from .resuming.recipe_changes import compare_recipe
from .resuming.run_lock import locked
from .stages import STAGES


logger = logging.get_logger(__name__)


def prepare_process(deepspeed: bool) -> None:
    """On a machine without an accelerator DeepSpeed needs the process group before TrainingArguments exist, or every
    process believes that it is alone."""
    if torch.accelerator.is_available() or not deepspeed:
        return
    try:
        from deepspeed import ops
    except ImportError:
        raise ImportError("training.deepspeed: install the engine: pip install 'evotok[deepspeed]'.") from None
    from accelerate import PartialState

    # Else every process tries the compiler on all of DeepSpeed's operators, to build one that training never uses.
    ops.__compatible_ops__ = {}
    defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """TrainingArguments of a recipe, with what this project always wants."""
    given = dict(recipe.training)
    prepare_process(bool(given.get("deepspeed")))
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        given.setdefault("use_cpu", True)
        if given.get("deepspeed"):
            given.setdefault("accelerator_config", {"use_configured_state": True})
    given.setdefault("remove_unused_columns", False)
    given.setdefault("ddp_broadcast_buffers", False)
    given.setdefault("dataloader_pin_memory", not on_cpu)
    # It would hide what is not finite, and wait for the device at every step to do so.
    given.setdefault("logging_nan_inf_filter", False)
    given.setdefault("disable_tqdm", not sys.stderr.isatty())  # losses are lines then, without bars between them
    if recipe.data.name == "mixture":
        given["ignore_data_skip"] = True  # a stream goes on from its own state
    given.setdefault("report_to", "tensorboard" if _has_tensorboard() else "none")
    try:
        return STAGES[recipe.stage].load("arguments")(recipe, given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"training: {error}: correct the recipe.") from error


def plain_arguments(recipe: Recipe, fields: dict[str, Any]) -> TrainingArguments:
    """Builds the TrainingArguments of a stage that needs no others."""
    return TrainingArguments(**fields)


def _has_tensorboard() -> bool:
    from transformers.integrations import is_tensorboard_available

    return is_tensorboard_available()


def train(recipe: Recipe, restart: bool = False) -> dict[str, Any]:
    """Run the stage that a recipe names, from its last complete checkpoint unless `restart`.

    Returns:
        `stage`, `folder` of the model, the `step` that it ended at, and the figures of this run, such as `train_loss`
        (the mean) and `train_runtime` (seconds).

    Raises:
        ValueError: a recipe or a checkpoint that cannot be trained, or gone on from, like this; or another run is
            training into the same folder.
    """
    for key in ("checkpoint", "vq_checkpoint", "encoder_checkpoint", "language_model_checkpoint"):
        check_source(getattr(recipe.model, key), f"model.{key}")
    arguments = training_arguments(recipe)
    set_seed(arguments.seed)  # before the model is built: Trainer seeds only itself
    with locked(arguments.output_dir, arguments.process_index == 0):
        if restart:
            with arguments.main_process_first(local=False, desc="putting earlier checkpoints aside"):
                put_aside(arguments.output_dir)
        figures = _run_stage(recipe, arguments, find_start(recipe, arguments))
        if arguments.should_save:
            sync_files(arguments.output_dir)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return {"stage": recipe.stage, "folder": arguments.output_dir} | figures


def find_start(recipe: Recipe, arguments: TrainingArguments) -> str | None:
    """The checkpoint that a run goes on from, or None; says what has changed in the recipe since.

    Raises:
        ValueError: all checkpoints are damaged, or the recipe, its engine or the number of processes do not go with the
            one that is whole.
    """
    checkpoint = agreed_checkpoint(arguments.output_dir, arguments.process_index, arguments.world_size)
    if checkpoint is None:
        return None
    changed = compare_recipe(recipe, checkpoint)
    if changed and arguments.process_index == 0:
        logger.warning(f"{checkpoint}: goes on by a recipe that has changed since: {'; '.join(changed)}.")
    check_engine(arguments, checkpoint)
    if arguments.deepspeed:
        prepare_engine(arguments, checkpoint)
    return checkpoint


def _run_stage(recipe: Recipe, arguments: TrainingArguments, resume_from: str | None) -> dict[str, Any]:
    try:
        return STAGES[recipe.stage].load("run")(recipe, arguments, resume_from)
    except StrictDataclassError as error:
        raise ValueError(f"model.config: {error}") from error
    except RuntimeError as error:  # of a worker that was killed, or whose error cannot be made again
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError(f"{one_line(error)}: mend it, or lower training.dataloader_num_workers.") from error


def main(argv: list[str] | None = None) -> int:
    """Command line of this module; exit code 2 for a mistake in the recipe."""
    parser = argparse.ArgumentParser(prog="evotok train", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="YAML file, such as configs/mini/tokenizer.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    parser.add_argument("--restart", action="store_true", help="begin anew although the output folder has checkpoints")
    options = parser.parse_intermixed_args(argv)
    try:
        train(read_recipe(options.recipe, options.overrides), options.restart)
    except (ValueError, ImportError, OSError) as error:
        print(f"evotok train: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
