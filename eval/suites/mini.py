"""All that EvoTok-mini is to show, on its world: tokenizer, questions, text to image.

What is ready is kept when a measurement is cut off, and the next one goes on there.

    evotok eval mini runs/mini/gen
    evotok eval mini mini --config configs/eval/mini-quick.yaml     few samples of everything
"""

import importlib.util
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...data.world.evaluation import QUESTION_SETS
from ...data.world.icons import World, load_world
from ..mini.emoji import EMOJI_CELLS, EmojiRetrieval
from ..mini.figures import Part, Parts, with_targets
from ..mini.generation import Composition, composition_cells
from ..mini.questions import measure_questions
from ..mini.tokenizer import measure_tokenizer
from ..suite import Evaluation, Report, SuiteOptions, sha256
from ..teachers import SiglipTeacher, find_teacher, teacher_files


TAKES = "checkpoint"
PARTS = ("tokenizer", "questions", "composition", "emoji")
NOTES = {
    "tokenizer": (
        "`psnr_new_style_depth4` and so on are of scenes whose icon styles are held out from all training. "
        "`semantic_cosine` compares decoded semantics with the frozen vision tower's features at every patch, beside "
        "that of the mean features (`_baseline`). `probe` is the accuracy of the thing at a patch, by one logistic "
        "regression that is fitted on the tower's features of other scenes and applied to semantics decoded from more "
        "and more levels. `_continuous`: the decoder is given the latents before quantisation."
    ),
    "questions": (
        "`qa_` are greedy answers to canonical questions, exact match; `_baseline` is always giving the commonest "
        "answer, `_continuous` the same model with the vision tower's features instead of those of codes."
    ),
    "composition": (
        "`geneval_` is the share of images that show what the prompt says and nothing else: background, things, their "
        "number, colours and relation, by a detector without learned weights. `_held`: pairs of thing and colour (and "
        "of thing and relation) that are held out from all training. `geneval_detector` is the mean of how often the "
        "detector accepts real scenes and refuses them for a prompt that contradicts them; `geneval_ceiling` is the "
        "share that it accepts of real scenes after the image tokenizer. `_cfg1` is without guidance, `_no_min_p` with "
        "guidance but without the checkpoint's `guidance_min_p`."
    ),
    "emoji": (
        "`t2i_top5_train` is how often the emoji asked for, in a named style, is among the five nearest of all emoji "
        "of the world in all styles, by pooled features of EfficientNet-Lite0; `_ceiling` is that of the emoji itself "
        "after the image tokenizer."
    ),
}


