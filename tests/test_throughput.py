"""`evotok bench train`: rows at widths of a test, recipes of the paper's size, counts of a batch."""

import shutil

import pytest
import torch

from evotok.eval.benchmarks.meters import Setting
from evotok.training.planning.gpus import GPUS
from evotok.training.planning.plan import make_plan
from evotok.training.recipes import read_recipe
from evotok.training.stages import STAGES
from evotok.training.throughput import benchmark, cases
from evotok.training.throughput.cases import CASES, missing, overrides, recipe_path
from evotok.training.throughput.materials import SHAPES, build_processor, write_config
from evotok.training.train import training_arguments


TINY = Setting(dtype=torch.float32, size="tiny", repeats=2)
PAPER = Setting(size="paper", repeats=2)


def rows(*names):
    return {row["name"]: row for row in benchmark.run(TINY, names)}


def test_rows_agree_with_themselves_and_with_each_other():
    found = rows("tokenizer", "gen_lora", "gen_lora_codes")
    assert list(found) == ["tokenizer", "gen_lora", "gen_lora_codes"]
    for row in found.values():
        assert row["rows_a_step"] == row["steps"] == 2
        assert row["images_per_second"] * row["seconds"] == pytest.approx(2)
        assert 0 < row["data_seconds"] < row["seconds"]
        assert row["data_share"] * row["seconds"] == pytest.approx(row["data_seconds"])
        work = row["model_gflops_a_step"] / row["matmul_gflops"]
        assert row["mfu"] * row["seconds"] == pytest.approx(work)
        assert row["planned_mib"] > 0.5
    tokenizer, images, codes = found.values()
    assert tokenizer["tokens_per_second"] * tokenizer["seconds"] == pytest.approx(2 * 16)  # positions
    tokens = images["tokens_per_second"] * images["seconds"]
    assert tokens > 2 * (16 + 6) and tokens == pytest.approx(codes["tokens_per_second"] * codes["seconds"], rel=0.2)


def test_a_row_that_fails_leaves_the_others(monkeypatch):
    def fail(case, *args):
        if case.name == "tokenizer":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB.")
        return {"name": case.name}

    monkeypatch.setattr(benchmark, "_row", fail)
    first, second, *_ = benchmark.run(TINY)
    assert first["name"] == "tokenizer" and first["note"].startswith("not measured: CUDA out of memory")
    assert second == {"name": "tokenizer_compiled"}


def test_unknown_rows_are_refused():
    with pytest.raises(ValueError, match="paint: no row of the size tiny: give some of tokenizer, "):
        next(benchmark.run(TINY, ["paint"]))


def test_mean_shape_leaves_out_padding():
    def batch(tokens, targets, generated):
        return benchmark._Batch(
            0.1, 2, torch.tensor(tokens), torch.tensor([targets, 16]),
            {"pixel_values": 1, "generation_pixel_values": generated, "generation_codes": 0},
        )  # fmt: skip

    shape = benchmark._mean_shape([batch(61, 10, 1), batch(81, 22, 1)])
    assert shape == (2, 36, 8, 1, 1)  # rows, tokens and targets of a row, images of the batch


def test_measured_shape_replaces_the_average_rows(tmp_path):
    [case] = [case for case in CASES["full"] if case.name == "gen"]
    words = overrides(case, tmp_path, Setting(), 2)
    planned, measured = (
        make_plan(recipe_path(case), words, 1, GPUS["h100"], 1.0, shape).model
        for shape in (None, benchmark.BatchShape(4, 124, 2, 0, 4))
    )
    assert measured.tokens_a_row == planned.tokens_a_row == 64 + 60
    assert measured.flops_a_row == pytest.approx(planned.flops_a_row, rel=1e-3)
    longer = make_plan(recipe_path(case), words, 1, GPUS["h100"], 1.0, benchmark.BatchShape(4, 248, 2, 0, 4)).model
    assert longer.flops_a_row > 1.3 * planned.flops_a_row


@pytest.mark.parametrize("size", CASES)
def test_recipes_of_all_rows_are_valid_and_cover_the_stages(size, tmp_path):
    stages = set()
    for case in CASES[size]:
        setting = Setting(size=size)
        recipe = read_recipe(recipe_path(case), overrides(case, tmp_path, setting, 7))
        stages.add(recipe.stage)
        if not recipe.training.get("deepspeed"):  # which would start a process group
            arguments = training_arguments(recipe)
            assert arguments.max_steps == 7 and arguments.bf16 and arguments.world_size == 1
    assert stages == {"tokenizer", "pretrain", "sft", "gen"}


@pytest.mark.parametrize("name", ["tokenizer", "sft_lora", "gen_lora_codes"])
def test_rows_of_the_paper_fit_a_gpu_of_80_gb(name, tmp_path):
    [case] = [case for case in CASES["paper"] if case.name == name]
    shapes = SHAPES["paper"]
    write_config(tmp_path / "model", shapes, build_processor(shapes))
    plan = make_plan(recipe_path(case), overrides(case, tmp_path, PAPER, 2), 1, GPUS["h100"], 1.0)
    assert plan.stage is None and not plan.checkpointing
    assert plan.parameters > (8.8e9 if STAGES[plan.recipe.stage].is_multimodal else 390e6)
    assert 0.6 * 80e9 < plan.memory[False, None].total < 80e9


def test_missing_names_what_a_row_needs(monkeypatch, tmp_path):
    by_name = {case.name: case for case in CASES["paper"]}
    assert missing(by_name["sft_lora"], PAPER, tmp_path) is None
    assert "from a GPU" in missing(by_name["sft_offload_checkpointing"], PAPER, tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "g++" in missing(by_name["tokenizer_compiled"], PAPER, tmp_path)
    monkeypatch.setattr(cases, "find_spec", lambda name: None)
    on_gpu = Setting(device="cuda", size="paper")
    assert "evotok[deepspeed]" in missing(by_name["sft_offload_checkpointing"], on_gpu, tmp_path)
    assert missing(by_name["tokenizer_compiled"], on_gpu, tmp_path) is None
