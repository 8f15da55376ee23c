"""`evotok bench` at tiny sizes: names and keys of the rows, and their checks of equality."""

import importlib
import json
import shutil
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import CompileConfig

from evotok.cli import main
from evotok.commands.bench import BENCHMARKS, PAPER
from evotok.eval.benchmarks import depth, generation, meters, quantizer, serving
from evotok.eval.benchmarks.meters import Setting
from evotok.training.throughput.cases import CASES


FIGURES = {"seconds", "reference_seconds", "ratio", "floor_seconds", "floor_multiple", "peak_extra_mib", "equal"}
COMPARISON = FIGURES | {"reference"}
READING = COMPARISON | {"bandwidth_gb_per_s"}
LOSS = {"reference", "memory_ratio", "time_ratio", "equal"}
INT8 = {"reference", "seconds", "ratio", "floor_multiple", "over_plain", "same_codes"}
STEP = {"seconds", "data_seconds", "tokens_per_second", "images_per_second", "mfu", "peak_extra_mib", "planned_mib"}
COLD_AND_WARM = {"cold_seconds", "warm_seconds", "cold_over_target"}
COMPILED = {"ratio", "over_eager", "floor_multiple", "same_codes"} | COLD_AND_WARM if shutil.which("g++") else {"note"}
ROWS = {
    "quantizer": {
        "search": COMPARISON | {"matmul_gflops"},
        "train_step": COMPARISON | {"over_search"},
        "residual_vq": set(),
    },
    "depth": {"position": READING},
    "generate": {
        "one_prompt": READING,
        **{name: {"floor_multiple"} for name in ("language_model", "depth_layers", "code_classifiers", "other")},
        "eight_prompts": {"speedup"},
        "int8": INT8,
        "compiled": COMPILED,
        "int8_compiled": COMPILED,
    },
    "loss": {"image": LOSS, "text": LOSS},
    "train": dict.fromkeys((case.name for case in CASES["tiny"]), STEP) | {"sft_offload_checkpointing": {"note"}},
    "encode": {"corpus": COMPARISON | {"images_per_second", "device_share"}, "corpus_compiled": set()},
}
TINY = Setting(dtype=torch.float32, size="tiny", repeats=1)


QUICK = "tokenizer", "pretrain_checkpointing", "sft_lora_compiled", "gen_lora_codes", "sft_offload_checkpointing"
"""Rows of `train` at tiny sizes for every stage and every way of measuring; the others take a minute."""


