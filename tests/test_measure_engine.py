"""`tools.measure_engine` on the CPU: files, limits of time, and benchmarks that fail."""

import importlib
import json
import shutil
import subprocess
import time

import pytest

from evotok.commands.bench import BENCHMARKS
from evotok.eval.benchmarks.report import save_row
from tools import measure_engine
from tools.measure_engine import PLAN, ROOT, Work, main, measure, measure_all, short_name, shorten


TINY = Work("quantizer", "tiny", 1, 1)


def read(path):
    return {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))}


def test_plan_has_benchmarks_of_the_command_with_their_sizes():
    assert len({(work.benchmark, work.size) for work in PLAN}) == len(PLAN)
    for work in PLAN:
        module = importlib.import_module(f"evotok.{BENCHMARKS[work.benchmark]}")
        assert work.size in module.SIZES and work.repeats and work.share > 0


def test_benchmarks_run_on_the_cpu_at_tiny_sizes(tmp_path, capfd):
    words = f"quantizer loss --device cpu --size tiny --minutes 5 --out {tmp_path / 'rows'}"
    assert main(words.split()) == 0
    assert {path.name for path in tmp_path.glob("rows/*")} == {"cpu-quantizer.json", "cpu-loss.json"}
    rows = read(tmp_path / "rows" / "cpu-quantizer.json")
    assert {"reference", "floor_seconds", "ratio", "equal"} <= set(rows["search"])
    assert {"reference", "floor_seconds", "ratio", "equal"} <= set(rows["train_step"])
    summary = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in summary[-6:]] == ["row", *rows, "image", "text"]


def test_a_benchmark_is_stopped_at_its_limit(tmp_path):
    start = time.monotonic()
    assert measure(TINY, "cpu", tmp_path / "rows.json", 0.2) == "stopped after 0.2 seconds"
    assert time.monotonic() - start < 10
    assert not (tmp_path / "rows.json").exists()


def test_failures_have_the_last_line_of_the_benchmark(tmp_path, capfd):
    failure = measure(TINY._replace(size="huge"), "cpu", tmp_path / "rows.json", 60)
    assert failure.startswith("failed with exit code 2: evotok bench: ") and "'huge'" in failure
    assert "'huge'" in capfd.readouterr().err


def test_failed_benchmarks_cost_their_own_rows_only(tmp_path, monkeypatch, capsys):
    asked = []

    def partly(work, device, path, seconds):
        asked.append(path.name)
        save_row(path, {"name": "first", "seconds": 1.0, "equal": True})
        return {"quantizer": None, "depth": "stopped after 9 seconds"}.get(work.benchmark)

    monkeypatch.setattr(measure_engine, "measure", partly)
    save_row(tmp_path / "cpu-depth.json", {"name": "of another run"})
    words = ["--device", "cpu", "--size", "tiny", "--out", str(tmp_path)]
    assert main([*words, "quantizer", "depth", "loss"]) == 1
    assert asked == ["cpu-quantizer.json", "cpu-depth.json", "cpu-loss.json"]
    assert list(read(tmp_path / "cpu-depth.json")) == ["first", "depth"]
    assert read(tmp_path / "cpu-depth.json")["depth"]["note"] == "stopped after 9 seconds"
    assert list(read(tmp_path / "cpu-loss.json")) == ["first"]
    assert "stopped after 9 seconds" in capsys.readouterr().out
    assert main([*words, "quantizer", "loss"]) == 0


def test_rows_that_differ_from_their_reference_are_a_failure(tmp_path, monkeypatch):
    def wrong(work, device, path, seconds):
        save_row(path, {"name": "first", "seconds": 1.0, "equal": False})

    monkeypatch.setattr(measure_engine, "measure", wrong)
    assert main(["quantizer", "--device", "cpu", "--size", "tiny", "--out", str(tmp_path)]) == 1


def test_time_that_is_left_is_shared_by_the_others(tmp_path, monkeypatch):
    limits, clock = [], iter([0, 10, 10, 200])

    def quick(work, device, path, seconds):
        limits.append(seconds)
        save_row(path, {"name": "first"})

    monkeypatch.setattr(measure_engine, "measure", quick)
    monkeypatch.setattr(measure_engine.time, "monotonic", lambda: next(clock))
    plan = [TINY, Work("depth", "paper", 1, 2), Work("loss", "full", 1, 1), Work("train", "full", 1, 1)]
    measure_all(plan, "cuda", tmp_path, "h100", end=100)
    assert limits == [20, 45, 45, 0]
    assert (tmp_path / "h100-depth-paper.json").exists() and (tmp_path / "h100-loss.json").exists()


@pytest.mark.parametrize(
    ("gpu", "short"),
    [
        ("NVIDIA H100 80GB HBM3\n", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("Orin", "gpu"),
    ],
)
def test_files_are_named_for_the_gpu(gpu, short):
    assert shorten(gpu) == short


def test_a_missing_gpu_is_an_error_in_one_line(monkeypatch, capsys):
    def no_gpu(command, **kwargs):
        return subprocess.CompletedProcess(command, 1, "", "Traceback ...\nAssertionError: no CUDA here\n")

    monkeypatch.setattr(subprocess, "run", no_gpu)
    with pytest.raises(ValueError, match="no CUDA here: use a machine with a GPU"):
        short_name("cuda")
    assert short_name("cpu") == "cpu"
    for words in ([], ["paint"], ["--device", "cpu"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1].partition(": ")[2].startswith("error: ")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_makefile_measures_without_network_where_there_are_wheels():
    def commands(*words):
        make = ["make", "--dry-run", "--always-make", "--no-print-directory", "bench-gpu", *words]
        return subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    plain = commands()
    assert plain.splitlines()[-1] == ".venv-gpu/bin/python -m tools.measure_engine --minutes 9 "
    assert "transformers==" in plain and "deepspeed==" in plain and "--no-index" not in plain
    offline = commands("WHEELS=wheels", "RESULTS=rows", "MINUTES=5")
    assert offline.splitlines()[-1].endswith("--minutes 5 --out 'rows'")
    installing = [line for line in offline.splitlines() if " install " in line]
    assert len(installing) == 2 and all("--no-index --find-links 'wheels'" in line for line in installing)
