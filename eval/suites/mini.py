"""The suite `mini`: image tokenizer, questions and text to image of a model of the embedded world.

Each part is kept when it is measured, so that an interrupted run is continued.

    evotok eval mini runs/mini/gen-counts
    evotok eval mini mini --config configs/eval/mini-quick.yaml     an estimate from few questions and prompts
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ...data.world.evaluation import QUESTION_SETS
from ...data.world.icons import World, load_world
from ..mini.emoji import EMOJI_VARIANTS, EmojiRetrieval
from ..mini.generation import Composition, composition_variants
from ..mini.questions import measure_questions
from ..mini.targets import with_targets
from ..mini.tokenizer import measure_tokenizer
from ..suite import Evaluation, Report, SuiteOptions, require_at_least, sha256
from ..teachers import SiglipTeacher, find_teacher, teacher_files


TAKES = "checkpoint"
PARTS = ("tokenizer", "questions", "composition", "emoji")
NOTES = {
    "tokenizer": (
        "`psnr_new_style_depth4` and so on are of scenes whose icon styles are held out from all training. "
        "`semantic_cosine` compares decoded semantics with the frozen vision tower's features at every patch, beside "
        "that of the mean features (`_baseline`). `probe` is the accuracy of the thing at a patch, by one logistic "
        "regression that is fitted on the tower's features of other scenes and applied to semantics decoded from more "
        "and more levels. `_continuous`: the decoder is given the latents before quantization."
    ),
    "questions": (
        "`qa_` are greedy answers to canonical questions, exact match; `_baseline` is always giving the commonest "
        "answer, `_continuous` the same model with the vision tower's features instead of those of codes."
    ),
    "composition": (
        "`geneval_` is the share of images that show all that the prompt determines and nothing else: background, "
        "things, their number, colours and relation, by a detector without learned weights. `_held`: pairs of thing "
        "and colour (and of thing and relation) that are held out from all training. `geneval_detector` is the mean of "
        "how often the detector accepts real scenes and refuses them for a prompt that contradicts them; "
        "`geneval_ceiling` is the share that it accepts of real scenes after the image tokenizer. `_cfg1` is without "
        "guidance, `_no_min_p` with guidance but without the checkpoint's `guidance_min_p`."
    ),
    "emoji": (
        "`t2i_top5_train` is how often the prompt's emoji, in a named style, is among the five nearest of all emoji of "
        "the world in all styles, by pooled features of EfficientNet-Lite0; `_ceiling` is that of the emoji itself "
        "after the image tokenizer."
    ),
}


@dataclass
class Options(SuiteOptions):
    """Options of the suite `mini`."""

    batch_size: int = 64
    """Images, questions or prompts of a batch."""
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
        require_at_least(self, 1, "scenes", "probe_scenes", "questions", "emoji")
        if self.prompts < 2:
            raise ValueError(f"prompts={self.prompts} must be at least 2: each needs another one to contradict it.")


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError where a package of the parts or the vision tower is missing."""
    needed = {"tokenizer": ("sklearn", "eval"), "emoji": ("efficientnet_lite_pytorch", "mini")}
    for part, (package, extra) in needed.items():
        if part in options.parts and importlib.util.find_spec(package) is None:
            raise ValueError(f"{part} needs the package {package}: pip install 'evotok[{extra}]', or leave it out.")
    if not {"tokenizer", "questions"} & set(options.parts):
        return {}
    files = teacher_files(find_teacher(options.teacher, inputs[0]))
    return {"teacher": sha256(*files)} if files else {}


def run(evaluation: Evaluation) -> Report:
    """Measures the parts that the options name."""
    world = load_world()
    assert evaluation.load is not None
    model, processor = evaluation.load()
    if model.config.vq_config.image_size != world.size:
        size = model.config.vq_config.image_size
        raise ValueError(f"{evaluation.inputs[0]}: images of {size} px, not of {world.size}: give a mini model.")
    evaluation = replace(evaluation, load=lambda: (model, processor))
    parts = _measures(evaluation, world, model, processor)
    reports = [evaluation.measure_part(name, measure) for name, measure in parts.items()]
    evaluation.remove_parts()
    return _merge(evaluation, world, model, reports)


def _measures(evaluation: Evaluation, world: World, model: Any, processor: Any) -> dict[str, Callable[[], Report]]:
    """Returns the name of each part -> the function that measures it."""
    options, tokenizer = evaluation.options, model.model.vq_model
    parts: dict[str, Callable[[], Report]] = {}
    if {"tokenizer", "questions"} & set(options.parts):
        teacher = SiglipTeacher.from_pretrained(find_teacher(options.teacher, evaluation.inputs[0])).to(model.device)
        if "tokenizer" in options.parts:
            parts["tokenizer"] = partial(measure_tokenizer, evaluation, world, tokenizer, teacher)
        if "questions" in options.parts:
            ask = partial(measure_questions, evaluation, world, model, processor, teacher)
            parts |= {figure: partial(ask, figure) for figure in QUESTION_SETS}
    if "composition" in options.parts:
        composition = Composition(evaluation, world)
        variants = composition_variants(float(model.generation_config.guidance_min_p or 0.0))
        parts |= {variant.name: partial(composition.measure, variant) for variant in variants}
        parts["real_seen"] = partial(composition.measure_detector, False, tokenizer)
        parts["real_held_out"] = partial(composition.measure_detector, True, tokenizer)
    if "emoji" in options.parts:
        retrieval = EmojiRetrieval(evaluation, world, model.device)
        parts |= {variant.name: partial(retrieval.measure, variant) for variant in EMOJI_VARIANTS}
        parts["emoji_ceiling"] = partial(retrieval.measure_ceiling, tokenizer)
    return parts


def _merge(evaluation: Evaluation, world: World, model: Any, reports: list[Report]) -> Report:
    figures: dict[str, float] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        figures |= report.figures
        for name, rows in report.tables.items():
            tables.setdefault(name, []).extend(rows)
    modules = {"image tokenizer": model.model.vq_model, "language model": model.model.language_model}
    modules |= {"depth decoder": model.depth_decoder, "all": model}
    tables["parameters"] = [
        {"part": name, "parameters": sum(p.numel() for p in module.parameters())} for name, module in modules.items()
    ]
    sheets = {"seen.png": "seen pairs", "held_out.png": "held-out pairs of thing and colour, and of thing and relation"}
    return Report(
        with_targets(figures),
        tables,
        data={"world": sha256(*sorted(path for path in world.root.iterdir() if path.is_file()))},
        images=sheets if "composition" in evaluation.options.parts else {},
        notes=[NOTES[name] for name in PARTS if name in evaluation.options.parts],
    )
