"""Trains the stages of a model one after the other, in one process.

    python -m evotok.training.chain configs/mini
    python -m evotok.training.chain configs/mini/cuda --results out training.logging_steps=50

A folder has one or more recipes of a stage, of the names in `ORDER`. A chain that was stopped resumes in the stage, and
from the checkpoint, that it had reached. With `--results` the folder of a stage is copied there, without checkpoints,
as soon as the stage ends.
"""

import argparse
import gc
import shutil
import sys
from pathlib import Path

from transformers.utils import logging

from ..data.errors import one_line
from .recipes import Recipe, read_recipe
from .stages import STAGES
from .train import train


logger = logging.get_logger(__name__)

ORDER = tuple(name for stage in STAGES.values() for name in stage.chain)


def read_chain(folder: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> list[Recipe]:
    """Reads the recipes of a folder, in the order of training.

    Args:
        folder: with YAML files of the names in `ORDER`; others are ignored.
        overrides: of all recipes, as in [`read_recipe`].

    Raises:
        ValueError: no recipe there; or as [`read_recipe`].
    """
    paths = [path for name in ORDER if (path := Path(folder) / f"{name}.yaml").is_file()]
    if not paths:
        raise ValueError(
            f"{folder}: no recipe of a stage ({', '.join(f'{name}.yaml' for name in ORDER)}): give a folder."
        )
    return [read_recipe(path, overrides) for path in paths]


def train_chain(recipes: list[Recipe], results: str | Path | None = None) -> None:
    """Trains stage after stage.

    Args:
        results: folder that the result of every stage is copied to, under the name of its output folder.
    """
    for recipe in recipes:
        found = train(recipe)
        logger.warning(f"{recipe.stage}: {found['step']} steps, {found.get('train_runtime', 0):.0f} s")
        if results is not None:
            copy_result(Path(found["folder"]), Path(results) / Path(found["folder"]).name)
        gc.collect()  # frees memory of the device for the next stage


def copy_result(source: Path, target: Path) -> None:
    """Copies the folder of a stage without its checkpoints."""
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoint-*", "earlier-*"))


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; exit code 2 for a mistake in a recipe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", help="recipes, such as configs/mini")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to all recipes")
    parser.add_argument("--results", help="folder that every stage's result is copied to")
    options = parser.parse_intermixed_args(argv)
    try:
        train_chain(read_chain(options.folder, options.overrides), options.results)
    except (ValueError, ImportError, OSError) as error:
        print(f"{options.folder}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
