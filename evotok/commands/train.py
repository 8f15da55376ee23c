"""`evotok train`: one stage of training, from a recipe."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from evotok.commands.options import Json, Overrides, Recipe
from evotok.commands.recipes import check_recipe
from evotok.commands.terminal import say, waiting


EXAMPLES = """  evotok train configs/mini/tokenizer.yaml
  evotok train configs/mini/gen.yaml training.max_steps=100 training.output_dir=runs/short
  evotok train configs/mini/gen.yaml --json 2>gen.log
  torchrun --nproc-per-node 2 -m evotok.training.train configs/mini/gen.yaml"""


# What is usually done with the model of a stage.
_NEXT = {
    "tokenizer": "evotok eval reconstruction {folder}",
    "pretrain": "train the stage sft with model.checkpoint={folder}",
    "sft": "evotok chat {folder}",
    "gen": "evotok export {folder} --out DIR",
    "unified": "evotok export {folder} --out DIR",
    "dpo": "evotok export {folder} --out DIR",
}


def run(
    recipe: Recipe,
    overrides: Overrides = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="start again although the output folder has checkpoints")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train one stage from a recipe, or resume where it was stopped.

    Under torchrun the first process reports.
    """
    path, words = check_recipe(recipe, overrides or (), to_train=True)
    is_first = os.environ.get("RANK", "0") == "0"
    with waiting("Loading"):
        from transformers.utils import logging

        from evotok.training.arguments import read_recipe
        from evotok.training.checkpoints import last_complete_checkpoint
        from evotok.training.train import train

        content = read_recipe(path, words)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    if is_first and sys.stderr.isatty():  # a line that stands still: the Trainer's own bars follow
        print(f"{recipe}: loading the model and the data ...", file=sys.stderr, flush=True)
    before = None if restart else last_complete_checkpoint(content.training.get("output_dir") or "trainer_output")
    facts = train(content, restart)
    if is_first:
        facts["already_finished"] = before is not None and Path(before).name == f"checkpoint-{facts['step']}"
        say(as_json, facts, [_report(facts)])


def _report(facts: dict[str, Any]) -> str:
    """Describes what a run did; a finished one trains nothing, and the mean of no losses is 0."""
    folder, step = facts["folder"], facts["step"]
    if not facts["already_finished"]:
        return f"{folder}: step {step}, mean loss {facts['train_loss']:.4g}"
    following = _NEXT[facts["stage"]].format(folder=folder)
    return (
        f"{folder}: already finished at step {step}. Next: {following}; "
        "or train further with a larger training.max_steps, or from the start with --restart"
    )
