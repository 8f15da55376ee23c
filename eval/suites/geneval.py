"""GenEval: share of generated images with the things, counts, colours and places of their prompts (Table 3).

Images are in the benchmark's own layout in `pictures/` and, with a rewriter, `pictures_rewritten/` of the folder of
results; `verdicts.jsonl` has a line for each image with what is wrong with it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoImageProcessor, AutoProcessor

from ...processing.image_loading_evotok import load_image
from ..suite import Evaluation, Report, fingerprints
from ..text_to_image.benchmark import BenchmarkOptions, check_model, read_processor
from ..text_to_image.detectors import ColorClassifier, InstanceDetector, benchmark_names
from ..text_to_image.geneval import (
    CONFIDENCE,
    COUNTING_CONFIDENCE,
    PAPER,
    judge,
    pick_records,
    read_records,
    select,
    task_shares,
)
from ..text_to_image.geneval_layout import image_file, plan_images, render_samples, write_metadata, write_verdicts
from ..text_to_image.images import generate_missing
from ..text_to_image.prompt_rewriter import check_rewriter, prompt_wordings


TAKES = "checkpoint"
NOTE = (
    "Share of right images, by the benchmark's rules: things above a confidence of 0.3 (0.9 where they are counted), "
    "places by centres that are apart by more than a tenth of both sizes, colours by zero-shot classification of the "
    "thing cut out. `overall` is the mean of the tasks. The paper's figures are with prompts rewritten by GPT-4o."
)
DETECTOR = "facebook/mask2former-swin-small-coco-instance"


@dataclass
class Options(BenchmarkOptions):
    """Options of the suite `geneval`."""

    detector: str | None = None
    """Folder of the Mask2Former that detects things; the benchmark's is `mask2former-swin-small-coco-instance`."""
    colors: str | None = None
    """Folder of the CLIP or SigLIP that classifies colours; the benchmark's is `clip-vit-large-patch14`."""


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError for prompts that are not GenEval's, or networks that cannot judge them."""
    if options.prompts is None:
        raise ValueError("prompts: none given: give GenEval's file: prompts=evaluation_metadata.jsonl.")
    records = read_records(options.prompts)
    config = check_model(options.detector, "detector", DETECTOR)
    colors = check_model(options.colors, "colors", "openai/clip-vit-large-patch14")
    check_rewriter(options.rewriter)
    if config.model_type != "mask2former":
        raise ValueError(f"detector={options.detector}: a {config.model_type}: give a Mask2Former, such as {DETECTOR}.")
    names = benchmark_names(cast("dict[int, str]", config.id2label))
    for record in records:
        for clause in record["include"]:
            if clause["class"] not in names:
                raise ValueError(f"detector={options.detector}: has no class {clause['class']!r}: give {DETECTOR}.")
    if not hasattr(colors, "text_config"):
        raise ValueError(f"colors={options.colors}: embeds no text: give a CLIP or SigLIP with both towers.")
    assert options.detector is not None and options.colors is not None  # `check_model` refuses None
    read_processor(AutoImageProcessor, options.detector, "detector")
    read_processor(AutoProcessor, options.colors, "colors")
    return fingerprints(options, "prompts", "detector", "colors", "rewriter")


def run(evaluation: Evaluation) -> Report:
    """Generates images of the prompts, as they are and rewritten, and judges them."""
    options, workers = evaluation.options, evaluation.workers
    records = pick_records(read_records(options.prompts), options.limit)
    wordings = prompt_wordings(evaluation, [record["prompt"] for record in records])
    planned = {f"pictures{suffix}": plan_images(prompts, options.images) for suffix, prompts in wordings.items()}
    dtype = generate_missing(evaluation, planned)
    judges = Judges(options, workers.state.device)
    report = Report(figures={}, data={"prompts": evaluation.files["prompts"]}, notes=[NOTE], dtype=dtype)
    if options.limit is not None:
        report.notes.append(f"An estimate from at most {options.limit} prompts of each task.")
    for suffix in wordings:
        folder = evaluation.folder / f"pictures{suffix}"
        faults = workers.map(
            lambda case, folder=folder: judges.faults(folder, *case), list(enumerate(records)), f"judging {folder.name}"
        )
        tags = [record["tag"] for record in records for _ in range(options.images)]
        for task, share in task_shares(tags, [not fault for own in faults for fault in own]).items():
            count = len(tags) if task == "overall" else tags.count(task)
            figures = {"": share, "_paper": PAPER[task], "_n": count}
            report.figures |= {f"{task}{suffix}{kind}": value for kind, value in figures.items()}
        if workers.is_main:
            write_metadata(folder, records)
            write_verdicts(evaluation.folder / f"verdicts{suffix}.jsonl", records, faults)
            render_samples(folder, records, faults).save(evaluation.folder / f"sample{suffix}.png")
        report.images[f"sample{suffix}.png"] = "two prompts of each task, the first image of each"
    return report


class Judges:
    """Detector of things and classifier of colours, which judge images by GenEval's rules."""

    def __init__(self, options: Options, device: torch.device):
        assert options.detector is not None and options.colors is not None  # `check` refuses None
        self.images = options.images
        self.detector = InstanceDetector(options.detector, device)
        self.classify_colors = ColorClassifier(options.colors, device)

    def faults(self, folder: Path, index: int, record: dict[str, Any]) -> list[list[str]]:
        """Returns what is wrong with each image of a prompt."""
        images = [load_image(folder / image_file(index, copy)) for copy in range(self.images)]
        least = COUNTING_CONFIDENCE if record["tag"] == "counting" else CONFIDENCE
        return [
            judge(record, select(things, least), lambda own, image=image: self.classify_colors(image, own))
            for image, things in zip(images, self.detector(images), strict=True)
        ]
