"""Comparison of folders of results: one table, one plot."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..plotting.style import figure, save
from ..results import RESULTS, read_results
from ..suite import Evaluation, Report, SuiteOptions, sha256


TAKES = "results"
_BESIDE = ("_target", "_baseline", "_paper", "_n")


@dataclass
class Options(SuiteOptions):
    """Options of the suite `compare`."""


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError unless all folders have finished results of one suite, and a figure in common."""
    found = {folder: read_results(folder) for folder in inputs}
    suites = {results["suite"] for results in found.values()}
    if len(suites) > 1:
        raise ValueError(f"results of different suites ({', '.join(sorted(suites))}): compare those of one.")
    for folder, results in found.items():
        if not results["finished"]:
            raise ValueError(f"{folder}: this evaluation was interrupted: run it again to its end.")
    if not _common(found):
        raise ValueError(f"{', '.join(inputs)}: no figure is in all of them: compare those of the same options.")
    return {folder: sha256(Path(folder) / RESULTS) for folder in inputs}


def run(evaluation: Evaluation) -> Report:
    """Compares the figures that all folders have: a row for each figure, a column for each folder."""
    results = {folder: read_results(folder) for folder in evaluation.inputs}
    names, found = _common(results), {folder: own["figures"] for folder, own in results.items()}
    rows = [{"figure": name} | {folder: own[name] for folder, own in found.items()} for name in names]
    if evaluation.workers.is_main:
        evaluation.folder.mkdir(parents=True, exist_ok=True)
        _plot(evaluation, names, found)
    figures = {f"{name} ({folder})": own[name] for name in names for folder, own in found.items()}
    return Report(figures, {"comparison": rows}, images={"comparison.svg": "each figure, a bar for each folder"})


def _common(results: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the figures that all results have, without targets, baselines, published values and counts."""
    first, *others = (own["figures"] for own in results.values())
    return [name for name in first if not name.endswith(_BESIDE) and all(name in own for own in others)]


def _labels(folders: list[str]) -> list[str]:
    """Returns the folders without the path that they share, which would leave no room for bars."""
    paths = [Path(folder).absolute() for folder in folders]
    shared = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(shared).as_posix() for path in paths]


def _plot(evaluation: Evaluation, names: list[str], found: dict[str, dict[str, float]]) -> None:
    """Plots each figure on axes of its own, because units differ."""
    columns = min(4, len(names))
    labels = _labels(list(found))
    with figure(-(-len(names) // columns), columns) as (canvas, axes):
        for axis, name in zip(axes.flat, names, strict=False):
            axis.barh(labels, [own[name] for own in found.values()])
            axis.set_title(name.replace("_", " "))
            axis.invert_yaxis()
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        save(canvas, evaluation.folder / "comparison.svg")
