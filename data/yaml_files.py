"""YAML that people write, read with care: files laid over their bases, words that change them, sections with types.

Plain values are read as YAML 1.2 has them (core schema): of words only `true` and `false` are truth values, so that
`save_strategy: no` is a word, and `1e-4` is a number. `yes`, `no`, `on` and `off` are taken where a truth value is due.
"""

import difflib
import re
import reprlib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from huggingface_hub.dataclasses import type_validator


PLAIN = (int, float, bool, str)
_MAX_BASES = 20
_MAX_BYTES = 1_000_000
_OLD_WORDS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}


class _Loader(yaml.SafeLoader):
    """Plain values by the core schema of YAML 1.2; PyYAML's own are those of 1.1."""

    yaml_implicit_resolvers: dict = {}  # of its own

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """0o17, 0x1F or decimal, whatever zeros it begins with."""
        text = self.construct_scalar(node)
        return int(text, 0) if text[1:2] in ("o", "x") else int(text)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


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
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
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
    tree[keys[-1]] = _parse(text, f"override {reprlib.repr(word)}")


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
    """Raises ValueError for a value that is not of the type that `hints` give its name; `yes` and so on become truth
    values where one is due."""
    for name in values.keys() & hints.keys():
        if hints[name] in (bool, bool | None) and isinstance(values[name], str):
            values[name] = _OLD_WORDS.get(values[name].lower(), values[name])
        try:
            type_validator(name, values[name], float | int if hints[name] is float else hints[name])
        except TypeError:
            kind = hints[name].__name__ if hints[name] in PLAIN else str(hints[name]).replace("typing.", "")
            raise ValueError(f"{where}: {name} must be {kind}, not {reprlib.repr(values[name])}.") from None
