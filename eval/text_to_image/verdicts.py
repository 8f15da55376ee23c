"""Judged pictures in GenEval's layout: a file with what is wrong in each, and a sheet to look at."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...processing.image_loading_evotok import load_image
from ..plotting.sheets import GREEN, GREY, RED, Cell, Line, draw_sheet


Faults = Sequence[Sequence[Sequence[str]]]
"""Of each prompt, of each of its pictures, what is wrong with it."""


def write_verdicts(path: Path, records: Sequence[dict[str, Any]], faults: Faults) -> None:
    """A line for each picture: file, task, prompt, whether it is right, and if not, why."""
    lines = [
        {"picture": f"{index:05d}/samples/{copy:04d}.png", "tag": record["tag"], "prompt": record["prompt"]}
        | {"correct": not fault, "reason": "; ".join(fault)}
        for index, (record, own) in enumerate(zip(records, faults, strict=True))
        for copy, fault in enumerate(own)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def sample_sheet(folder: Path, records: Sequence[dict[str, Any]], faults: Faults, each: int = 2) -> Image.Image:
    """The first picture of the first `each` prompts of every task, and what is wrong with it."""
    cells = []
    for task in dict.fromkeys(record["tag"] for record in records):
        for index in [index for index, record in enumerate(records) if record["tag"] == task][:each]:
            fault = "; ".join(faults[index][0])
            lines = [Line(records[index]["prompt"]), Line(fault or "right", RED if fault else GREEN)]
            picture = load_image(folder / f"{index:05d}" / "samples" / "0000.png")
            cells.append(Cell(picture, [*lines, Line(task.replace("_", " "), GREY, 15)]))
    return draw_sheet(cells, columns=min(4, len(cells)), title="Generated and judged")
