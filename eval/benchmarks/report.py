"""Rows of a benchmark: dictionaries with a `name` and figures, as JSON and as lines to read."""

import json
import math
from collections.abc import Sequence
from typing import Any


Row = dict[str, Any]


def comparison(
    name: str,
    reference: str,
    seconds: float,
    reference_seconds: float,
    floor_seconds: float,
    peak: float | None,
    equal: bool,
) -> Row:
    """The row of a work that has a reference and a floor; `ratio` says how many times faster than the reference."""
    return {
        "name": name,
        "reference": reference,
        "seconds": seconds,
        "reference_seconds": reference_seconds,
        "ratio": reference_seconds / seconds,
        "floor_seconds": floor_seconds,
        "floor_multiple": seconds / floor_seconds,
        "peak_extra_mib": peak,
        "equal": equal,
    }


def to_json(rows: Sequence[Row]) -> str:
    """The rows as a JSON list."""
    return json.dumps(rows, indent=1) + "\n"


def to_text(rows: Sequence[Row]) -> str:
    """One paragraph a row."""
    return "\n\n".join(
        "\n".join([row["name"], *(f"  {_line(*item)}" for item in row.items() if item[0] != "name")]) for row in rows
    )


def _line(key: str, value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        value = f"{value:.4g}"
    return f"{key.replace('_', ' '):24} {'not measured' if value is None else value}"
