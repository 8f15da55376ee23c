"""Folders of results beside each other: one table, one plot."""

from dataclasses import dataclass

from ..plots import figure, save
from ..suite import Evaluation, Report, SuiteOptions, read_results


TAKES = "results"
_BESIDE = ("_target", "_baseline", "_paper", "_n")


@dataclass
class Options(SuiteOptions):
    """Nothing but what every suite has."""


def check(options: Options, inputs: list[str]) -> None:
    """Raises ValueError unless all folders have finished results of one suite."""
    found = {folder: read_results(folder) for folder in inputs}
    suites = {results["suite"] for results in found.values()}
    if len(suites) > 1:
        raise ValueError(f"results of different suites ({', '.join(sorted(suites))}): compare those of one.")
    for folder, results in found.items():
        if not results["finished"]:
            raise ValueError(f"{folder}: this evaluation was cut off: run it again to its end.")


def run(evaluation: Evaluation) -> Report:
    """A row for each figure that all folders have, a column for each folder."""
    found = {folder: read_results(folder)["figures"] for folder in evaluation.inputs}
    first = next(iter(found.values()))
    names = [name for name in first if not name.endswith(_BESIDE) and all(name in own for own in found.values())]
    rows = [{"figure": name} | {folder: own[name] for folder, own in found.items()} for name in names]
    if evaluation.workers.is_main:
        evaluation.folder.mkdir(parents=True, exist_ok=True)
        _plot(evaluation, names, found)
    figures = {f"{name} ({folder})": own[name] for name in names for folder, own in found.items()}
    return Report(figures, {"comparison": rows}, pictures={"comparison.svg": "each figure, a bar for each folder"})


def _plot(evaluation: Evaluation, names: list[str], found: dict[str, dict[str, float]]) -> None:
    """Small multiples, because figures have units of their own."""
    columns = min(4, len(names)) or 1
    with figure(-(-len(names) // columns) or 1, columns) as (canvas, axes):
        for axis, name in zip(axes.flat, names, strict=False):
            axis.barh(list(found), [own[name] for own in found.values()])
            axis.set_title(name.replace("_", " "))
            axis.invert_yaxis()
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        save(canvas, evaluation.folder / "comparison.svg")
