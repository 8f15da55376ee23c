"""The suite `understanding` without lmms-eval; test_lmms_eval.py has the rest."""

import importlib.util
from pathlib import Path

import pytest

from evotok.commands.evaluate import read_options
from evotok.eval.suites import understanding
from evotok.eval.suites.understanding import Options, check, figures_of


ROOT = Path(__file__).resolve().parents[1]
FOUND = {
    "results": {
        "mme": {"alias": "mme", "mme_perception_score,none": 1400.0, "mme_cognition_score,none": 300.0},
        "gqa": {"alias": "gqa", "exact_match,none": 0.5, "exact_match_stderr,none": 0.01},
        "qa_color": {"alias": "qa_color", "exact_match,none": 0.25, "exact_match_stderr,none": "N/A"},
    },
    "n-samples": {name: {"original": 9, "effective": 8} for name in ("mme", "gqa", "qa_color")},
}


@pytest.fixture
def paper():
    return read_options(Options, "understanding", str(ROOT / "configs/eval/understanding.yaml"), []).figures()


def test_figures_of_benchmarks_have_the_scale_of_the_paper(paper):
    assert figures_of(FOUND, paper) == {
        "GQA": 50.0,
        "GQA_paper": 61.8,
        "GQA_n": 8,
        "MME": 1700.0,
        "MME_paper": 1895.1,
        "MME_n": 8,
        "MME-P": 1400.0,
        "MME-P_paper": 1455.9,
        "MME-P_n": 8,
        "qa_color": 0.25,
        "qa_color_n": 8,
    }


def test_figures_of_refuses_a_missing_metric():
    options = Options(benchmarks={"GQA": {"task": "gqa", "metrics": ["accuracy"]}})
    with pytest.raises(ValueError, match="task gqa has no metric 'accuracy', but exact_match"):
        figures_of(FOUND, options.figures())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"questions": 0}, "questions=0"),
        ({"benchmarks": {"GQA": {"task": "gqa"}}}, "the `metrics` of a benchmark"),
        ({"benchmarks": {"GQA": {"task": "gqa", "metric": ["x"]}}}, "Did you mean 'metrics'"),
    ],
)
def test_bad_options_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Options(**given)


def test_check_names_the_missing_harness(monkeypatch):
    monkeypatch.setattr(understanding, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lmms-eval is not installed: pip install 'evotok\[lmms\]'"):
        check(Options(), ["mini"])


@pytest.fixture
def harness(monkeypatch):
    """Makes lmms-eval count as installed; tasks of the world require no more of it."""
    monkeypatch.setattr(understanding, "find_spec", lambda name: importlib.util.spec_from_loader(name, None))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task_folder": "world", "tasks": ["qa_colour"]}, "did you mean 'qa_color'"),
        ({"task_folder": "nowhere"}, "task_folder nowhere: no tasks"),
    ],
)
def test_check_refuses_unknown_tasks(harness, given, message):
    with pytest.raises(ValueError, match=message):
        check(Options(**given), ["mini"])


def test_check_requires_the_key_of_a_grader(harness, monkeypatch):
    monkeypatch.delenv("GRADERS_KEY", raising=False)
    benchmark = {"task": "qa_color", "metrics": ["exact_match"], "judge": "GRADERS_KEY"}
    options = Options(task_folder="world", benchmarks={"colors": benchmark})
    with pytest.raises(ValueError, match=r"colors is graded .* set GRADERS_KEY, or leave qa_color out"):
        check(options, ["mini"])
    monkeypatch.setenv("GRADERS_KEY", "x")
    check(options, ["mini"])
