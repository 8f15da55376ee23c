"""emoji-GenEval: GenEval's six tasks for models of the emoji world, in the language of its prompts.

    single_object   "a frog, noto style"                                     the thing
    two_object      "a frog and a pizza on a blue background, noto style"    both things
    counting        "three frogs on a blue background, noto style"           as many and no more
    colors          "a frog on a blue background, noto style"                the thing, and the background's colour
    position        "a frog left of a pizza on a blue ..."                   both things, each in its place
    attribution     "a frog and a pizza on a blue background, noto style"    both things, colour and style

Colours of things are no part of the language: what a prompt can say of the looks of a scene is the colour behind it and
the style it is drawn in. So `attribution` asks for everything at once: the colour behind the things and not on them,
the style of the things.

All drawings asked for were seen in training, alone and in scenes; their combinations were not. The rules are GenEval's
(`eval/geneval.py`); things are found by `eval/emoji_detector.py`, whose own accuracy is measured on the scenes that the
prompts describe, and on those sent through the image tokenizer, which is the most that the model could reach.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from ...processing.image_loading_evotok import load_image
from ...training.emoji.colors import COLORS, PALETTE
from ...training.emoji.prompts import STYLE_NAMES, caption, scene_prompt
from ...training.emoji.scenes import Scene, render, sample_scene
from ...training.emoji.world import Drawing, EmojiWorld
from ...training.teachers import EfficientNetTeacher
from ...training.tokenizer_data import to_pixels
from ..emoji_detector import EmojiDetector, Sight
from ..geneval import judge, scores, select
from ..pictures import DrawingOptions, draw_missing, in_numbered_folders, write_metadata
from ..suite import Evaluation, Report, sha256
from ..verdicts import sample_sheet, write_verdicts


TAKES = "checkpoint"
TASKS = ("single_object", "two_object", "counting", "colors", "position", "attribution")
STYLES = tuple(style for style in STYLE_NAMES if style != "openmoji")
NOTE = (
    "Share of pictures that show what the prompt says, by GenEval's rules. Things are found by what differs from the "
    "background and named by the nearest of {} drawings of {} things. `detector` is its own accuracy on the real "
    "scenes of the same prompts: the mean of how often it accepts the prompt and how often it refuses one that differs "
    "in what the task is about. `ceiling` is what it accepts of the real scenes after the image tokenizer."
)


@dataclass
class Options(DrawingOptions):
    """How much is drawn."""

    images: int = 1
    """Pictures of each prompt."""
    prompts: int = 32
    """Prompts of each task."""

    def __post_init__(self):
        super().__post_init__()
        if self.prompts < 2:
            raise ValueError(f"prompts={self.prompts} must be at least 2: each task has a second one to confuse with.")


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError where the detector cannot be built: an extra is missing."""
    try:
        import efficientnet_lite_pytorch  # noqa: F401
        import scipy  # noqa: F401
    except ImportError:
        raise ValueError("emoji-geneval needs scipy and EfficientNet-Lite0: pip install 'evotok[eval,mini]'.") from None
    return {}


@dataclass(frozen=True)
class Case:
    """A prompt and the scene that it describes."""

    record: dict[str, Any]
    """As GenEval's, with `background` and `style` where the task asks for them."""
    scene: Scene | Drawing

    def image(self, world: EmojiWorld) -> Image.Image:
        """The scene as it is."""
        return world.image(self.scene) if isinstance(self.scene, Drawing) else render(self.scene, world)


