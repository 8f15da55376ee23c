"""Understanding: questions about images, scored by the lmms-eval harness, with the values that the paper reports."""

# lmms-eval is not installed where types are checked.
# pyright: reportMissingImports=false

import contextlib
import difflib
import hashlib
import json
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...data.errors import reason
from ...data.world.lmms_tasks import TASKS as WORLD_TASKS
from ...data.world.lmms_tasks import write_tasks
from ...data.yaml_files import build_section
from ..results import write_json_lines
from ..suite import Evaluation, Report, SuiteOptions, fingerprints, require_at_least, sha256


TAKES = "checkpoint"
WORLD = "world"


@dataclass
class Benchmark:
    """Figure that a paper reports."""

    task: str = ""
    """Its name in lmms-eval."""
    metrics: list[str] = field(default_factory=list)
    """Metrics of the task whose sum is the figure."""
    scale: float = 1.0
    """Factor from the harness's figure to the paper's."""
    paper: float | None = None
    """Value that the paper reports."""
    judge: str | None = None
    """Environment variable with the key of the model that grades the answers, where the task needs one."""

    def __post_init__(self):
        if not self.task or not self.metrics:
            raise ValueError("give the `task` and the `metrics` of a benchmark.")


@dataclass
class Options(SuiteOptions):
    """Options of the suite `understanding`."""

    benchmarks: dict[str, Any] = field(default_factory=dict)
    """Figure -> fields of its `Benchmark`; tasks without a benchmark report the harness's metrics."""
    tasks: list[str] = field(default_factory=list)
    """Tasks to ask; empty: all of `task_folder`, or without one those of `benchmarks`."""
    task_folder: str | None = None
    """Folder of own tasks, which replace those of the harness; `world`: the questions of `evotok eval mini`."""
    questions: int | None = None
    """Most questions of each task."""

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 1, "questions")
        self.figures()  # raises their errors

    def figures(self) -> dict[str, Benchmark]:
        """Builds the benchmarks: figure -> benchmark."""
        return {name: build_section(Benchmark, own, f"benchmarks.{name}") for name, own in self.benchmarks.items()}


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError where the harness, a task, or the key of a task's grader is missing."""
    if find_spec("lmms_eval") is None:
        raise ValueError("the harness lmms-eval is not installed: pip install 'evotok[lmms]'.")
    folder = options.task_folder
    if folder == WORLD:
        known = in_folder = list(WORLD_TASKS)
    elif folder and not any(Path(folder).rglob("*.yaml")):
        raise ValueError(f"task_folder {folder}: no tasks (*.yaml) in it: give a folder of tasks for lmms-eval.")
    else:
        manager = _task_manager(folder)
        known, in_folder = manager.all_tasks, manager.all_subtasks
    tasks = _chosen(options, in_folder)
    if not tasks:
        raise ValueError("no tasks: give tasks=[...], such as tasks=[gqa,mme], or a task_folder.")
    for task in tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`lmms-eval tasks list` shows what there is."
            raise ValueError(f"task {task!r} is not known{f' in {folder}' if folder else ' to lmms-eval'}: {hint}")
    for name, benchmark in options.figures().items():
        if benchmark.task in tasks and benchmark.judge and not os.environ.get(benchmark.judge):
            raise ValueError(
                f"{name} is graded by a model behind a key: set {benchmark.judge}, or leave {benchmark.task} out "
                "with tasks=[...]."
            )
    return {} if folder == WORLD else fingerprints(options, "task_folder")


def run(evaluation: Evaluation) -> Report:
    """Runs the harness; the answers are written to the folder of results, a file for each task."""
    options, folder = evaluation.options, evaluation.options.task_folder
    if folder == WORLD:
        folder = str(evaluation.folder / "tasks")
        if evaluation.workers.is_main:
            write_tasks(Path(folder), options.questions or 512, options.seed)
        evaluation.workers.wait()
    found = _ask(evaluation, folder)
    if not evaluation.workers.is_main:
        return Report({})  # the harness gathers the results on the main process
    data = {}
    for task, samples in found["samples"].items():
        samples = sorted(samples, key=lambda sample: sample["doc_id"])  # they are gathered process by process
        write_json_lines(evaluation.folder / f"answers-{task}.jsonl", map(_answer, samples))
        questions = [[sample["doc_id"], sample["doc"], sample["target"]] for sample in samples]
        data[task] = hashlib.sha256(json.dumps(questions, default=str).encode()).hexdigest()
    if folder:  # a YAML file may contain the path of the folder
        paths = (path for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".yaml")
        data["task_folder"] = sha256(*sorted(paths))
    notes = [f"Asked and scored by lmms-eval {version('lmms-eval')}; the answers are in `answers-*.jsonl`."]
    if options.questions is not None:
        notes.append(f"At most {options.questions} questions of each task.")
    return Report(figures_of(found, options.figures()), {"harness": _rows(found)}, data, notes=notes)