@pytest.mark.parametrize("benchmark", [name for name in BENCHMARKS if name != "serve"])
def test_rows_are_printed_as_text_and_written_as_json(benchmark, tmp_path, capsys, monkeypatch):
    """Without code of the compiler, and without rows of `train` that differ from another one by a word."""
    monkeypatch.setattr(generation, "CompileConfig", partial(CompileConfig, backend="eager", mode=None))
    monkeypatch.setitem(CASES, "tiny", [case for case in CASES["tiny"] if case.name in QUICK])
    check_rows(benchmark, {name for name in ROWS[benchmark] if benchmark != "train" or name in QUICK}, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", ["generate", "train"])
def test_all_rows_are_measured(benchmark, tmp_path, capsys):
    check_rows(benchmark, set(ROWS[benchmark]), tmp_path, capsys)


def check_rows(benchmark, names, tmp_path, capsys):
    """Checks what `evotok bench` prints and writes."""
    path = tmp_path / "new" / "rows.json"
    dtype = "float32" if benchmark in ("generate", "depth", "train") else "bfloat16"
    words = f"{benchmark} --size tiny --repeats 1 --threads 1 --dtype {dtype} --json {path}"
    assert main(["bench", *words.split()]) == 0
    printed, rows = capsys.readouterr().out, json.loads(path.read_text())
    assert not printed.startswith("[")
    assert {row["name"] for row in rows} == names
    for row in rows:
        assert row["name"] in printed
        assert ROWS[benchmark][row["name"]] | {"threads", "dtype", "device", "size", "machine"} <= set(row)
        assert row.get("equal", True) is True
        assert all(value > 0 for key, value in row.items() if key.endswith("seconds"))


def test_rows_are_written_as_they_are_measured(monkeypatch, tmp_path):
    path = tmp_path / "rows.json"

    def run(setting):
        yield {"name": "first", "seconds": 1.0}
        assert [row["name"] for row in json.loads(path.read_text())] == ["first"]
        yield {"name": "second", "seconds": 2.0}
        raise MemoryError("of the third row")

    monkeypatch.setattr(quantizer, "run", run)
    with pytest.raises(MemoryError):
        main(["bench", "quantizer", "--size", "tiny", "--json", str(path)])
    assert [row["name"] for row in json.loads(path.read_text())] == ["first", "second"]


def test_paper_is_a_size_of_the_benchmarks_that_say_so():
    pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
    modules = {name: importlib.import_module(f"evotok.{path}") for name, path in BENCHMARKS.items()}
    assert {name for name, module in modules.items() if "paper" in module.SIZES} == set(PAPER)
    assert all({"full", "tiny"} <= set(module.SIZES) for module in modules.values())


def test_serving_measures_one_server(monkeypatch):
    pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
    monkeypatch.setattr(serving, "ENGINES", {"transformers_batch": serving.ENGINES["transformers_batch"]})
    [row] = serving.run(TINY)
    assert row["name"] == "transformers_batch" and (row["questions"], row["images"]) == (4, 2)
    assert 0 < row["first_token_seconds_median"] <= row["first_token_seconds_last"]
    assert row["questions_per_second"] > 0 and row["images_per_second"] > 0
    assert row["peak_memory_mib"] > 100 or sys.platform != "linux"


def test_bad_arguments_are_refused_in_one_line(tmp_path, capsys):
    lines = ["paint", f"loss --json {tmp_path}", "loss --threads 0", "loss --size paper"]
    for line in lines if torch.cuda.is_available() else [*lines, "loss --device cuda"]:
        assert main(["bench", *line.split()]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_quantizer_notes_a_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    row = list(quantizer.run(TINY))[1]
    assert row["name"] == "residual_vq" and "pip install vector-quantize-pytorch" in row["note"]


@pytest.mark.parametrize("waits", [False, True])
def test_quantizer_replays_its_step_where_it_can_be_captured(waits, monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    monkeypatch.setattr(quantizer, "waits_for_device", lambda step: waits)
    monkeypatch.setattr(quantizer, "_captured", lambda step: step)
    rows = {row["name"]: row for row in quantizer.run(replace(TINY, device="cpu:0"))}  # in the place of a GPU
    assert rows["train_step"]["synchronizes"] is waits
    graph = rows["train_step_graph"]
    assert "note" in graph if waits else graph["equal"] and COMPARISON | {"over_search"} <= set(graph)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not measured")
def test_peak_extra_mib_counts_freed_memory():
    def take(mib):
        torch.ones(mib, 2**18).sum()

    take(1)
    assert 60 <= meters.peak_extra_mib(lambda: take(64), "cpu") <= 80
    assert meters.peak_extra_mib(lambda: None, "cpu") <= 4


def test_parts_of_an_image_add_up():
    model, calls = generation.build_model(TINY), []
    prompt = torch.tensor([[1, 2, model.config.vision_start_token_id]])

    def generate():
        calls.append(time.perf_counter())
        model.generate(prompt, generation_mode="image", guidance_scale=3.0, do_sample=False)
        calls.append(time.perf_counter())

    parts = list(generation._parts(model, generate, {"floor_seconds": 2.0}, TINY))
    assert len(parts) == 4 and all(part["seconds"] > 0 for part in parts)
    assert sum(part["floor_seconds"] for part in parts) == pytest.approx(2)
    assert sum(part["seconds"] for part in parts) == pytest.approx(calls[1] - calls[0], rel=0.02)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    [note] = generation._parts(model, generate, {"floor_seconds": 2.0}, replace(TINY, device="cuda"))
    assert note["name"] == "parts" and "CUDA graph" in note["note"]


def test_is_nearest_finds_a_wrong_code():
    levels = quantizer._quantizer(3, 64, 8)
    features = torch.randn(2, 16, 8)
    codes = quantizer.search_with_cdist(levels, features)
    assert quantizer.is_nearest(levels, features, codes)
    codes[1, 3, 2] = (codes[1, 3, 2] + 1) % 64
    assert not quantizer.is_nearest(levels, features, codes)


def test_updates_entries_finds_a_wrong_step():
    levels, features = quantizer._quantizer(3, 64, 8).train(), torch.randn(2, 16, 8)
    assert quantizer.updates_entries(levels, features, lambda: levels(features))
    assert not quantizer.updates_entries(levels, features, lambda: None)
    assert not quantizer.updates_entries(levels, features, lambda: [levels(features), levels(features)])


def test_waits_for_device_notices_only_synchronization(monkeypatch):
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def fail(message):
        raise RuntimeError(message)

    assert not meters.waits_for_device(lambda: None)
    assert meters.waits_for_device(lambda: fail("called a synchronizing CUDA operation"))
    with pytest.raises(RuntimeError, match="out of memory"):
        meters.waits_for_device(lambda: fail("CUDA out of memory"))
    assert modes == ["default", *3 * ["error", "default"]]


def test_equality_checks_find_a_wrong_path(monkeypatch):
    model = generation.build_model(TINY)
    prompt = torch.tensor([[5, model.config.vision_start_token_id]])
    assert generation.same_codes(model, prompt)
    decoder, hidden = model.depth_decoder, torch.randn(2, 32)
    codebooks = model.model.vq_model.quantizer.stack_codebooks(4, torch.device("cpu"))
    assert depth.same_logits(decoder, hidden, codebooks)
    step = decoder.step
    monkeypatch.setattr(decoder, "step", lambda inputs, level, cache: step(inputs, level, decoder.new_cache(2)))
    assert not depth.same_logits(decoder, hidden, codebooks)
    assert not generation.same_codes(model, prompt)
