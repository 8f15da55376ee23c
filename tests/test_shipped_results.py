"""The results in `docs/results` belong to the embedded weights and to the shipped configurations."""

import json
from pathlib import Path

import pytest

from evotok.commands.evaluate import read_options, suite_module
from evotok.eval.suite import sha256
from evotok.training.ablations.suite import ROWS


ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "assets/evotok-mini"
OF_MINI = {  # folder -> suite, configuration
    "trajectory": ("trajectory", None),
    "mini": ("mini", None),
    "understanding-world": ("understanding", "configs/eval/understanding-world.yaml"),
}


def finished(folder: str, suite: str, config: str | None, dtype: str = "float32") -> dict:
    """Returns results after a check that they are finished and have the shipped options."""
    results = json.loads((ROOT / "docs/results" / folder / "results.json").read_text(encoding="utf-8"))
    options = suite_module(suite).Options
    assert results["suite"] == suite and results["finished"]
    assert results["options"] == vars(read_options(options, suite, config and str(ROOT / config), []))
    assert results["dtype"] == dtype and {"torch", "transformers"} < results["versions"].keys()
    return results


@pytest.mark.parametrize("folder", OF_MINI)
def test_results_are_of_the_embedded_weights(folder):
    results = finished(folder, *OF_MINI[folder])
    assert results["checkpoint_sha256"] == sha256(*sorted(MINI.glob("*.safetensors"))), (
        f"run `evotok eval {OF_MINI[folder][0]}` again"
    )


@pytest.mark.parametrize(("name", "folder"), [("results.json", "mini"), ("understanding.json", "understanding-world")])
def test_results_beside_the_checkpoint_equal_the_shipped_ones(name, folder):
    found = ROOT / "docs/results" / folder
    again = f"python -m evotok.cards.mini mini {found.relative_to(ROOT)}"
    assert (MINI / name).read_bytes() == (found / "results.json").read_bytes(), again


def test_notes_have_the_version_of_the_harness():
    results = json.loads((MINI / "understanding.json").read_text(encoding="utf-8"))
    assert results["versions"]["lmms-eval"] in " ".join(results["notes"])


def test_ablations_have_the_shipped_options():
    results = finished("ablations", "ablations", None, "bfloat16 autocast")
    runs = results["tables"]["runs"]
    seeds = {run["seed"] for run in runs}
    assert len(seeds) >= 3 and len(runs) == 15 == len(ROWS) * len(seeds)
    assert {(run["row"], run["seed"]) for run in runs} == {(row, seed) for row in ROWS for seed in seeds}
    assert "](results/ablations/README.md)" in (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
