"""Folder of results of `evotok eval`: `results.json`, `README.md` with the same content, and a CSV for each table.

`results.json` holds the report of a suite and its provenance: `suite`, `checkpoint`, `checkpoint_sha256`, `options`,
`files`, `versions`, `device`, `dtype` and `processes`.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..data.atomic_files import atomic_file
from .suite import Report


RESULTS = "results.json"


def load_results(path: Path) -> dict[str, Any] | None:
    """Loads a file of results; None if it has other content.

    Raises:
        FileNotFoundError: there is none.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return results if isinstance(results, dict) and {"suite", "figures", "finished"} <= results.keys() else None


def read_results(folder: str | Path) -> dict[str, Any]:
    """Reads `results.json` of a folder.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = Path(folder) / RESULTS
    try:
        results = load_results(path)
    except FileNotFoundError:
        raise ValueError(f"{folder}: no {RESULTS}: give a folder that `evotok eval` wrote.") from None
    if results is None:
        raise ValueError(f"{path}: holds no results of `evotok eval`: remove it, or give another folder.")
    return results


def find_finished(folder: Path, provenance: dict[str, Any], restart: bool) -> dict[str, Any] | None:
    """Returns the finished results of the same provenance in a folder, None where the suite has to run.

    Args:
        restart: run again; other weights, options or files are accepted then.

    Raises:
        ValueError: the folder holds results of another suite or other files; or, without `restart`, results of another
            checkpoint, of other options or of other files.
    """
    if not (folder / RESULTS).exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder}: has files, but no {RESULTS}: give a new folder with --out.")
        return None
    before = read_results(folder)
    if before["suite"] != provenance["suite"]:
        raise ValueError(f"{folder}: has results of another suite ({_short(before['suite'])}): give a new --out.")
    if restart:
        return None
    correction = "give a new folder with --out, or measure again with --restart."
    if before.get("checkpoint_sha256") != provenance["checkpoint_sha256"]:
        other = _short(before.get("checkpoint_sha256"))
        raise ValueError(f"{folder}: has results of another checkpoint ({other}): {correction}")
    for key in ("options", "files"):
        earlier, now = before.get(key, {}), provenance[key]
        names = sorted({*earlier, *now} - {"engine"})  # images do not depend on the engine that generated them
        changed = [name for name in names if earlier.get(name) != now.get(name)]
        if changed:
            raise ValueError(f"{folder}: has results of other {key} ({', '.join(changed)}): {correction}")
    return before if before["finished"] else None


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_results(folder: Path, provenance: dict[str, Any], report: Report | None) -> dict[str, Any]:
    """Writes the files of a report and returns the content of `results.json`; None marks a run that has begun."""
    found = report.to_dict() if report is not None else {"figures": {}}
    found["dtype"] = found.get("dtype") or provenance["dtype"]
    text = json.dumps(provenance | found | {"finished": report is not None}, indent=1) + "\n"
    results = json.loads(text)
    if report is not None:
        for name, rows in report.tables.items():
            write_csv(folder / f"{name}.csv", rows)
        _write(folder / "README.md", render_markdown(f"EvoTok: {results['suite']}", results))
    _write(folder / RESULTS, text)  # last: with it the others are complete
    return results


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the rows of a table as CSV."""
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(_lines(rows))


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows as JSON, one a line."""
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def render_markdown(title: str, results: dict[str, Any]) -> str:
    """Renders results as Markdown: figures, tables, images, provenance."""
    parts = [f"# {title}", *results.get("notes", [])]
    figures = results["figures"]
    if figures:
        parts.append(markdown_table(("figure", "value"), figures.items()))
    for name, rows in results.get("tables", {}).items():
        header, *lines = _lines(rows)
        parts += [f"## {name.replace('_', ' ').capitalize()}", markdown_table(header, lines)]
    parts += [f"![{caption}]({name})" for name, caption in results.get("pictures", {}).items()]
    keys = ("checkpoint", "checkpoint_sha256", "options", "files", "data", "versions", "device", "dtype", "processes")
    depends = {key: results[key] for key in keys}
    parts += ["## Measured with", "```json\n" + json.dumps(depends, indent=1) + "\n```"]
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Renders rows of cells as a Markdown table; floats have four significant digits."""
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _lines(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Returns the header and the values of rows, in its order."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [keys, *([row.get(key, "") for key in keys] for row in rows)]