def figures_of(found: dict[str, Any], benchmarks: dict[str, Benchmark]) -> dict[str, float]:
    """Computes the figures of the benchmarks, then those of other tasks, from the harness's results.

    Raises:
        ValueError: a task lacks the metric of a benchmark.
    """
    rows: dict[str, dict[str, float]] = {}
    for row in _rows(found):
        rows.setdefault(row["task"], {})[row["metric"]] = row["value"]
    figures: dict[str, float] = {}
    for name, benchmark in benchmarks.items():
        if benchmark.task not in rows:
            continue
        metrics = rows[benchmark.task]
        for metric in benchmark.metrics:
            if metric not in metrics:
                raise ValueError(f"{name}: task {benchmark.task} has no metric {metric!r}, but {', '.join(metrics)}.")
        figures[name] = benchmark.scale * sum(metrics[metric] for metric in benchmark.metrics)
        if benchmark.paper is not None:
            figures[f"{name}_paper"] = benchmark.paper
        figures |= _count(found, name, benchmark.task)
    named = {benchmark.task for benchmark in benchmarks.values()}
    for task, metrics in rows.items():
        if task not in named:
            figures |= {task if len(metrics) == 1 else f"{task}_{metric}": value for metric, value in metrics.items()}
            figures |= _count(found, task, task)
    return figures


def _count(found: dict[str, Any], name: str, task: str) -> dict[str, int]:
    """Returns the number of questions of a figure; the harness has none for groups of tasks."""
    return {f"{name}_n": found["n-samples"][task]["effective"]} if task in found["n-samples"] else {}


def _ask(evaluation: Evaluation, folder: str | None) -> dict[str, Any]:
    """Returns the harness's results, None on all but the main process; its prints are redirected to stderr."""
    options = evaluation.options
    with contextlib.redirect_stdout(sys.stderr):
        from lmms_eval.evaluator import simple_evaluate
        from tenacity import RetryError

        from ..harness import EvoTokChat

        manager = _task_manager(folder)
        tasks = _chosen(options, manager.all_subtasks)
        assert evaluation.load is not None
        try:
            return simple_evaluate(
                model=EvoTokChat(*evaluation.load(), options.batch_size),
                tasks=tasks,
                task_manager=manager,
                limit=options.questions,
                bootstrap_iters=0,
                log_samples=True,
                random_seed=options.seed,
                numpy_random_seed=options.seed,
                torch_random_seed=options.seed,
                # Folder of submissions, and scoring without images, as the harness's command line sets them.
                cli_args=SimpleNamespace(output_path=str(evaluation.folder), process_with_media=False),
            )
        except RetryError as error:  # data that cannot be fetched, or answers that cannot be scored
            found = reason(error.last_attempt.exception())
            raise ValueError(f"lmms-eval failed on one of {', '.join(tasks)}: {found}") from error


def _task_manager(folder: str | None) -> Any:
    """Builds the harness's index of tasks: its own, or those of a folder."""
    with contextlib.redirect_stdout(sys.stderr):
        from lmms_eval.tasks import TaskManager

        return TaskManager("WARNING", include_path=folder, include_defaults=folder is None, model_name="evotok")


def _chosen(options: Options, in_folder: Collection[str]) -> list[str]:
    """Returns the tasks to run: those of the options, else all of the folder, else those of the benchmarks."""
    benchmarks = dict.fromkeys(benchmark.task for benchmark in options.figures().values())
    return list(options.tasks or (sorted(in_folder) if options.task_folder else benchmarks))


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns every metric that the harness reports, without standard errors."""
    rows = []
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, _, answers_filter = key.partition(",")
            if answers_filter and "_stderr" not in metric and isinstance(value, int | float):
                rows.append({"task": task, "metric": metric, "filter": answers_filter, "value": float(value)})
    return rows


def _answer(sample: dict[str, Any]) -> dict[str, Any]:
    """Returns a line of a file of answers."""
    return {"question": sample["doc_id"], "answer": sample["filtered_resps"][0], "wanted": str(sample["target"])}
