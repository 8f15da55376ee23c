"""Finds recipes, with the checks that need no torch."""

import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def find_recipe(name: str) -> Path:
    """Finds a recipe by its path; a shipped one (`configs/...`) from any folder.

    Returns:
        Path of the recipe; as given if there is no such file.
    """
    import evotok

    shipped = [Path(folder) / name for folder in evotok.__path__ if name.startswith("configs/")]
    return next((path for path in [Path(name), *shipped] if path.is_file()), Path(name))


def check_recipe(name: str, overrides: Iterable[str], to_train: bool = False) -> tuple[Path, list[str]]:
    """Finds a recipe and checks without torch: the file, the form of the overrides, the checkpoint to start from.

    Args:
        to_train: whether the checkpoint must exist; a plan can be made before it does.

    Returns:
        Path of the recipe, and the overrides, with a folder in place of `model.checkpoint=mini` and of a Hub id.

    Raises:
        ValueError: no such recipe or checkpoint, no YAML, or an override of another form.
    """
    from evotok.commands.checkpoints import HUB_ID, checkpoint_folder
    from evotok.data.yaml_files import override, read_tree

    path, overrides = find_recipe(name), list(overrides)
    if not path.is_file() and (near := _near_recipes(name)):
        raise ValueError(f"{name}: no such recipe. Did you mean {near[0]}?")
    tree = read_tree(path)
    for word in overrides:
        override(tree, word)
    model = tree.get("model")
    checkpoint = model.get("checkpoint") if isinstance(model, dict) else None
    if checkpoint == "mini" or (to_train and isinstance(checkpoint, str) and HUB_ID.fullmatch(checkpoint)):
        overrides.append(f"model.checkpoint={json.dumps(str(checkpoint_folder(checkpoint)))}")
    return path, overrides


def _near_recipes(name: str) -> list[str]:
    import evotok

    known = [
        path.relative_to(folder).as_posix()
        for folder in evotok.__path__
        for path in Path(folder, "configs").rglob("*.yaml")
    ]
    known += [str(path) for path in Path(name).parent.glob("*.yaml") if path.is_file()]
    return get_close_matches(name, known, n=1)
