"""GenAI-Bench: does a model that answers questions see in the pictures what the prompts say? (the paper's Table 3)

Pictures lie in the benchmark's own layout, `00000.jpeg`, in `pictures/` and, with a rewriter, `pictures_rewritten/` of
the folder of results; `scores.jsonl` has a line for each prompt.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoProcessor

from ...processing.image_loading_evotok import load_image
from ..suite import Evaluation, Report, fingerprints
from ..text_to_image.genai_bench import HEADLINES, PAPER, means, pick_evenly, read_prompts, read_skills
from ..text_to_image.images import Wanted, draw_missing
from ..text_to_image.prompt_rewriter import BenchmarkOptions, check_model, check_rewriter, read_processor, wordings
from ..text_to_image.vqascore import QUESTION, VQAScorer, answer_tokens


TAKES = "checkpoint"
NOTE = (
    f"VQAScore: the probability of the answer to {QUESTION.format('the prompt')!r}, mean over pictures, then over the "
    "prompts of a skill. Only figures of the same scorer can be compared: the benchmark's own is CLIP-FlanT5-XXL."
)


@dataclass
class Options(BenchmarkOptions):
    """Where the benchmark and its scorer are."""

    images: int = 1
    """Pictures of each prompt; the benchmark draws one."""
    skills: str | None = None
    """The benchmark's `genai_skills.json`."""
    scorer: str | None = None
    """Folder of the image-text-to-text model whose answers are the score."""


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError for prompts or skills that are not GenAI-Bench's, or a scorer that cannot answer."""
    for option, name in (("prompts", "genai_image.json"), ("skills", "genai_skills.json")):
        if getattr(options, option) is None:
            raise ValueError(f"{option}: none given: give GenAI-Bench's file: {option}={name}.")
    read_skills(options.skills, read_prompts(options.prompts))
    check_model(options.scorer, "scorer", "Qwen/Qwen2.5-VL-7B-Instruct")
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
    """Draw all prompts, as they are and rewritten, then ask about them."""
    options, folder, workers = evaluation.options, evaluation.folder, evaluation.workers
    everything = read_prompts(options.prompts)
    skills, prompts = read_skills(options.skills, everything), pick_evenly(everything, options.limit)
    both = wordings(evaluation, list(prompts.values()))
    wanted = {
        f"pictures{suffix}": [
            Wanted(text, file)
            for name, text in zip(prompts, texts, strict=True)
            for file in files_of(name, options.images)
        ]
        for suffix, texts in both.items()
    }
    dtype = draw_missing(evaluation, wanted)
    scorer = VQAScorer(options.scorer, workers.state.device)
    data = {option: evaluation.files[option] for option in ("prompts", "skills")}
    report = Report(figures={}, data=data, notes=[NOTE], dtype=dtype)
    if options.limit is not None:
        report.notes.append(f"A first impression: {len(prompts)} of {len(everything)} prompts.")
    for suffix in both:
        scores = _score(evaluation, scorer, prompts, folder / f"pictures{suffix}")
        of_skill = means(scores, skills)
        for skill in (*HEADLINES, "all"):
            if skill in of_skill:
                report.figures[f"{skill}{suffix}"] = of_skill[skill]
                report.figures |= {f"{skill}{suffix}_paper": PAPER[skill]} if skill in PAPER else {}
        report.tables[f"skills{suffix}"] = [
            {"skill": skill, "prompts": sum(name in prompts for name in skills[skill]), "score": of_skill[skill]}
            for skill in skills
            if skill in of_skill
        ]
        if workers.is_main:
            lines = [{"id": name, "prompt": text, "scores": scores[name]} for name, text in prompts.items()]
            path = folder / f"scores{suffix}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return report


def files_of(name: str, images: int) -> list[str]:
    """Names of the pictures of a prompt: the benchmark's, and numbered ones where there are more."""
    return [f"{name}.jpeg", *(f"{name}-{copy}.jpeg" for copy in range(2, images + 1))]


def _score(
    evaluation: Evaluation, scorer: VQAScorer, prompts: dict[str, str], pictures: Path
) -> dict[str, list[float]]:
    """Id -> score of each picture. Asked about is what the benchmark says, whatever a rewriter made of it."""
    size, images = evaluation.options.batch_size, evaluation.options.images
    asked = [(text, pictures / file) for name, text in prompts.items() for file in files_of(name, images)]
    batches = [asked[start : start + size] for start in range(0, len(asked), size)]

    def score(batch: list[tuple[str, Path]]) -> list[float]:
        return scorer([load_image(path) for _, path in batch], [text for text, _ in batch])

    flat = [value for one in evaluation.workers.map(score, batches, f"asking {pictures.name}") for value in one]
    return {name: flat[index * images : (index + 1) * images] for index, name in enumerate(prompts)}
