"""Measures the engine on one GPU: benchmarks of `evotok bench`, each in a process of its own with a limit of time.

    python -m tools.measure_engine                       # all, at most ten minutes
    python -m tools.measure_engine generate train        # some, in the same time
    python -m tools.measure_engine --device cpu --size tiny --out /tmp/rows   # a trial without a GPU

Each benchmark writes a file, `docs/results/engine/h100-depth.json` for example, row by row as they are measured. One
that fails or is stopped keeps its rows and adds one with a note; the others are measured all the same. The exit code is
1 if there is such a note, or a row whose results differ from those of its reference.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evotok.eval.benchmarks.report import Row, save_row


ROOT = Path(__file__).resolve().parents[1]
GPU_NAME = "import torch; print(torch.cuda.get_device_name())"


class Work(NamedTuple):
    """A benchmark with its size on a GPU, the number of its runs, and its share of the time."""

    benchmark: str
    size: str
    repeats: int
    share: float


# In order of value. Of time that one leaves, the others have the same shares: the first cannot starve the last.
PLAN = (
    Work("quantizer", "full", 5, 60),
    Work("depth", "full", 5, 40),
    Work("generate", "paper", 2, 190),
    Work("train", "paper", 5, 210),
    Work("encode", "paper", 1, 70),
    Work("loss", "full", 3, 30),
)


def short_name(device: str) -> str:
    """Returns the beginning of file names: `NVIDIA H100 80GB HBM3` -> `h100`.

    Raises:
        ValueError: PyTorch finds no GPU.
    """
    if device == "cpu":
        return device
    # In another process: the context of CUDA in this one would take memory of the GPU.
    found = subprocess.run([sys.executable, "-c", GPU_NAME], capture_output=True, text=True, check=False)
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or ["PyTorch finds no GPU"])[-1]
        raise ValueError(f"--device cuda: {reason}: use a machine with a GPU and PyTorch for it, or --device cpu.")
    return shorten(found.stdout)


def shorten(gpu: str) -> str:
    """Returns the model of a GPU, the first word with a digit in it: `NVIDIA A100-SXM4-80GB` -> `a100`."""
    model = re.search(r"\w*\d\w*", gpu)
    return model[0].lower() if model else "gpu"


def measure(work: Work, device: str, path: Path, seconds: float) -> str | None:
    """Runs one benchmark, which writes `path`; returns what went wrong, None if nothing did."""
    words = ["bench", work.benchmark, "--size", work.size, "--repeats", str(work.repeats), "--device", device]
    command = [sys.executable, "-u", "-m", "evotok.cli", *words, "--json", str(path)]
    with tempfile.TemporaryFile() as log:  # a pipe that is not read would block the benchmark
        try:
            code = subprocess.run(command, cwd=ROOT, stderr=log, timeout=seconds, check=False).returncode
            failure = None if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            failure = f"stopped after {seconds:.3g} seconds"
        log.seek(0)
        errors = log.read().decode(errors="replace")
    print(errors, end="", file=sys.stderr)
    lines = errors.strip().splitlines()
    return f"{failure}: {lines[-1]}" if failure and lines else failure


def measure_all(plan: Sequence[Work], device: str, out: Path, prefix: str, end: float) -> list[Row]:
    """Measures the benchmarks of a plan, one after the other, until `end` of the monotonic clock.

    Returns:
        The rows, one named like its benchmark for each failure.
    """
    rows = []
    for number, work in enumerate(plan):
        size = f"-{work.size}" if work.size == "paper" else ""
        path = out / f"{prefix}-{work.benchmark}{size}.json"
        path.unlink(missing_ok=True)  # rows of another run
        seconds = max(0.0, end - time.monotonic()) * work.share / sum(later.share for later in plan[number:])
        print(f"{work.benchmark}, size {work.size}, at most {seconds:.0f} s", flush=True)
        failure = measure(work, device, path, seconds)
        if failure:
            save_row(path, {"name": work.benchmark, "note": failure, "device": device, "size": work.size})
        rows += json.loads(path.read_text(encoding="utf-8"))
    return rows


def summarize(rows: Sequence[Row]) -> str:
    """Renders rows as text, a line for each: seconds, times faster than the reference, times the floor, equality."""
    lines = [f"{'row':20} {'seconds':>9} {'faster':>9} {'floor':>9}  equal"]
    for row in rows:
        figures = (row.get(key, "") for key in ("seconds", "ratio", "floor_multiple"))
        cells = [f"{figure:9.3g}" if figure != "" else " " * 9 for figure in figures]
        last = row.get("note", row.get("equal", ""))
        lines.append(f"{row['name']:20} {' '.join(cells)}  {last}".rstrip())
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measures, and prints a summary."""
    start, names = time.monotonic(), [work.benchmark for work in PLAN]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), help="of all benchmarks; by default their own, for a GPU")
    parser.add_argument("--minutes", type=float, default=10, help="most time of all benchmarks (10)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "engine", metavar="FOLDER")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.benchmarks if name not in names]:
        parser.error(f"{unknown[0]}: no such benchmark, choose from {', '.join(names)}.")
    if options.device == "cpu" and options.size is None:
        parser.error("--device cpu: the sizes are for a GPU, add --size tiny or --size full.")
    plan = [work for work in PLAN if not options.benchmarks or work.benchmark in options.benchmarks]
    if options.size is not None:
        plan = [work._replace(size=options.size, repeats=1) for work in plan]
    try:
        prefix = short_name(options.device)
    except ValueError as error:
        parser.error(str(error))
    rows = measure_all(plan, options.device, options.out.absolute(), prefix, start + 60 * options.minutes)
    print(summarize(rows))
    return int(any(row["name"] in names or row.get("equal") is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
