"""`evotok measure`: alias of `evotok eval mini`."""

import sys
from typing import Annotated

import typer

from evotok.commands import evaluate
from evotok.commands.options import Json, complete_checkpoint


EXAMPLES = """  evotok measure                                       the embedded mini model
  evotok measure runs/mini/gen-counts --config configs/eval/mini-quick.yaml"""


def run(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="checkpoint to measure, then key=value of the options; mini by default",
            autocompletion=complete_checkpoint,
        ),
    ] = None,
    config: evaluate.Config = None,
    out: evaluate.Out = None,
    restart: evaluate.Restart = False,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint on the embedded world: an alias of `evotok eval mini`."""
    words = list(inputs or ())
    words = words if any("=" not in word for word in words) else ["mini", *words]
    evaluate.run("mini", words, config, out, restart, as_json)
    print(f"`evotok measure` is an alias of `evotok eval mini {' '.join(words)}`.", file=sys.stderr)
