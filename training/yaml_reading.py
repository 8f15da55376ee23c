"""YAML that people write, read with care: files laid over their bases, words that change them, sections with types."""

import difflib
import reprlib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from huggingface_hub.dataclasses import type_validator


PLAIN = (int, float, bool, str)
_MAX_BASES = 20
_MAX_BYTES = 1_000_000


def read_tree(path: Path, above: tuple[Path, ...] = ()) -> dict:
    """A recipe laid over its bases; `above` are the recipes that it is the base of."""
    if not path.is_file():
        raise ValueError(f"{path}: no such recipe. The shipped ones are in configs/.")
    if path.resolve() in above:
        raise ValueError(f"{path}: is its own base, directly or through others: remove a `base`.")
    if len(above) > _MAX_BASES:
        raise ValueError(
            f"{path}: the base of {len(above)} recipes in a row, over the limit of {_MAX_BASES}: merge some."
        )
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: over the limit of {_MAX_BYTES / 1e6:g} MB of a recipe: give a shorter one.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8: save the recipe as UTF-8.") from None
    tree = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: no recipe: give keys and values for `stage`, `model`, `data` and `training`.")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ValueError(f"{path}: base {reprlib.repr(base)} is no file name: give the path of one recipe.")
    return _merge(read_tree(path.parent / base, (*above, path.resolve())), tree)


def _parse(text: str, where: str) -> Any:
    """What YAML says. Aliases are refused, because a few lines of them stand for billions of values; and so is deep
    nesting, over which the reader would sit for hours."""
    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{where}: aliases (*name) are not read: write the values out.")
            if depth > 50:
                raise ValueError(f"{where}: nested more than 50 deep: remove some brackets.")
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML: {_reason(error)}: correct it.") from None
    try:
        return yaml.safe_load(text)
    except Exception as error:  # noqa: BLE001 - constructors raise what Python's own do: of `!!bool x`, a KeyError
        raise ValueError(f"{where}: not YAML: {_reason(error)}: correct it.") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _merge(base: dict, difference: dict) -> dict:
    """`difference` laid over `base`, section by section."""
    merged = dict(base)
    for key, value in difference.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def override(tree: dict, word: str) -> None:
    """Change `tree` by a word like `section.key=value`; the value is read as YAML.

    Raises:
        ValueError: a word of another form, or one that goes through a value.
    """
    path, separator, text = word.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise ValueError(f"override {word!r} is not of the form section.key=value: write it so.")
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ValueError(f"override {word!r}: {key!r} is a value, not a section: correct the keys.")
    value = _parse(text, f"override {reprlib.repr(word)}")
    if isinstance(value, str):
        try:
            value = float(value)  # YAML 1.1 reads 1e-4 as text
        except ValueError:
            pass
    tree[keys[-1]] = value


def build_section(cls, values: Any, where: str):
    """A dataclass of what a section of YAML says.

    Raises:
        ValueError: not keys and values, an unknown key, or a value of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: give keys and values, not {reprlib.repr(values)}.")
    refuse_unknown(values, (f.name for f in fields(cls)), where)
    check_types(values, get_type_hints(cls), where)
    return cls(**values)


def refuse_unknown(given, known, where: str) -> None:
    """Raises ValueError for a key that is not known, with the nearest one that is.

    Args:
        where: the file, or the section of it, as the message names it.
    """
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(sorted(known))}."
            raise ValueError(f"{where}: unknown key {key!r}.{hint}")


def check_types(values: dict, hints: dict[str, Any], where: str) -> None:
    """Raises ValueError for a value that is not of the type that `hints` give its name."""
    for name in values.keys() & hints.keys():
        try:
            type_validator(name, values[name], float | int if hints[name] is float else hints[name])
        except TypeError:
            kind = hints[name].__name__ if hints[name] in PLAIN else str(hints[name]).replace("typing.", "")
            raise ValueError(f"{where}: {name} must be {kind}, not {reprlib.repr(values[name])}.") from None
