"""`evotok bench`: measures time and memory, against a plain reference and the limits of the machine."""

import importlib
import sys
from typing import Annotated, Literal

import typer

from evotok.commands.files import check_file, new_files
from evotok.commands.options import Json
from evotok.commands.terminal import print_results


EXAMPLES = """  evotok bench quantizer --threads 2
  evotok bench generate --dtype float32 --json generate.json
  evotok bench loss --size tiny
  evotok bench serve --repeats 1        # with vLLM where it is installed"""
BENCHMARKS = {  # name -> module
    "quantizer": "quantizer",
    "depth": "depth",
    "generate": "generation",
    "loss": "losses",
    "encode": "encoding",
    "serve": "serving",
    "train": "training",
}


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
        typer.Option(help="tiny: a quick trial; paper: generate with the 7B model's shapes, on a GPU of 40 GB"),
    ] = "full",
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="the best of N runs counts")] = 5,
    as_json: Json = False,
) -> None:
    """Measure time and memory against a plain reference and the limits of the machine."""
    if file is not None and not as_json:
        raise ValueError(f"{file}: the rows are written to a file as JSON only: add --json.")
    if size == "paper" and benchmark not in ("generate", "encode"):
        raise ValueError(f"--size paper: {benchmark} takes full or tiny.")
    path = None if file is None else check_file(file)
    import torch

    from evotok.eval.benchmarks.meters import Setting, machine
    from evotok.eval.benchmarks.report import to_json, to_text

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no such device, use cpu.")
    if threads is not None:
        torch.set_num_threads(threads)
    module = importlib.import_module(f"evotok.eval.benchmarks.{BENCHMARKS[benchmark]}")
    setting = Setting(device, getattr(torch, dtype), size, repeats)
    if sys.stderr.isatty():  # one line: a progress bar would be measured as well
        print(f"measuring {benchmark}, {repeats} times ...", file=sys.stderr)
    rows = module.run(setting)
    common = {"threads": torch.get_num_threads(), "dtype": dtype, "device": device}
    common |= {"size": size, "machine": machine(device)}
    rows = [row | common for row in rows]
    print_results(as_json and path is None, rows, [to_text(rows)])
    if path is not None:
        with new_files(path.parent, overwrite=True) as reserve:
            reserve(path.name).write_text(to_json(rows), encoding="utf-8")
