"""Rows of a benchmark, dictionaries with a `name` and figures, as JSON and as text."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...data.atomic_files import atomic_file


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
    """Builds the row of a work with a reference and a floor; `ratio` is the reference's time by ours."""
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
    """Renders rows as a JSON list."""
    return json.dumps(rows, indent=1) + "\n"


def save_row(path: str | Path, row: Row) -> None:
    """Adds a row to a JSON file, in place of the row of the same name; creates the file if it is missing."""
    path = Path(path)
    rows = {kept["name"]: kept for kept in json.loads(path.read_text(encoding="utf-8"))} if path.exists() else {}
    with atomic_file(path) as part:
        part.write_text(to_json([*(rows | {row["name"]: row}).values()]), encoding="utf-8")


def to_text(rows: Sequence[Row]) -> str:
    """Renders rows as text, a paragraph for each row."""
    return "\n\n".join(
        "\n".join([row["name"], *(f"  {_line(*item)}" for item in row.items() if item[0] != "name")]) for row in rows
    )


def _line(key: str, value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        value = f"{value:.4g}"
    return f"{key.replace('_', ' '):24} {'not measured' if value is None else value}"
