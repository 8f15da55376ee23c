"""`evotok bench`: measures time and memory, against a plain reference and the limits of the machine."""

import importlib
import sys
from typing import Annotated, Literal

import typer

from evotok.commands.files import check_file
from evotok.commands.options import Json
from evotok.commands.terminal import print_results


EXAMPLES = """  evotok bench quantizer --threads 2
  evotok bench generate --dtype float32 --json generate.json
  evotok bench loss --size tiny
  evotok bench serve --repeats 1        # with vLLM where it is installed"""
BENCHMARKS = {  # name -> module
    "quantizer": "eval.benchmarks.quantizer",
    "depth": "eval.benchmarks.depth",
    "generate": "eval.benchmarks.generation",
    "loss": "eval.benchmarks.losses",
    "encode": "eval.benchmarks.encoding",
    "serve": "eval.benchmarks.serving",
    "train": "training.throughput.benchmark",
}
PAPER = ("generate", "encode", "train")
"""Benchmarks with the size `paper`; the others take `full` or `tiny`."""


def run(
    benchmark: Annotated[
        Literal[tuple(BENCHMARKS)],  # pyright: ignore[reportInvalidTypeForm]  # the names of a table, which Typer reads
        typer.Argument(metavar="BENCHMARK", help="code to measure"),
    ],
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="with --json: also write the rows here, as a JSON list")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="threads on the CPU; torch's own choice by default")
    ] = None,
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="dtype of models")] = "bfloat16",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="where to run")] = "cpu",
    size: Annotated[
        Literal["full", "tiny", "paper"],
        typer.Option(
            help="tiny: a quick trial; paper: the 7B model's shapes, to generate on a GPU of 40 GB, to train of 80 GB"
        ),
    ] = "full",
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="the best of N runs counts, of train the median of N steps")
    ] = 5,
    as_json: Json = False,
) -> None:
    """Measure time and memory against a plain reference and the limits of the machine."""
    if file is not None and not as_json:
        raise ValueError(f"{file}: the rows are written to a file as JSON only: add --json.")
    if size == "paper" and benchmark not in PAPER:
        raise ValueError(f"--size paper: {benchmark} takes full or tiny.")
    path = None if file is None else check_file(file)
    import torch

    from evotok.data.atomic_files import atomic_file
    from evotok.eval.benchmarks.meters import Setting, machine
    from evotok.eval.benchmarks.report import to_json, to_text

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no such device, use cpu.")
    if threads is not None:
        torch.set_num_threads(threads)
    module = importlib.import_module(f"evotok.{BENCHMARKS[benchmark]}")
    setting = Setting(device, getattr(torch, dtype), size, repeats)
    if sys.stderr.isatty():  # one line: a progress bar would be measured as well
        print(f"measuring {benchmark}, {repeats} times ...", file=sys.stderr)
    common = {"threads": torch.get_num_threads(), "dtype": dtype, "device": device}
    common |= {"size": size, "machine": machine(device)}
    rows = []
    for row in module.run(setting):
        rows.append(row | common)
        if path is not None:  # each row at once: a run that is stopped keeps those before
            with atomic_file(path) as part:
                part.write_text(to_json(rows), encoding="utf-8")
        if path is not None or not as_json:
            print_results(False, rows[-1:], [to_text(rows[-1:]), ""])
    if as_json and path is None:
        print_results(True, rows, ())
