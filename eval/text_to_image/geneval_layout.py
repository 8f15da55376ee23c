"""Folder of generated images in GenEval's layout: images, metadata, verdicts, and a contact sheet of some of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...data.atomic_files import atomic_file
from ...processing.image_loading_evotok import load_image
from ..plotting.sheets import GREEN, GREY, RED, Cell, Line, draw_sheet
from ..results import write_json_lines
from .images import PlannedImage


Faults = Sequence[Sequence[Sequence[str]]]
"""For each prompt and each of its images: what is wrong with the image."""


def image_file(index: int, copy: int = 0) -> str:
    """Returns the path of an image of a prompt in the folder."""
    return f"{index:05d}/samples/{copy:04d}.png"


def plan_images(prompts: Sequence[str], images: int) -> list[PlannedImage]:
    """Plans `images` images for each prompt."""
    return [
        PlannedImage(prompt, image_file(index, copy)) for index, prompt in enumerate(prompts) for copy in range(images)
    ]


def write_metadata(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes `00000/metadata.jsonl` and so on, for scorers that read GenEval's layout."""
    for index, record in enumerate(records):
        with atomic_file(folder / f"{index:05d}" / "metadata.jsonl") as part:
            part.write_text(json.dumps(record) + "\n", encoding="utf-8")


def write_verdicts(path: Path, records: Sequence[dict[str, Any]], faults: Faults) -> None:
    """Writes a line for each image: file, task, prompt, whether the image is right, and the reason if not."""
    lines = [
        {"picture": image_file(index, copy), "tag": record["tag"], "prompt": record["prompt"]}
        | {"correct": not fault, "reason": "; ".join(fault)}
        for index, (record, own) in enumerate(zip(records, faults, strict=True))
        for copy, fault in enumerate(own)
    ]
    write_json_lines(path, lines)


def render_samples(folder: Path, records: Sequence[dict[str, Any]], faults: Faults, each: int = 2) -> Image.Image:
    """Renders the first image of the first `each` prompts of every task, with its faults, as a contact sheet."""
    cells = []
    for task in dict.fromkeys(record["tag"] for record in records):
        for index in [index for index, record in enumerate(records) if record["tag"] == task][:each]:
            fault = "; ".join(faults[index][0])
            lines = [Line(records[index]["prompt"]), Line(fault or "right", RED if fault else GREEN)]
            lines.append(Line(task.replace("_", " "), GREY, 15))
            cells.append(Cell(load_image(folder / image_file(index)), lines))
    return draw_sheet(cells, columns=min(4, len(cells)), title="Generated and judged")
