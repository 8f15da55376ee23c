"""Arguments and options that several commands share, with their shell completion."""

import glob
import os
from pathlib import Path
from typing import Annotated

import typer


MAX_SEED = 2**64 - 1


def complete_folder(incomplete: str) -> list[str]:
    """Completes the path of a folder."""
    return [f"{path}{os.sep}" for path in glob.glob(f"{glob.escape(incomplete)}*") if os.path.isdir(path)]


def complete_checkpoint(incomplete: str) -> list[str]:
    """Completes a checkpoint: `mini` or a folder."""
    return ["mini", *complete_folder(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Completes a recipe: a shipped one, a YAML file or a folder."""
    import evotok

    shipped = [
        path.relative_to(folder).as_posix()
        for folder in evotok.__path__
        for path in sorted(Path(folder, "configs").rglob("*.yaml"))
        if "eval" not in path.parts
    ]
    return [*shipped, *glob.glob(f"{glob.escape(incomplete)}*.yaml"), *complete_folder(incomplete)]


def complete_override(context: typer.Context, incomplete: str) -> list[str]:
    """Completes `section.key=`: the keys of the recipe before it, and of the recipes in its folder."""
    import yaml

    from evotok.commands.recipes import find_recipe

    keys: dict[str, None] = {}
    recipe = find_recipe(context.params.get("recipe") or "")
    for path in (recipe, *sorted(recipe.parent.glob("*.yaml"))):
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        for section, values in tree.items() if isinstance(tree, dict) else ():
            keys |= dict.fromkeys(f"{section}.{key}=" for key in values) if isinstance(values, dict) else {}
    return list(keys)


def require_finite(value: float | None) -> float | None:
    """Refuses NaN and infinity, which pass the limits of a range."""
    if value is not None and not abs(value) < float("inf"):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def require_text(value: str | None) -> str | None:
    """Refuses an empty text."""
    if value is not None and not value.strip():
        raise typer.BadParameter("the text is empty, write one")
    return value


def require_texts(values: list[str]) -> list[str]:
    """Refuses an empty text in a list."""
    for value in values:
        require_text(value)
    return values


def require_share(value: float | None) -> float | None:
    """Refuses 0, which the range from 0 to 1 includes."""
    if value == 0:
        raise typer.BadParameter("0 is too small, give a number above 0")
    return value


_CHECKPOINT = "folder of a checkpoint, a Hub id, or `mini` for the embedded model"
CHECKPOINT = typer.Argument(metavar="CHECKPOINT", help=_CHECKPOINT, autocompletion=complete_checkpoint)
Checkpoint = Annotated[str, CHECKPOINT]
TokenizerCheckpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help=f"{_CHECKPOINT}; a checkpoint of the image tokenizer alone is enough",
        autocompletion=complete_checkpoint,
    ),
]
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT, autocompletion=complete_checkpoint)
]
Recipe = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="YAML file, such as configs/paper/sft.yaml", autocompletion=complete_recipe),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.KEY=VALUE", help="changes to the recipe", autocompletion=complete_override),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(metavar="X", min=0, callback=require_finite, help="weight of the prompt; 1: no guidance"),
]
GuidanceMinP = Annotated[
    float | None,
    typer.Option(metavar="P", min=0, max=1, help="least share of the likeliest code's probability; 0: no limit"),
]
Temperature = Annotated[
    float | None,
    typer.Option(metavar="T", min=0, callback=require_finite, help="of images; 0: always the likeliest code"),
]
TopK = Annotated[int | None, typer.Option(metavar="K", min=0, help="sample among the K likeliest codes; 0: all")]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P", min=0, max=1, callback=require_share, help="sample among the likeliest codes of mass P; 1: all"
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, max=MAX_SEED, help="for reproducible results; random by default"),
]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="address of a running server, such as one of `evotok serve`, instead of CHECKPOINT"
    ),
]
ApiKey = Annotated[str | None, typer.Option(metavar="KEY", envvar="EVOTOK_API_KEY", help="key of the server")]
Json = Annotated[bool, typer.Option("--json", help="one line of JSON on stdout instead of text")]
