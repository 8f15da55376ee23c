"""`evotok measure`: arguments of `evotok.measure`, which imports torch at once."""

import sys
from enum import StrEnum
from typing import Annotated

import typer

from evotok.commands.checkpoints import find_checkpoint
from evotok.commands.files import check_file
from evotok.commands.options import Checkpoint, Json, Seed
from evotok.commands.terminal import say


EXAMPLES = """  evotok measure                                       the embedded mini model, everything
  evotok measure runs/mini/gen --only t2i --images 64
  evotok measure --quick                               a first impression, in results.quick.json
  evotok measure --card                                only render README.md from results.json again"""
Section = StrEnum("Section", ["tokenizer", "qa", "t2i"])


def run(
    checkpoint: Checkpoint = "mini",
    only: Annotated[list[Section] | None, typer.Option(help="one section; may be given again")] = None,
    images: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="images of each headline cell, CFG 7.5 and 1 (256)")
    ] = None,
    table_images: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="images of each other cell of the table (128)")
    ] = None,
    questions: Annotated[int | None, typer.Option(metavar="N", min=1, help="most questions of each kind (512)")] = None,
    drawings: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="most emoji images of each split for the tokenizer (all)")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="questions, or prompts, at a time (64)")
    ] = None,
    seed: Seed = None,
    quick: Annotated[bool, typer.Option("--quick", help="few samples of everything, into results.quick.json")] = False,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="results; results.json of the checkpoint by default")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="measure again what the file has already")] = False,
    card: Annotated[bool, typer.Option("--card", help="measure nothing, render README.md from results.json")] = False,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint on the emoji world: results.json and the model card."""
    folder = find_checkpoint(checkpoint).folder
    path = check_file(out) if out else (folder / "results.quick.json" if quick else None)
    from dataclasses import replace

    from evotok.measure import QUICK, SECTIONS, TARGETS, Options, measure
    from evotok.model_card import read_results, write_card
    from evotok.suite_sections import left_out

    if card:
        write_card(folder)
    else:
        given = {
            "drawings": drawings,
            "questions": questions,
            "images": images,
            "table_images": table_images,
            "batch_size": batch_size,
            "seed": seed,
        }
        amounts = replace(QUICK if quick else Options(), **{k: v for k, v in given.items() if v is not None})
        results = measure(checkpoint, amounts, tuple(only or SECTIONS), path, restart)
        lines = [f"{name:28} {results[name]:6.3f}   target {TARGETS[name]:g}" for name in TARGETS if name in results]
        say(as_json, results, lines)
    if card or path is None:
        for line in left_out(folder, read_results(folder / "results.json")["checkpoint_sha256"]):
            print(line, file=sys.stderr)
