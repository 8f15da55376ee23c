"""README and docs: generated blocks are current, numbers equal the model's. Code blocks are in test_documents.py."""

import json
import re
from pathlib import Path

import pytest
import torch

from evotok import EvoTokConfig, EvoTokForConditionalGeneration
from evotok.cards.suites import MINI, read_suite
from tools import measure_rates as rates
from tools.fill_documents import (
    DEPTH_FIGURES,
    DEPTHS_SHOWN,
    MEMORY,
    RATES,
    TRAJECTORY,
    WORKS,
    blocks,
    clusters_table,
    depths_table,
    engine_table,
    fill,
    folders,
)
from tools.measure_memory import CASES, MARGIN


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", blocks())
def test_generated_blocks_are_current(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert fill(text, blocks()[document]) == text, "run `python -m tools.fill_documents`"


def test_fill_refuses_a_missing_block():
    with pytest.raises(ValueError, match="no block <!-- nothing -->"):
        fill("text", {"nothing": ""})


def test_folders_lists_all_folders_of_code():
    listed = re.findall(r"^(\S+)/ ", folders(), re.MULTILINE)
    assert all((ROOT / folder).is_dir() for folder in listed)
    for top in ("evotok", "modeling_evotok", "processing", "data", "training", "eval", "tools"):
        for path in (ROOT / top).rglob("*.py"):
            folder = path.parent.relative_to(ROOT).as_posix()
            assert folder in listed, f"{folder}: missing in `FOLDERS` of tools/fill_documents.py"


def test_parameter_counts_equal_the_model():
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


def test_trajectory_is_of_the_embedded_tokenizer(trajectory):
    """Its figures equal those of `evotok eval mini` for the embedded tokenizer."""
    measured = read_suite(ROOT / "assets/evotok-mini/results.json", MINI)["figures"]
    assert trajectory["options"]["images"] == measured["psnr_new_style_n"]
    rows = {row["depth"]: row for row in trajectory["tables"]["by_depth"]}
    again = "run `evotok eval trajectory mini --out docs/results/trajectory`"
    for depth in (1, 2, 3, 4):
        assert rows[depth]["psnr"] == pytest.approx(measured[f"psnr_new_style_depth{depth}"], abs=0.01), again
    for depth in (4, 8, 12, 16):
        for name, figure in (("similarity_semantics", "semantic_cosine"), ("probe", "probe")):
            assert rows[depth][name] == pytest.approx(measured[f"{figure}_depth{depth}"], abs=2e-3), again


def test_tokenizer_page_has_the_measured_counts(trajectory):
    page = (ROOT / "docs/tokenizer.md").read_text(encoding="utf-8")
    assert f"{trajectory['options']['images']} scenes" in page
    assert f"{trajectory['options']['tokens']} positions" in page


def test_trajectory_tables_have_the_shares_of_the_gain():
    rows = [{"depth": depth} | dict.fromkeys(DEPTH_FIGURES, 0.1 * depth) for depth in DEPTHS_SHOWN]
    for row, value in zip(rows, (20, 22, 23, 24, 24.5, 25), strict=True):
        row["psnr"] = value
    lines = depths_table({"tables": {"by_depth": rows}}).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[5].startswith("| 4 | 24.0 |") and lines[-1].startswith(
        "| of the change from 1 to 16, by level 4 | 80% | 20%"
    )
    clusters = [{"depth": 1, "background": 0.3, "thing": 0.125, "color": 0.2}]
    assert clusters_table({"tables": {"clusters": clusters}}).splitlines()[-1] == "| 1 | 0.12 | 0.20 | 0.30 |"


# --- docs/performance.md ----------------------------------------------------------------------------------------------


def test_engine_table_leaves_out_rows_without_a_time(tmp_path):
    where = {"device": "cuda", "size": "paper", "machine": "NVIDIA H100"}
    rows = [
        {"name": "train_step_graph", "seconds": 0.004, "over_search": 1.25, "floor_multiple": 1.5},
        {"name": "int8", "note": "not measured"},
        {"name": "compiled", "reference": "a loop", "seconds": 2, "ratio": 2, "cold_seconds": 80, "warm_seconds": 9.6},
        {"name": "language_model", "seconds": 1.5, "floor_multiple": 1.25},
        {"name": "generate", "note": "stopped after 240 seconds"},
    ]
    (tmp_path / "h100-a.json").write_text(json.dumps([row | where for row in rows]))
    step = {"name": "sft_lora", "seconds": 2, "mfu": 0.4, "rows_a_step": 16}
    (tmp_path / "h100-train-paper.json").write_text(json.dumps([step | where]))
    assert engine_table(tmp_path).splitlines()[2:] == [
        "| NVIDIA H100 | the same, as a CUDA graph | 4 ms | the search alone | 0.8 | 1.50 |",
        "| NVIDIA H100 | an image, guided, by the 7B model, compiled, the first after 80 s, 10 s from the cache "
        "| 2 s | a loop | 2 |  |",
        "| NVIDIA H100 | of it, the language model | 1.5 s |  |  | 1.25 |",
        "| NVIDIA H100 | training step `sft_lora`, 16 rows | 2 s |  |  | 2.50 |",
    ]


# --- docs/train.md, docs/data.md --------------------------------------------------------------------------------------


def test_planned_memory_is_near_the_measured():
    rows = json.loads(MEMORY.read_text(encoding="utf-8"))
    assert {row["name"] for row in rows} == set(CASES)
    for row in rows:
        assert row["planned_bytes"] == pytest.approx(row["measured_bytes"], rel=MARGIN), row["name"]


def test_rates_are_measured_with_one_thread():
    rows = json.loads(RATES.read_text(encoding="utf-8"))
    assert {row["name"] for row in rows} == set(rates.RATES) == set(WORKS)
    assert {row["threads"] for row in rows} == {1}
