"""Names of modules that low-rank adapters are put on, plain ones: PEFT takes most of them for regular expressions."""

import re
import reprlib
from typing import Any


# These are matched in no time: names, any letters, one of several names.
_NAME = re.compile(r"[\w.]{1,500}")
_PATTERN = re.compile(r"(?:\.\*|\\\.|\w|\((?:\w+\|)*\w+\))+")
_MAX_ANY = 3
_PATTERNS = ("target_modules", "exclude_modules")
_KEYS = (*_PATTERNS, "modules_to_save", "layers_pattern", "target_parameters", "rank_pattern", "alpha_pattern")


def check_names(config: dict[str, Any], where: str) -> None:
    """Raises ValueError for modules that a config of adapters names by other than plain names, or a pattern of which
    `.*` and `(a|b)` are all that is not plain."""
    for key in _KEYS:
        value = config.get(key) or []
        if not _is_plain(value) and not (key in _PATTERNS and _is_pattern(value)):
            raise ValueError(
                f"{where}: {key} should be plain names of modules, not {reprlib.repr(value)}: write them out."
            )


def _is_plain(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return isinstance(names, (list, tuple, set, dict)) and all(_NAME.fullmatch(str(name)) for name in names)


def _is_pattern(text: Any) -> bool:
    return (
        isinstance(text, str)
        and len(text) <= 500
        and text.count(".*") <= _MAX_ANY
        and _PATTERN.fullmatch(text) is not None
    )
