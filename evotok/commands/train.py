"""`evotok train`: one stage of training, from a recipe."""

import argparse
from pathlib import Path


EXAMPLES = """  evotok train configs/mini/tokenizer.yaml
  evotok train configs/mini/gen.yaml training.max_steps=100 training.output_dir=runs/short
  torchrun --nproc-per-node 2 -m evotok.training.train configs/mini/gen.yaml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command, those of `evotok.training.train`."""
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, such as configs/mini/tokenizer.yaml")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="changes to the recipe")
    parser.add_argument("--restart", action="store_true", help="begin anew although the output folder has checkpoints")


def run(options: argparse.Namespace) -> int:
    """Hands over to `evotok.training.train`."""
    from evotok.training.arguments import read_recipe
    from evotok.training.train import train

    train(read_recipe(find_recipe(options.recipe), options.overrides), options.restart)
    return 0


def find_recipe(name: str) -> Path:
    """The recipe of that path; a shipped one (`configs/...`) is found from any folder."""
    import evotok

    shipped = [Path(folder) / name for folder in evotok.__path__ if name.startswith("configs/")]
    return next((path for path in [Path(name), *shipped] if path.is_file()), Path(name))
