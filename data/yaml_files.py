"""Reads recipes in YAML: base files, overrides from the command line, sections as typed dataclasses.

Scalars follow the core schema of YAML 1.2: only `true` and `false` are booleans, so that `save_strategy: no` is a
string, and `1e-4` is a number. `yes`, `no`, `on` and `off` are accepted where a boolean is expected.
"""

import difflib
import re
import reprlib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from huggingface_hub.dataclasses import type_validator

from .errors import reason


PLAIN = (int, float, bool, str)
_MAX_BASES = 20
_MAX_BYTES = 1_000_000
_YAML_1_1_BOOLEANS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}


class _Loader(yaml.SafeLoader):
    """Loader with the scalars of YAML 1.2; PyYAML's are those of 1.1."""

    yaml_implicit_resolvers: dict = {}  # not shared with the base class

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """Builds an integer from 0o17, 0x1F or decimal digits; leading zeros are not octal."""
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
    """Reads a recipe and merges it over its bases.

    Args:
        path: the recipe.
        above: the recipes that it is a base of.

    Raises:
        ValueError: no such file, too large, not UTF-8, not YAML, or bases without end.
    """
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
    """Parses YAML. Aliases are refused, because a few lines of them expand to billions of values, and so is deep
    nesting, which takes PyYAML hours."""
    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{where}: aliases (*name) are not read: write the values out.")
            if depth > 50:
                raise ValueError(f"{where}: nested more than 50 deep: remove some brackets.")
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML: {reason(error)}: correct it.") from None
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except Exception as error:  # noqa: BLE001 - constructors raise any error of Python: `!!bool x` a KeyError
        raise ValueError(f"{where}: not YAML: {reason(error)}: correct it.") from None


def _merge(base: dict, difference: dict) -> dict:
    """Merges `difference` over `base`, section by section."""
    merged = dict(base)
    for key, value in difference.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def override(tree: dict, word: str) -> None:
    """Sets a value of `tree` by an argument like `section.key=value`; the value is read as YAML.

    Raises:
        ValueError: an argument of another form, or a key inside of a value that is no section.
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
    """Builds a dataclass from a section of YAML.

    Raises:
        ValueError: no mapping, an unknown key, or a value of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: give keys and values, not {reprlib.repr(values)}.")
    refuse_unknown(values, (f.name for f in fields(cls)), where)
    check_types(values, get_type_hints(cls), where)
    return cls(**values)


def refuse_unknown(given, known, where: str) -> None:
    """Raises ValueError for an unknown key, with the most similar known one.

    Args:
        where: the file or its section, for the message.
    """
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(sorted(known))}."
            raise ValueError(f"{where}: unknown key {key!r}.{hint}")


def check_types(values: dict, hints: dict[str, Any], where: str) -> None:
    """Raises ValueError for a value of another type than `hints` give for its name; `yes` and so on become booleans
    where one is expected."""
    for name in values.keys() & hints.keys():
        if hints[name] in (bool, bool | None) and isinstance(values[name], str):
            values[name] = _YAML_1_1_BOOLEANS.get(values[name].lower(), values[name])
        try:
            type_validator(name, values[name], float | int if hints[name] is float else hints[name])
        except TypeError:
            kind = hints[name].__name__ if hints[name] in PLAIN else str(hints[name]).replace("typing.", "")
            raise ValueError(f"{where}: {name} must be {kind}, not {reprlib.repr(values[name])}.") from None
