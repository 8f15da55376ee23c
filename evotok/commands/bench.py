"""`evotok bench`: what the engine costs, beside a plain reference and the machine's own limits."""

import argparse
import importlib
import sys

from evotok.commands.files import check_file, new_files
from evotok.commands.numbers import at_least_one
from evotok.commands.terminal import say


EXAMPLES = """  evotok bench quantizer --threads 2
  evotok bench generate --dtype float32 --json generate.json
  evotok bench loss --size tiny"""
SUITES = {
    "quantizer": "quantizer",
    "depth": "depth",
    "generate": "generation",
    "loss": "losses",
    "train": "training",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("suite", choices=SUITES, metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--threads", type=at_least_one, metavar="N", help="threads on the CPU (torch's own choice)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of models (bfloat16)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run (cpu)")
    parser.add_argument(
        "--size",
        choices=["full", "tiny", "paper"],
        default="full",
        help="tiny: only to see it run; paper: generate with the 7B model's shapes, on a GPU of 40 GB (full)",
    )
    parser.add_argument("--repeats", type=at_least_one, default=5, metavar="N", help="the best of N runs counts (5)")
    parser.add_argument(
        "--json",
        nargs="?",
        const=True,
        metavar="FILE",
        help="also write the rows to FILE, as a JSON list; without FILE one line of JSON on stdout instead of text",
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print, and write if asked to."""
    import torch

    from evotok.eval.benchmarks.meters import Setting, machine
    from evotok.eval.benchmarks.report import to_json, to_text

    path = None if options.json in (None, True) else check_file(options.json)
    options.json = options.json is True  # what `say` asks
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no such device here, take cpu.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    suite = importlib.import_module(f"evotok.eval.benchmarks.{SUITES[options.suite]}")
    if options.size not in suite.SIZES:
        raise ValueError(f"--size {options.size}: {options.suite} takes {' or '.join(suite.SIZES)}.")
    dtype = getattr(torch, options.dtype)
    if sys.stderr.isatty():  # a line that stands still: what moves would be timed as well
        print(f"timing {options.suite}, {options.repeats} times ...", file=sys.stderr)
    rows = suite.run(Setting(options.device, dtype, options.size, options.repeats))
    common = {"threads": torch.get_num_threads(), "dtype": options.dtype, "device": options.device}
    common |= {"size": options.size, "machine": machine(options.device)}
    rows = [row | common for row in rows]
    say(options, rows, [to_text(rows)])
    if path is not None:
        with new_files(path.parent, overwrite=True) as reserve:
            reserve(path.name).write_text(to_json(rows), encoding="utf-8")
    return 0
