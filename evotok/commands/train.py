"""`evotok train`: one stage of training, from a recipe."""

import argparse
import os
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from evotok.commands.terminal import add_json, say


EXAMPLES = """  evotok train configs/mini/tokenizer.yaml
  evotok train configs/mini/gen.yaml training.max_steps=100 training.output_dir=runs/short
  evotok train configs/mini/gen.yaml --json 2>gen.log
  torchrun --nproc-per-node 2 -m evotok.training.train configs/mini/gen.yaml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command, those of `evotok.training.train`."""
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, such as configs/mini/tokenizer.yaml")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="changes to the recipe")
    parser.add_argument("--restart", action="store_true", help="begin anew although the output folder has checkpoints")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Hands over to `evotok.training.train`; under torchrun the first process says what came of it."""
    from evotok.training.arguments import read_recipe
    from evotok.training.train import train

    recipe = read_recipe(find_recipe(options.recipe), options.overrides)
    with redirect_stdout(sys.stderr) if options.json else nullcontext():  # where Trainer prints
        facts = train(recipe, options.restart)
    if os.environ.get("RANK", "0") == "0":
        say(options, facts, [f"{facts['folder']}: step {facts['step']}, mean loss {facts['train_loss']:.4g}"])
    return 0


def find_recipe(name: str) -> Path:
    """The recipe of that path; a shipped one (`configs/...`) is found from any folder."""
    import evotok

    shipped = [Path(folder) / name for folder in evotok.__path__ if name.startswith("configs/")]
    return next((path for path in [Path(name), *shipped] if path.is_file()), Path(name))
