"""`evotok train`: trains one stage from a recipe."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from evotok.commands.options import Json, Overrides, Recipe
from evotok.commands.recipes import check_recipe
from evotok.commands.terminal import print_results, waiting


EXAMPLES = """  evotok train configs/mini/tokenizer.yaml
  evotok train configs/mini/gen.yaml training.max_steps=100 training.output_dir=runs/short
  evotok train configs/mini/gen.yaml --json 2>gen.log
  torchrun --nproc-per-node 2 -m evotok.training.train configs/mini/gen.yaml"""


def run(
    recipe: Recipe,
    overrides: Overrides = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="start again although the output folder has checkpoints")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train one stage from a recipe, or resume where it was stopped.

    Under torchrun only the first process prints the results.
    """
    path, words = check_recipe(recipe, overrides or (), to_train=True)
    is_first = os.environ.get("RANK", "0") == "0"
    with waiting("Loading"):
        from transformers.utils import logging

        from evotok.training.recipes import read_recipe
        from evotok.training.resuming.checkpoints import last_complete_checkpoint
        from evotok.training.train import train

        content = read_recipe(path, words)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    if is_first and sys.stderr.isatty():  # no spinner: the bars of the Trainer follow
        print(f"{recipe}: loading the model and the data ...", file=sys.stderr, flush=True)
    before = None if restart else last_complete_checkpoint(content.training.get("output_dir") or "trainer_output")
    facts = train(content, restart)
    if is_first:
        facts["already_finished"] = before is not None and Path(before).name == f"checkpoint-{facts['step']}"
        print_results(as_json, facts, [_report(facts)])


def _report(facts: dict[str, Any]) -> str:
    """Returns the report of a run; a finished run trains nothing, and its mean loss would be 0."""
    folder, step = facts["folder"], facts["step"]
    if not facts["already_finished"]:
        return f"{folder}: step {step}, mean loss {facts['train_loss']:.4g}"
    from evotok.training.stages import STAGES

    next_step = STAGES[facts["stage"]].next_step.format(folder=folder)
    return (
        f"{folder}: already finished at step {step}. Next: {next_step}; "
        "or train further with a larger training.max_steps, or from the start with --restart"
    )