@dataclass
class Options(SuiteOptions):
    """How much is measured."""

    batch_size: int = 64
    """Images, questions or prompts at a time."""
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    """Of tokenizer, questions, composition, emoji."""
    scenes: int = 512
    """Scenes of held-out styles that the tokenizer reconstructs."""
    probe_scenes: int = 1024
    """Scenes of trained styles that the probe is fitted on."""
    questions: int = 512
    """Questions of each set."""
    prompts: int = 128
    """Prompts of each task."""
    emoji: int = 192
    """Prompts for single emoji."""
    teacher: str = ""
    """Folder or hub id of the vision tower that the tokenizer was trained with; `vision` beside the checkpoint, or the
    embedded one, when empty."""

    def __post_init__(self):
        super().__post_init__()
        for name in self.parts:
            if name not in PARTS:
                raise ValueError(f"parts: unknown {name!r}: choose among {', '.join(PARTS)}.")
        for name in ("scenes", "probe_scenes", "questions", "emoji"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.prompts < 2:
            raise ValueError(f"prompts={self.prompts} must be at least 2: each needs another one to contradict it.")


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError where an extra is missing or the vision tower cannot be found."""
    needed = {"tokenizer": ("sklearn", "eval"), "emoji": ("efficientnet_lite_pytorch", "mini")}
    for part, (package, extra) in needed.items():
        if part in options.parts and importlib.util.find_spec(package) is None:
            raise ValueError(f"{part} needs the package {package}: pip install 'evotok[{extra}]', or leave it out.")
    if not {"tokenizer", "questions"} & set(options.parts):
        return {}
    files = teacher_files(find_teacher(options.teacher, inputs[0]))
    return {"teacher": sha256(*files)} if files else {}


def run(evaluation: Evaluation) -> Report:
    """Measures the parts asked for, each once."""
    options, world = evaluation.options, load_world()
    assert evaluation.load is not None
    model, processor = evaluation.load()
    if model.config.vq_config.image_size != world.size:
        size = model.config.vq_config.image_size
        raise ValueError(f"{evaluation.inputs[0]}: images of {size} px, not of {world.size}: give a mini model.")
    evaluation = replace(evaluation, load=lambda: (model, processor))
    teacher = _teacher(evaluation, model.device) if {"tokenizer", "questions"} & set(options.parts) else None
    kept = Parts(evaluation)
    found: list[Part] = []
    if "tokenizer" in options.parts:
        found.append(kept.get("tokenizer", lambda: _tokenizer(evaluation, world, model.model.vq_model, teacher)))
    if "questions" in options.parts:
        ask = lambda figure: measure_questions(  # noqa: E731
            model, processor, world, figure, options, evaluation.workers, teacher
        )
        found += [kept.get(figure, lambda figure=figure: ask(figure)) for figure in QUESTION_SETS]
    if "composition" in options.parts:
        found += _composition(evaluation, world, kept, model)
    if "emoji" in options.parts:
        found += _emoji(evaluation, world, kept, model)
    kept.drop()
    return _report(evaluation, world, model, found)


def _teacher(evaluation: Evaluation, device: torch.device) -> SiglipTeacher:
    folder = find_teacher(evaluation.options.teacher, evaluation.inputs[0])
    return SiglipTeacher.from_pretrained(folder).to(device)


def _tokenizer(evaluation: Evaluation, world: World, tokenizer: Any, teacher: SiglipTeacher) -> Part:
    return measure_tokenizer(tokenizer, teacher, world, evaluation.options, evaluation.workers)


def _composition(evaluation: Evaluation, world: World, kept: Parts, model: Any) -> list[Part]:
    composition, tokenizer = Composition(evaluation, world), model.model.vq_model
    found = [
        kept.get(
            "real_held_out" if held_out else "real_seen",
            lambda held_out=held_out: composition.measure_detector(held_out, tokenizer),
        )
        for held_out in (False, True)
    ]
    cells = composition_cells(float(model.generation_config.guidance_min_p or 0.0))
    return [kept.get(cell.name, lambda cell=cell: composition.measure(cell)) for cell in cells] + found


def _emoji(evaluation: Evaluation, world: World, kept: Parts, model: Any) -> list[Part]:
    retrieval = EmojiRetrieval(evaluation, world, model.device)
    found = [kept.get(cell.name, lambda cell=cell: retrieval.measure(cell)) for cell in EMOJI_CELLS]
    return [*found, kept.get("emoji_ceiling", lambda: retrieval.measure_ceiling(model.model.vq_model))]


def _report(evaluation: Evaluation, world: World, model: Any, found: list[Part]) -> Report:
    figures: dict[str, float] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    for part in found:
        figures |= part.figures
        for name, rows in part.tables.items():
            tables.setdefault(name, []).extend(rows)
    parts = {"image tokenizer": model.model.vq_model, "language model": model.model.language_model}
    parts |= {"depth decoder": model.depth_decoder, "all": model}
    tables["parameters"] = [
        {"part": name, "parameters": sum(p.numel() for p in part.parameters())} for name, part in parts.items()
    ]
    sheets = {"seen.png": "seen pairs", "held_out.png": "held-out pairs of thing and colour, and of thing and relation"}
    return Report(
        with_targets(figures),
        tables,
        data={"world": sha256(*sorted(path for path in world.root.iterdir() if path.is_file()))},
        pictures=sheets if "composition" in evaluation.options.parts else {},
        notes=[NOTES[name] for name in PARTS if name in evaluation.options.parts],
    )
