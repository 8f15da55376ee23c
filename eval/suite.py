"""Interface of the suites of `evotok eval`.

A suite is a module of `eval/suites/` with

    TAKES                    "checkpoint", "tokenizer" (a full checkpoint is accepted, too), "results" (folders), or ""
    Options                  a dataclass derived from `SuiteOptions`; every field has a default and a docstring
    check(options, inputs)   raises ValueError for bad options before any long computation; returns fingerprints of the
                             files that the options name: name -> SHA-256
    run(evaluation)          measures, writes images into `evaluation.folder`, returns a `Report`

`results.py` writes the report into the folder of results.
"""

import hashlib
import json
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from tqdm.auto import tqdm

from ..data.atomic_files import atomic_file
from ..data.processes import Workers


MEASURING_PACKAGES = ("torchmetrics", "scikit-learn", "scipy", "torch-fidelity", "lmms-eval", "datasets")


@dataclass
class SuiteOptions:
    """Options of every suite."""

    batch_size: int = 32
    """Images, questions or prompts of a batch."""
    seed: int = 0
    """Of all random choices."""

    def __post_init__(self):
        require_at_least(self, 1, "batch_size")


def require_packages(*names: str) -> None:
    """Raises ValueError for a missing package of the extra `eval`."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"the package {name} is missing: pip install 'evotok[eval]'")


def require_at_least(options: Any, least: float, *names: str) -> None:
    """Raises ValueError where a numeric option is below its minimum; an option that is None has none."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{name}={value} must be at least {least}.")


@dataclass
class Report:
    """Results of a suite, or of one part of it."""

    figures: dict[str, float]
    """Name -> number; a target, baseline, published value or count has the name with `_target`, `_baseline`, `_paper`
    or `_n`."""
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Name -> rows with the same keys."""
    data: dict[str, str] = field(default_factory=dict)
    """Data that was measured on: name -> fingerprint."""
    images: dict[str, str] = field(default_factory=dict)
    """Image file in the folder -> caption; the key of written results is `pictures`."""
    notes: list[str] = field(default_factory=list)
    """Sentences that explain the figures."""
    dtype: str | None = None
    """Precision of the model, where it is not the one that the checkpoint was loaded in."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the report with the keys of `results.json`."""
        return {"pictures" if name == "images" else name: value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Returns the report of [`Report.to_dict`]."""
        return cls(**{"images" if name == "pictures" else name: value for name, value in values.items()})


@dataclass
class Evaluation:
    """One run of a suite."""

    options: Any
    inputs: list[str]
    folder: Path
    workers: Workers
    load: Callable[[], tuple[Any, Any]] | None = None
    """Returns (model, processor) of a checkpoint, or (tokenizer, image processor), in evaluation mode."""
    files: dict[str, str] = field(default_factory=dict)
    """Fingerprints from `check`, and `checkpoint_settings`: of the checkpoint's files beside its weights."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that compute the figures."""
    checkpoint_sha256: str | None = None
    """Fingerprint of the checkpoint's weights."""
    servers: Any = None
    """Pool of servers that run the checkpoint, with `generate_images` and `at_once` (open requests); None: this process
    generates the images."""

    def measure_part(self, name: str, measure: Callable[[], Report]) -> Report:
        """Returns the report of a part: from a run that was interrupted, else measured and kept in `parts/`.

        All processes call this together. A part of other weights, options or files is measured again.

        Args:
            name: of the part's file, without suffix.
            measure: returns the same report on every process.
        """
        settings = {"options": vars(self.options), "files": self.files, "checkpoint_sha256": self.checkpoint_sha256}
        settings = json.loads(json.dumps(settings))
        path = self.folder / "parts" / f"{name}.json"
        kept = self.workers.once(lambda: _read_part(path, settings))
        if kept is not None:
            return Report.from_dict(kept)
        report = measure()
        if self.workers.is_main:
            with atomic_file(path) as part:
                part.write_text(json.dumps({"settings": settings, "part": report.to_dict()}), encoding="utf-8")
        return report

    def remove_parts(self) -> None:
        """Removes the files of parts, once the results hold all of them."""
        if self.workers.is_main:
            shutil.rmtree(self.folder / "parts", ignore_errors=True)


def _read_part(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found["part"] if found["settings"] == settings else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sha256(*paths: Path) -> str:
    """Computes the fingerprint of files, one after the other; several files have a progress bar."""
    digest = hashlib.sha256()
    for path in tqdm(paths, "fingerprint", unit="file", disable=None if len(paths) > 1 else True, leave=False):
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def fingerprints(options: SuiteOptions, *names: str) -> dict[str, str]:
    """Computes fingerprints of the files and folders that options name; the main process reads, all call it together.

    Args:
        names: of the options; those that name no existing path are left out.

    Returns:
        Option -> SHA-256 of a file's content, or of the names and contents of all files in a folder.
    """
    paths = {name: Path(path) for name in names if (path := getattr(options, name)) and Path(path).exists()}
    return Workers().once(lambda: {name: _fingerprint(path) for name, path in paths.items()})


def _fingerprint(path: Path) -> str:
    if path.is_file():
        return sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = [file.relative_to(path).as_posix() for file in files]
    return hashlib.sha256(json.dumps([names, sha256(*files)]).encode()).hexdigest()


def versions(evotok_version: str) -> dict[str, str]:
    """Returns the versions of the packages that figures depend on, those that are installed."""
    found = {
        "evotok": evotok_version,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    for name in MEASURING_PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
