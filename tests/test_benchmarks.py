"""The benchmarks at sizes that take no time: names and keys of the rows, and that their checks can fail."""

import json
import sys

import pytest
import torch

from evotok.cli import main
from evotok.commands.bench import SUITES
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
}
TINY = Setting(dtype=torch.float32, size="tiny", repeats=1)


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite != "serve"])
def test_rows_are_printed_and_written(suite, tmp_path, capsys):
    path, dtype = tmp_path / "new" / "rows.json", "float32" if suite in ("generate", "depth") else "bfloat16"
    words = [
        "bench",
        suite,
        "--size",
        "tiny",
        "--repeats",
        "1",
        "--threads",
        "1",
        "--dtype",
        dtype,
        "--json",
        str(path),
    ]
    assert main(words) == 0
    printed, rows = capsys.readouterr().out, json.loads(path.read_text())
    assert not printed.startswith("["), "people read what is printed, programs the file"
    assert {row["name"] for row in rows} == set(ROWS[suite])
    for row in rows:
        assert row["name"] in printed
        assert ROWS[suite][row["name"]] | {"threads", "dtype", "device", "size", "machine"} <= set(row)
        assert row.get("equal", True) is True
        assert all(value > 0 for key, value in row.items() if key.endswith("seconds"))


def test_a_server_is_timed_by_what_its_clients_see(monkeypatch):
    """One of the three, from its start to its end."""
    pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
    monkeypatch.setattr(serving, "ENGINES", {"transformers_batch": serving.ENGINES["transformers_batch"]})
    [row] = serving.run(TINY)
    assert row["name"] == "transformers_batch" and (row["questions"], row["images"]) == (4, 2)
    assert 0 < row["first_token_seconds_median"] <= row["first_token_seconds_last"]
    assert row["questions_per_second"] > 0 and row["images_per_second"] > 0
    assert row["peak_memory_mib"] > 100 or sys.platform != "linux"


def test_rows_for_programs(capsys):
    assert main(["bench", "loss", "--size", "tiny", "--repeats", "1", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == set(ROWS["loss"])


def test_mistakes_are_one_line(tmp_path, capsys):
    for words in (
        ["paint"],
        ["loss", "--json", str(tmp_path)],
        ["loss", "--threads", "0"],
        ["loss", "--size", "paper"],
    ):
        assert main(["bench", *words]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    if not torch.cuda.is_available():
        assert main(["bench", "loss", "--device", "cuda"]) == 2


def test_a_missing_library_leaves_a_note(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    row = quantizer.run(TINY)[1]
    assert row["name"] == "residual_vq" and "pip install vector-quantize-pytorch" in row["note"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not measured")
def test_peak_memory_is_what_was_taken_and_given_back():
    def take(mib):
        torch.ones(mib, 2**18).sum()

    take(1)
    assert 60 <= meters.peak_extra_mib(lambda: take(64), "cpu") <= 80
    assert meters.peak_extra_mib(lambda: None, "cpu") <= 4


def test_a_wrong_code_is_noticed():
    levels = quantizer._quantizer(3, 64, 8)
    features = torch.randn(2, 16, 8)
    codes = quantizer.search_with_cdist(levels, features)
    assert quantizer.is_nearest(levels, features, codes)
    codes[1, 3, 2] = (codes[1, 3, 2] + 1) % 64
    assert not quantizer.is_nearest(levels, features, codes)


def test_a_wrong_path_is_noticed(monkeypatch):
    model = generation.build_model(TINY)
    prompt = torch.tensor([[5, model.config.vision_start_token_id]])
    assert generation.same_codes(model, prompt)
    decoder, hidden = model.depth_decoder, torch.randn(2, 32)
    assert depth.same_logits(decoder, hidden, generation.image_codebooks(model))
    step = decoder.step
    monkeypatch.setattr(decoder, "step", lambda inputs, level, cache: step(inputs, level, decoder.new_cache(2)))
    assert not depth.same_logits(decoder, hidden, generation.image_codebooks(model))
    assert not generation.same_codes(model, prompt)
