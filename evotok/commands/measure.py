"""`evotok measure`: another name of `evotok eval mini`, kept for those who know it."""

import argparse
import sys

from evotok.commands import evaluate


EXAMPLES = """  evotok measure                                       the embedded mini model
  evotok measure runs/mini/gen --config configs/eval/mini-quick.yaml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command: those of `evotok eval`, without the suite."""
    parser.add_argument("inputs", nargs="*", metavar="CHECKPOINT", help="what is measured, then key=value of options")
    evaluate.add_shared_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the suite, and says which command does the same."""
    words = options.inputs if any("=" not in word for word in options.inputs) else ["mini", *options.inputs]
    code = evaluate.run(argparse.Namespace(**vars(options) | {"suite": "mini", "inputs": words}))
    print(f"`evotok measure` is another name of `evotok eval mini {' '.join(words)}`.", file=sys.stderr)
    return code