def build_cases(world: EmojiWorld, count: int, seed: int) -> list[Case]:
    """`count` prompts of each task, the same for the same seed; counts and styles take turns."""
    cases = []
    for task in TASKS:
        for index in range(count):
            rng = random.Random(f"{seed}/{task}/{index}")
            style = STYLES[index % len(STYLES)]
            drawings = [drawing for drawing in world.drawings("train", familiar=True) if drawing.style == style]
            cases.append(_build_case(rng, world, drawings, task, 2 + index // len(STYLES) % 3))
    return cases


def _build_case(rng: random.Random, world: EmojiWorld, drawings: list[Drawing], task: str, number: int) -> Case:
    if task == "single_object":
        drawing = rng.choice(drawings)
        return Case({"tag": task, "prompt": caption(drawing)} | _include(drawing.concept.name), drawing)
    kind = {"counting": "same", "position": "pair"}.get(task, "mixed")
    count = {"counting": number, "colors": 1}.get(task, 2)
    while True:
        scene = sample_scene(rng, world, drawings, count=count, kind=kind)
        names = [item.drawing.concept.name for item in scene.items]
        relation = scene.relation()
        # A prompt says where things are as soon as it is clear: for "and" it must not be.
        if kind != "mixed" or count == 1 or (len(set(names)) == 2 and relation is None):
            break
    record = {"tag": task, "prompt": scene_prompt(rng, scene, canonical=True)}
    if task == "counting":
        record |= _count(names[0], number)
    else:
        record |= _include(*names)
    if task == "position":  # the first thing is said to be somewhere, seen from the second
        second, first = record["include"][::-1]
        where = f"{relation} of" if relation in ("left", "right") else relation
        record["include"] = [second, first | {"position": [where, 0]}]
    if task in ("colors", "attribution"):
        record["background"] = scene.background
    if task == "attribution":
        record["style"] = scene.items[0].drawing.style
    return Case(record, scene)


def _include(*names: str) -> dict[str, Any]:
    return {"include": [{"class": name, "count": 1} for name in names]}


def _count(name: str, number: int) -> dict[str, Any]:
    return {"include": [{"class": name, "count": number}], "exclude": [{"class": name, "count": number + 1}]}


def contradict(record: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A record that a picture of `record` must not pass, changed in what its task is about and in nothing else.

    Args:
        other: of the same task, to take another thing from.
    """
    task, (*rest, last) = record["tag"], record["include"]
    if task == "counting":
        number = last["count"] + (1 if last["count"] < 4 else -1)
        return record | _count(last["class"], number)
    if task == "position":
        relation, target = last["position"]
        opposite = {"left of": "right of", "above": "below"}
        opposite |= {second: first for first, second in opposite.items()}
        return record | {"include": [*rest, last | {"position": [opposite[relation], target]}]}
    if task == "attribution":
        return record | {"style": STYLES[(STYLES.index(record["style"]) + 1) % len(STYLES)]}
    if task == "colors":
        return record | {"background": COLORS[(COLORS.index(record["background"]) + 1) % len(COLORS)]}
    taken = [clause["class"] for clause in record["include"]]
    strange = next((clause for clause in other["include"] if clause["class"] not in taken), {"class": "nothing"})
    return record | {"include": [*rest, last | {"class": strange["class"]}]}


def faults(record: dict[str, Any], sight: Sight) -> list[str]:
    """What is wrong with a picture, in words; nothing for a right one."""
    wrong = judge(record, select(sight.things), lambda things: [])
    for key, seen in (("background", sight.background), ("style", sight.style)):
        if key in record and record[key] != seen:
            wrong.append(f"{key}: {seen}, not {record[key]}")
    return wrong


def build_detector(world: EmojiWorld, device: torch.device) -> EmojiDetector:
    """A gallery of every familiar thing in every style that prompts can name."""
    teacher = EfficientNetTeacher().to(device)
    drawings = [Drawing(concept, style) for style in STYLES for concept in world.familiar]
    return EmojiDetector(
        lambda pixels: teacher.pooled(pixels.to(device)),
        PALETTE,
        [world.rgba(drawing) for drawing in drawings],
        [drawing.concept.name for drawing in drawings],
        [drawing.style for drawing in drawings],
    )


def run(evaluation: Evaluation) -> Report:
    """Draw, judge, and judge the judge."""
    options, workers, world = evaluation.options, evaluation.workers, EmojiWorld()
    model, processor = evaluation.load()
    if model.config.vq_config.image_size != world.size:
        size = model.config.vq_config.image_size
        raise ValueError(f"{evaluation.inputs[0]}: images of {size} px, not of {world.size}: give a mini model.")
    evaluation = replace(evaluation, load=lambda: (model, processor))
    cases = build_cases(world, options.prompts, options.seed)
    records, pictures = [case.record for case in cases], evaluation.folder / "pictures"
    wanted = in_numbered_folders([record["prompt"] for record in records], options.images)
    dtype = draw_missing(evaluation, {pictures.name: wanted})

    detector = build_detector(world, workers.state.device)
    drawn = workers.map(lambda picture: detector(load_image(pictures / picture.file)), wanted, "judging pictures")
    scenes = workers.map(lambda case: detector(case.image(world)), cases, "judging scenes")
    copies = workers.map(lambda case: detector(_through(model, processor, case.image(world))), cases, "judging copies")

    found = [
        [faults(record, sight) for sight in drawn[index * options.images : (index + 1) * options.images]]
        for index, record in enumerate(records)
    ]
    right = _shares(records, lambda index: [not fault for fault in found[index]])
    accepted = _shares(records, lambda index: [not faults(records[index], scenes[index])])
    refused = _shares(records, lambda index: [bool(faults(_contradicted(records, index), scenes[index]))])
    ceiling = _shares(records, lambda index: [not faults(records[index], copies[index])])
    figures: dict[str, float] = {}
    for task in ("overall", *TASKS):
        count = options.prompts * options.images * (len(TASKS) if task == "overall" else 1)
        figures |= {task: right[task], f"{task}_n": count, f"{task}_ceiling": ceiling[task]}
        figures[f"{task}_detector"] = (accepted[task] + refused[task]) / 2
    table = [
        {"task": task, "drawn": right[task], "ceiling": ceiling[task]}
        | {"real scenes accepted": accepted[task], "contradictions refused": refused[task]}
        for task in (*TASKS, "overall")
    ]
    if workers.is_main:
        write_metadata(pictures, records)
        write_verdicts(evaluation.folder / "verdicts.jsonl", records, found)
        sample_sheet(pictures, records, found, each=4).save(evaluation.folder / "sample.png")
    return Report(
        figures,
        {"tasks": table},
        data={"emoji": sha256(*sorted(path for path in world.root.iterdir() if path.is_file()))},
        pictures={"sample.png": "four prompts of each task"},
        notes=[NOTE.format(len(world.familiar) * len(STYLES), len(world.familiar))],
        dtype=dtype,
    )


def _contradicted(records: Sequence[dict[str, Any]], index: int) -> dict[str, Any]:
    """A contradiction of a record, with things of the next one of its task, or of the one before."""
    near = records[(index + 1) % len(records)]
    return contradict(records[index], near if near["tag"] == records[index]["tag"] else records[index - 1])


def _shares(records: Sequence[dict[str, Any]], right: Callable[[int], list[bool]]) -> dict[str, float]:
    """Share of what is right of each task and `overall`; `right` of each record, by its index."""
    pairs = [(record["tag"], ok) for index, record in enumerate(records) for ok in right(index)]
    return scores([tag for tag, _ in pairs], [ok for _, ok in pairs])


@torch.inference_mode()
def _through(model, processor, image: Image.Image) -> Image.Image:
    """A picture after the image tokenizer, at the depth that is drawn."""
    tokenizer = model.model.vq_model
    pixels = to_pixels(image)[None].to(model.device)
    return processor.post_process_image_generation(tokenizer.decode_pixels(tokenizer.encode(pixels)))[0]
