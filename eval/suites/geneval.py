"""GenEval: are things, counts, colours and places in the pictures as the prompts ask for? (the paper's Table 3)

Pictures lie in the benchmark's own layout in `pictures/` and, with a rewriter, `pictures_rewritten/` of the folder of
results; beside them `verdicts.jsonl` has a line for each picture with what is wrong in it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor

from ...processing.image_loading_evotok import load_image
from ..suite import Evaluation, Report, fingerprints
from ..text_to_image.detectors import ColorClassifier, InstanceDetector, benchmark_names
from ..text_to_image.geneval import CONFIDENCE, COUNTING_CONFIDENCE, PAPER, judge, pick, read_records, scores, select
from ..text_to_image.images import draw_missing, in_numbered_folders, write_metadata
from ..text_to_image.prompt_rewriter import BenchmarkOptions, check_model, check_rewriter, read_processor, wordings
from ..text_to_image.verdicts import sample_sheet, write_verdicts


TAKES = "checkpoint"
NOTE = (
    "Share of right pictures, by the benchmark's rules: things above a confidence of 0.3 (0.9 where they are counted), "
    "places by centres that are apart by more than a tenth of both sizes, colours by zero-shot classification of the "
    "thing cut out. `overall` is the mean of the tasks. The paper's figures are with prompts rewritten by GPT-4o."
)
DETECTOR = "facebook/mask2former-swin-small-coco-instance"


@dataclass
class Options(BenchmarkOptions):
    """Where the benchmark and its networks are."""

    detector: str | None = None
    """Folder of the Mask2Former that finds things; the benchmark's is `mask2former-swin-small-coco-instance`."""
    colors: str | None = None
    """Folder of the CLIP or SigLIP that names colours; the benchmark's is `clip-vit-large-patch14`."""


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
    names = benchmark_names(config.id2label)
    for record in records:
        for clause in record["include"]:
            if clause["class"] not in names:
                raise ValueError(f"detector={options.detector}: knows no {clause['class']!r}: give {DETECTOR}.")
    if not hasattr(colors, "text_config"):
        raise ValueError(f"colors={options.colors}: embeds no text: give a CLIP or SigLIP with both towers.")
    read_processor(AutoImageProcessor, options.detector, "detector")
    read_processor(AutoProcessor, options.colors, "colors")
    return fingerprints(options, "prompts", "detector", "colors", "rewriter")


def run(evaluation: Evaluation) -> Report:
    """Draw all prompts, as they are and rewritten, then judge."""
    options, workers = evaluation.options, evaluation.workers
    records = pick(read_records(options.prompts), options.limit)
    both = wordings(evaluation, [record["prompt"] for record in records])
    dtype = draw_missing(evaluation, {f"pictures{s}": in_numbered_folders(both[s], options.images) for s in both})
    jury = Jury(InstanceDetector(options.detector, workers.state.device), options.colors, workers.state.device)
    report = Report(figures={}, data={"prompts": evaluation.files["prompts"]}, notes=[NOTE], dtype=dtype)
    if options.limit is not None:
        report.notes.append(f"A first impression: at most {options.limit} prompts of each task.")
    for suffix in both:
        folder = evaluation.folder / f"pictures{suffix}"
        cases = [(record, folder / f"{index:05d}" / "samples") for index, record in enumerate(records)]
        faults = workers.map(lambda case: jury.faults(*case, options.images), cases, f"judging {folder.name}")
        tags = [record["tag"] for record in records for _ in range(options.images)]
        shares = scores(tags, [not fault for own in faults for fault in own])
        for task, share in shares.items():
            count = len(tags) if task == "overall" else tags.count(task)
            figures = {"": share, "_paper": PAPER[task], "_n": count}
            report.figures |= {f"{task}{suffix}{kind}": value for kind, value in figures.items()}
        if workers.is_main:
            write_metadata(folder, records)
            write_verdicts(evaluation.folder / f"verdicts{suffix}.jsonl", records, faults)
            sample_sheet(folder, records, faults).save(evaluation.folder / f"sample{suffix}.png")
        report.pictures[f"sample{suffix}.png"] = "two prompts of each task, the first picture of each"
    return report


class Jury:
    """Finds things in the pictures of a prompt, and says what is wrong with them."""

    def __init__(self, detector: InstanceDetector, colors: str, device):
        self.detector, self.name_colors = detector, ColorClassifier(colors, device)

    def faults(self, record: dict[str, Any], folder: Path, images: int) -> list[list[str]]:
        """What is wrong with each picture of a prompt."""
        pictures = [load_image(folder / f"{copy:04d}.png") for copy in range(images)]
        least = COUNTING_CONFIDENCE if record["tag"] == "counting" else CONFIDENCE
        return [
            judge(record, select(things, least), lambda own, picture=picture: self.name_colors(picture, own))
            for picture, things in zip(pictures, self.detector(pictures), strict=True)
        ]
