"""GenAI-Bench: VQAScore of generated images, the share of a prompt that they show by a model's answers (Table 3).

Images are in the benchmark's own layout, `00000.jpeg`, in `pictures/` and, with a rewriter, `pictures_rewritten/` of
the folder of results; `scores.jsonl` has a line for each prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoProcessor

from ...data.sequences import pick_evenly
from ...processing.image_loading_evotok import load_image
from ..results import write_json_lines
from ..sequences import map_batches
from ..suite import Evaluation, Report, fingerprints
from ..text_to_image.benchmark import BenchmarkOptions, check_model, read_processor
from ..text_to_image.genai_bench import (
    HEADLINES,
    PAPER,
    QUESTION,
    VQAScorer,
    answer_tokens,
    mean_scores,
    read_prompts,
    read_skills,
)
from ..text_to_image.images import PlannedImage, generate_missing
from ..text_to_image.prompt_rewriter import check_rewriter, prompt_wordings


TAKES = "checkpoint"
NOTE = (
    f"VQAScore: the probability of the answer to {QUESTION.format('the prompt')!r}, mean over images, then over the "
    "prompts of a skill. Only figures of the same scorer can be compared: the benchmark's own is CLIP-FlanT5-XXL."
)


@dataclass
class Options(BenchmarkOptions):
    """Options of the suite `genai-bench`."""

    images: int = 1
    """Images of each prompt; the benchmark has one."""
    skills: str | None = None
    """The benchmark's `genai_skills.json`."""
    scorer: str | None = None
    """Folder of the image-text-to-text model whose answers are the score."""


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError for prompts or skills that are not GenAI-Bench's, or a scorer that cannot answer."""
    for option, name in (("prompts", "genai_image.json"), ("skills", "genai_skills.json")):
        if getattr(options, option) is None:
            raise ValueError(f"{option}: none given: give GenAI-Bench's file: {option}={name}.")
    assert options.prompts is not None and options.skills is not None
    read_skills(options.skills, read_prompts(options.prompts))
    check_model(options.scorer, "scorer", "Qwen/Qwen2.5-VL-7B-Instruct")
    assert options.scorer is not None  # `check_model` refuses None
    processor = read_processor(AutoProcessor, options.scorer, "scorer")
    if not hasattr(processor, "image_processor"):
        raise ValueError(f"scorer={options.scorer}: reads no images: give an image-text-to-text model.")
    try:
        answer_tokens(processor.tokenizer)
    except ValueError as error:
        raise ValueError(f"scorer={options.scorer}: {error}: give another model.") from None
    check_rewriter(options.rewriter)
    return fingerprints(options, "prompts", "skills", "scorer", "rewriter")


def run(evaluation: Evaluation) -> Report:
    """Generates images of the prompts, as they are and rewritten, and scores them."""
    options, folder = evaluation.options, evaluation.folder
    everything = read_prompts(options.prompts)
    skills = read_skills(options.skills, everything)
    prompts = {name: everything[name] for name in pick_evenly(list(everything), options.limit)}
    wordings = prompt_wordings(evaluation, list(prompts.values()))
    planned = {
        f"pictures{suffix}": [
            PlannedImage(text, file)
            for name, text in zip(prompts, texts, strict=True)
            for file in prompt_image_files(name, options.images)
        ]
        for suffix, texts in wordings.items()
    }
    dtype = generate_missing(evaluation, planned)
    scorer = VQAScorer(options.scorer, evaluation.workers.state.device)
    data = {option: evaluation.files[option] for option in ("prompts", "skills")}
    report = Report(figures={}, data=data, notes=[NOTE], dtype=dtype)
    if options.limit is not None:
        report.notes.append(f"An estimate from {len(prompts)} of {len(everything)} prompts.")
    for suffix in wordings:
        scores = _score(evaluation, scorer, prompts, folder / f"pictures{suffix}")
        of_skill = mean_scores(scores, skills)
        for skill in (*HEADLINES, "all"):
            if skill in of_skill:
                report.figures[f"{skill}{suffix}"] = of_skill[skill]
                report.figures |= {f"{skill}{suffix}_paper": PAPER[skill]} if skill in PAPER else {}
        report.tables[f"skills{suffix}"] = [
            {"skill": skill, "prompts": sum(name in prompts for name in skills[skill]), "score": of_skill[skill]}
            for skill in skills
            if skill in of_skill
        ]
        if evaluation.workers.is_main:
            lines = [{"id": name, "prompt": text, "scores": scores[name]} for name, text in prompts.items()]
            write_json_lines(folder / f"scores{suffix}.jsonl", lines)
    return report


def prompt_image_files(name: str, images: int) -> list[str]:
    """Returns the names of a prompt's images: the benchmark's, and numbered ones where there are more."""
    return [f"{name}.jpeg", *(f"{name}-{copy}.jpeg" for copy in range(2, images + 1))]


def _score(evaluation: Evaluation, scorer: VQAScorer, prompts: dict[str, str], folder: Path) -> dict[str, list[float]]:
    """Scores each image by the benchmark's prompt, whatever a rewriter made of it: id -> scores of its images."""
    count = evaluation.options.images
    pairs = [(text, folder / file) for name, text in prompts.items() for file in prompt_image_files(name, count)]

    def score(batch: Sequence[tuple[str, Path]]) -> list[float]:
        return scorer([load_image(path) for _, path in batch], [text for text, _ in batch])

    flat = map_batches(evaluation.workers, score, pairs, evaluation.options.batch_size, f"asking {folder.name}")
    return {name: flat[index * count : (index + 1) * count] for index, name in enumerate(prompts)}
