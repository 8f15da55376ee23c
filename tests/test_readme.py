"""README and docs: generated blocks are current, numbers are the model's. Their code is in test_documents.py."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from evotok import EvoTokConfig, EvoTokForConditionalGeneration
from evotok.readme import DEPTH_FIGURES, MEMORY, RATES, TRAJECTORY, WORKS, blocks, fill, gained
from evotok.training.planning import rates
from evotok.training.planning.measure import CASES, MARGIN


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", blocks())
def test_generated_blocks_are_current(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert fill(text, blocks()[document]) == text, "run `python -m evotok.readme`"


def test_a_missing_block_is_named():
    with pytest.raises(ValueError, match="no block <!-- nothing -->"):
        fill("text", {"nothing": ""})


def test_the_tree_has_every_folder_and_file_of_code():
    tree, folders = blocks()["README.md"]["tree"], blocks()["README.md"]["folders"]
    for top in ("evotok", "modeling_evotok", "processing", "training", "eval"):
        for path in (ROOT / top).rglob("*.py"):
            folder = path.parent.relative_to(ROOT).as_posix()
            assert f"\n{folder}/\n" in tree, f"{folder}: missing in `TREE` of evotok/readme.py"
            assert f"\n{folder}/ " in folders, folder
            if path.name != "__init__.py":
                assert f"\n    {path.name} " in tree, f"{path}: its docstring says nothing"


def test_parameters_are_the_models():
    with torch.device("meta"):
        model = EvoTokForConditionalGeneration(EvoTokConfig())
    vq = model.model.vq_model
    parts = {
        "encoder": [vq.vision_tower],
        "to the latent space": [vq.to_latent],
        "codebooks": [vq.quantizer],
        "semantic decoder": [vq.semantic_decoder],
        "pixel decoder": [vq.pixel_decoder],
        r"\*\*image tokenizer\*\*": [vq],
        "semantic projector": [model.model.semantic_projector],
        "pixel projector": [model.model.pixel_projector],
        "depth decoder": [model.depth_decoder],
        "language model": [model.model.language_model, model.lm_head],
    }
    for name, modules in parts.items():
        count = sum(p.numel() for module in modules for p in module.parameters())
        said = re.search(rf"^\| {name} \|.*\| ([\d,]+) \|$", README, re.MULTILINE)
        assert said and said[1] == f"{count:,}", name


# --- docs/tokenizer.md ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trajectory():
    return json.loads(TRAJECTORY.read_text(encoding="utf-8"))


def test_the_trajectory_is_of_the_embedded_tokenizer(trajectory):
    """Its figures are those that `evotok measure` finds for the tokenizer that is there."""
    measured = json.loads((ROOT / "assets/evotok-mini/results.json").read_text(encoding="utf-8"))
    assert trajectory["options"]["images"] == measured["psnr_new_concept_n"]
    rows = {row["depth"]: row for row in trajectory["tables"]["by_depth"]}
    again = "run `evotok eval trajectory mini --out docs/results/trajectory`"
    for depth in (1, 2, 3, 4):
        assert rows[depth]["psnr"] == pytest.approx(measured[f"psnr_new_concept_depth{depth}"], abs=0.01), again
    for depth in (4, 8, 12, 16):
        expected = pytest.approx(measured[f"semantic_cosine_new_concept_depth{depth}"], abs=1e-3)
        assert rows[depth]["similarity_semantics"] == expected, again


def test_what_the_page_says_of_the_curves_is_so(trajectory):
    """Nearly everything comes with the pixels' levels, of meaning, too."""
    rows = {row["depth"]: row for row in trajectory["tables"]["by_depth"]}
    assert all(0.85 < gained(rows, name) < 1 for name in DEPTH_FIGURES)
    page = (ROOT / "docs/tokenizer.md").read_text(encoding="utf-8")
    assert f"on {trajectory['options']['images']} emoji" in page and "150 positions" in page
    assert trajectory["options"]["tokens"] == 150


def test_what_the_page_says_of_the_clusters_is_so(trajectory):
    """They go by colour more than by kind, at depth 16 as at depth 1."""
    found = trajectory["tables"]["clusters"]
    assert all(row["color"] > row["group"] for row in found)
    for label in ("group", "color"):
        assert np.ptp([row[label] for row in found]) < 0.05


def test_what_the_page_says_of_the_ways_is_so():
    """Most end near their beginning, and the long ones begin at shared entries."""
    with (TRAJECTORY.parent / "tsne.csv").open(newline="", encoding="utf-8") as file:
        points = np.array([[float(row["x"]), float(row["y"])] for row in csv.DictReader(file)]).reshape(150, 16, 2)
    first, last = points[:, 0], points[:, -1]
    moved = np.linalg.norm(last - first, axis=1)
    assert np.median(moved) < 0.05 * np.ptp(points, axis=(0, 1)).max()
    distances = np.linalg.norm(first[:, None] - first[None], axis=2)
    sharing = (distances < 1).sum(1)
    assert sharing[moved.argsort()[-12:]].mean() > 2 * sharing.mean()


# --- docs/train.md, docs/data.md --------------------------------------------------------------------------------------


def test_the_plan_is_right_about_memory_in_every_case_measured():
    rows = json.loads(MEMORY.read_text(encoding="utf-8"))
    assert {row["name"] for row in rows} == set(CASES)
    for row in rows:
        assert row["planned_bytes"] == pytest.approx(row["measured_bytes"], rel=MARGIN), row["name"]


def test_every_work_has_a_rate_with_one_thread_as_the_page_says():
    rows = json.loads(RATES.read_text(encoding="utf-8"))
    assert {row["name"] for row in rows} == set(rates.RATES) == set(WORKS)
    assert {row["threads"] for row in rows} == {1}
