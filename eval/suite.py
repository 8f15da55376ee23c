"""What a suite of `evotok eval` is, and the folder of results that it leaves.

A suite is a module of `eval/suites/` with

    TAKES                    "checkpoint", "tokenizer" (a full checkpoint will do, too), "results" (folders), or ""
    Options                  a dataclass derived from `SuiteOptions`, every field with a default and a docstring
    check(options, inputs)   raises ValueError for what cannot work, before anything long begins; returns fingerprints
                             of the files that it was pointed at: name -> SHA-256
    run(evaluation)          measures, writes pictures into `evaluation.folder`, returns a `Report`

The folder holds `results.json` (figures, tables and all that they depend on), `README.md` with the same to read, a CSV
for each table, and the pictures.
"""

import csv
import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

from ..data.processes import Workers


RESULTS = "results.json"
MEASURED_WITH = ("torchmetrics", "scikit-learn", "scipy", "torch-fidelity", "lmms-eval", "datasets")


@dataclass
class SuiteOptions:
    """What every suite can be told."""

    batch_size: int = 32
    """Images, questions or prompts at a time."""
    seed: int = 0
    """Of everything that is drawn by lot."""

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")


@dataclass
class Report:
    """What a suite found."""

    figures: dict[str, float]
    """Name -> number, with `_target`, `_baseline`, `_paper` or `_n` beside a name where there is such a thing."""
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Name -> rows with the same keys."""
    data: dict[str, str] = field(default_factory=dict)
    """What was measured on: name -> fingerprint of its content."""
    pictures: dict[str, str] = field(default_factory=dict)
    """File in the folder -> what it shows."""
    notes: list[str] = field(default_factory=list)
    """Sentences a reader needs to understand the figures."""
    dtype: str | None = None
    """In what precision, where that is not what the checkpoint was loaded in."""


@dataclass
class Evaluation:
    """A suite under way."""

    options: Any
    inputs: list[str]
    folder: Path
    workers: Workers
    load: Callable[[], tuple[Any, Any]] | None = None
    """Gives (model, processor) of a checkpoint, or (tokenizer, image processor), in evaluation mode on its device."""
    files: dict[str, str] = field(default_factory=dict)
    """What `check` returned, and `checkpoint_settings`: all of the checkpoint but its weights."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of what figures depend on."""
    checkpoint_sha256: str | None = None
    """Of the checkpoint's weights."""
    servers: Any = None
    """Servers that run the checkpoint, with the method `generate_images` and how many requests they have open,
    `at_once`; None where this process generates."""


def sha256(*paths: Path) -> str:
    """Fingerprint of files, one after the other; many of them are told of by a progress bar."""
    digest = hashlib.sha256()
    for path in tqdm(paths, "fingerprint", unit="file", disable=None if len(paths) > 1 else True, leave=False):
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def fingerprints(options: SuiteOptions, *names: str) -> dict[str, str]:
    """Of what options point to: of a file its content, of a folder the names and contents of all files in it.

    All processes call this together, and the main one reads.

    Args:
        names: of the options; one that is not given, or is no path, has no fingerprint.
    """
    places = {name: Path(place) for name in names if (place := getattr(options, name)) and Path(place).exists()}
    return Workers().once(lambda: {name: _fingerprint(place) for name, place in places.items()})


def _fingerprint(path: Path) -> str:
    if path.is_file():
        return sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = [file.relative_to(path).as_posix() for file in files]
    return hashlib.sha256(json.dumps([names, sha256(*files)]).encode()).hexdigest()


def versions(evotok_version: str) -> dict[str, str]:
    """Of what figures depend on."""
    found = {
        "evotok": evotok_version,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    for name in MEASURED_WITH:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def read_results(folder: str | Path) -> dict[str, Any]:
    """`results.json` of a folder.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = Path(folder) / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(results, dict) and {"suite", "figures", "finished"} <= results.keys():
            return results
    except FileNotFoundError:
        raise ValueError(f"{folder}: no {RESULTS}: give a folder that `evotok eval` wrote.") from None
    except (ValueError, RecursionError):
        pass
    raise ValueError(f"{path}: holds no results of `evotok eval`: remove it, or give another folder.")


def begin(folder: Path, circumstances: dict[str, Any], restart: bool) -> dict[str, Any] | None:
    """The results of the folder if it is finished and of the same circumstances; None if there is work to do.

    Args:
        circumstances: `suite`, `checkpoint_sha256`, `options`, `files` and whatever else the figures depend on.
        restart: measure again, another checkpoint or with other options or files if they have changed.

    Raises:
        ValueError: the folder has results of another suite or is full of something else; or, without `restart`, of
            another checkpoint, of other options or files.
    """
    if not (folder / RESULTS).exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder}: has files, but no {RESULTS}: give a new folder with --out.")
        return None
    before = read_results(folder)
    if before["suite"] != circumstances["suite"]:
        raise ValueError(f"{folder}: has results of another suite ({_short(before['suite'])}): give a new --out.")
    if restart:
        return None
    mend = "give a new folder with --out, or measure anew with --restart."
    if before.get("checkpoint_sha256") != circumstances["checkpoint_sha256"]:
        other = _short(before.get("checkpoint_sha256"))
        raise ValueError(f"{folder}: has results of another checkpoint ({other}): {mend}")
    for key in ("options", "files"):
        earlier, now = before.get(key, {}), circumstances[key]
        names = sorted({*earlier, *now} - {"engine"})  # who generated pictures makes none of them another
        changed = [name for name in names if earlier.get(name) != now.get(name)]
        if changed:
            raise ValueError(f"{folder}: has results of other {key} ({', '.join(changed)}): {mend}")
    return before if before["finished"] else None


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_json(circumstances: dict[str, Any], report: Report | None) -> str:
    """Content of `results.json`; without a report that of work begun."""
    found = asdict(report) if report is not None else {"figures": {}}
    found["dtype"] = found.get("dtype") or circumstances["dtype"]
    return json.dumps(circumstances | found | {"finished": report is not None}, indent=1) + "\n"


def as_csv(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Header and rows, for `csv.writer`."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [keys, *([row.get(key, "") for key in keys] for row in rows)]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of a table as a file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(as_csv(rows))


def as_markdown(title: str, results: dict[str, Any]) -> str:
    """Results for a reader: figures, tables, pictures, and what they depend on."""
    parts = [f"# {title}", *results.get("notes", [])]
    figures = results["figures"]
    if figures:
        parts.append(markdown_table([{"figure": name, "value": value} for name, value in figures.items()]))
    for name, rows in results.get("tables", {}).items():
        parts += [f"## {name.replace('_', ' ').capitalize()}", markdown_table(rows)]
    parts += [f"![{what}]({name})" for name, what in results.get("pictures", {}).items()]
    keys = ("checkpoint", "checkpoint_sha256", "options", "files", "data", "versions", "device", "dtype", "processes")
    depends = {key: results[key] for key in keys}
    parts += ["## Measured with", "```json\n" + json.dumps(depends, indent=1) + "\n```"]
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    header, *lines = as_csv(rows)
    lines = [[_cell(value) for value in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(map(str, header)), ["---"] * len(header), *lines])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
