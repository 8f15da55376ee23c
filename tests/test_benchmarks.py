"""`evotok bench` at tiny sizes: names and keys of the rows, and their checks of equality."""

import json
import sys

import pytest
import torch

from evotok.cli import main
from evotok.commands.bench import BENCHMARKS
from evotok.eval.benchmarks import depth, generation, meters, quantizer, serving
from evotok.eval.benchmarks.meters import Setting


FIGURES = {"seconds", "reference_seconds", "ratio", "floor_seconds", "floor_multiple", "peak_extra_mib", "equal"}
COMPARISON = FIGURES | {"reference"}
READING = COMPARISON | {"bandwidth_gb_per_s"}
LOSS = {"reference", "memory_ratio", "time_ratio", "equal"}
STEP = {"seconds", "floor_multiple", "matmul_gflops"}
ROWS = {
    "quantizer": {"search": COMPARISON | {"matmul_gflops"}, "train_step": {"over_search"}, "residual_vq": set()},
    "depth": {"position": READING},
    "generate": {"one_prompt": READING, "eight_prompts": {"speedup"}, "compiled": set()},
    "loss": {"image": LOSS, "text": LOSS},
    "train": {"tokenizer_step": STEP, "gen_step": STEP},
    "encode": {"corpus": COMPARISON | {"images_per_second", "device_share"}, "corpus_compiled": set()},
}
TINY = Setting(dtype=torch.float32, size="tiny", repeats=1)


@pytest.mark.parametrize("benchmark", [name for name in BENCHMARKS if name != "serve"])
def test_rows_are_printed_as_text_and_written_as_json(benchmark, tmp_path, capsys):
    path = tmp_path / "new" / "rows.json"
    dtype = "float32" if benchmark in ("generate", "depth") else "bfloat16"
    words = f"{benchmark} --size tiny --repeats 1 --threads 1 --dtype {dtype} --json {path}"
    assert main(["bench", *words.split()]) == 0
    printed, rows = capsys.readouterr().out, json.loads(path.read_text())
    assert not printed.startswith("[")
    assert {row["name"] for row in rows} == set(ROWS[benchmark])
    for row in rows:
        assert row["name"] in printed
        assert ROWS[benchmark][row["name"]] | {"threads", "dtype", "device", "size", "machine"} <= set(row)
        assert row.get("equal", True) is True
        assert all(value > 0 for key, value in row.items() if key.endswith("seconds"))


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
    row = quantizer.run(TINY)[1]
    assert row["name"] == "residual_vq" and "pip install vector-quantize-pytorch" in row["note"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not measured")
def test_peak_extra_mib_counts_freed_memory():
    def take(mib):
        torch.ones(mib, 2**18).sum()

    take(1)
    assert 60 <= meters.peak_extra_mib(lambda: take(64), "cpu") <= 80
    assert meters.peak_extra_mib(lambda: None, "cpu") <= 4


def test_is_nearest_finds_a_wrong_code():
    levels = quantizer._quantizer(3, 64, 8)
    features = torch.randn(2, 16, 8)
    codes = quantizer.search_with_cdist(levels, features)
    assert quantizer.is_nearest(levels, features, codes)
    codes[1, 3, 2] = (codes[1, 3, 2] + 1) % 64
    assert not quantizer.is_nearest(levels, features, codes)


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
