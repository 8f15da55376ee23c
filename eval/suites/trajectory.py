"""What each level of the trajectory adds: pixels, then meaning (figures 3, 5 and 6 of the paper)."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...training.checkpoints import check_source
from ...training.emoji.world import Drawing, EmojiWorld
from ...training.image_sets import ImageSet, folder_images, limited, look_through
from ...training.taught_images import calibrated_teacher
from ...training.teachers import EfficientNetTeacher, SiglipTeacher
from ...training.tokenizer_data import image_files, to_pixels
from ...training.tokenizer_probes import evenly
from ..clusters import cluster, project
from ..frechet import FeatureStatistics, frechet_distance
from ..metrics import feature_cosine, psnr
from ..suite import Evaluation, Report, SuiteOptions, fingerprints, sha256, write_csv
from ..trajectory_pictures import cluster_sheet, plot_depths, plot_walks, reconstruction_sheet
from ..workers import Workers


TAKES = "tokenizer"
EFFICIENTNET = "efficientnet"
CLUSTER_DEPTHS = (1, 4, 8, 16)  # Fig. 6
RECONSTRUCTIONS = 8


@dataclass
class Options(SuiteOptions):
    """What is looked at."""

    images: int = 576
    """Images at most."""
    data: str | None = None
    """Folder of images; drawings of the emoji world that were never trained on when left out."""
    teacher: str = EFFICIENTNET
    """What the tokenizer learnt its semantics from: `efficientnet`, or folder or hub id of a SigLIP checkpoint."""
    tokens: int = 150
    """Positions whose way through the levels is drawn."""
    clusters: int = 8
    """Of K-means."""

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("images", 40), ("tokens", 40), ("clusters", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")


class Images(NamedTuple):
    """What is measured on."""

    pixels: torch.Tensor
    """(I, 3, H, W) in [-1, 1]."""
    labels: dict[str, list[str]]
    """What is known of each: its `group`, its dominant `color`; empty for a folder."""
    fingerprint: dict[str, str]


class Level(NamedTuple):
    """A batch, decoded of the first levels."""

    psnr: torch.Tensor
    """(B,) in dB."""
    embedding: torch.Tensor
    """(B, E), what the teacher sees in the reconstruction."""
    cosine: torch.Tensor
    """(B,), of decoded semantics to the teacher's."""
    latents: torch.Tensor
    """(B, N, C), the sum of the entries."""


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError for a folder without images or with one that cannot be read, a teacher that is not there, or an
    extra that is missing."""
    needed = {"sklearn": "eval", "matplotlib": "eval"}
    if options.teacher == EFFICIENTNET:
        needed["efficientnet_lite_pytorch"] = "mini"
    else:
        check_source(options.teacher, "teacher")
    for package, extra in needed.items():
        if find_spec(package) is None:
            raise ValueError(f"the package {package} is missing: pip install 'evotok[{extra}]'")
    if options.data is not None:
        _check_images(_folder(options), options.clusters)
    return fingerprints(options, "data", "teacher")


def _folder(options: Options) -> ImageSet:
    return limited(folder_images(str(options.data), image_files(str(options.data))), options.images)


def _check_images(images: ImageSet, clusters: int) -> None:
    if not len(images):
        raise ValueError(f"{images.name}: no images below this folder: give another one.")
    if len(images) < clusters:
        raise ValueError(f"{images.name}: fewer images than clusters={clusters}: give more, or fewer clusters.")
    unreadable = look_through(images, 64, Workers()).unreadable
    if unreadable:
        name, reason = next(iter(unreadable.items()))
        count = f"{len(unreadable)} of {len(images)} images"
        raise ValueError(f"{images.name}: {count} cannot be read, the first is {name}: {reason}")


def run(evaluation: Evaluation) -> Report:
    """Decode every prefix of the codes, and lay side by side what pixels and semantics gain by each level."""
    options: Any = evaluation.options
    assert evaluation.load is not None
    model, _ = evaluation.load()
    config = model.config
    teacher = _teacher(options, config.grid_size).to(model.device)
    images = _images(options, config.image_size)
    batches = images.pixels.split(options.batch_size)
    target = teacher(batches[0][:1].to(model.device))
    if target.shape[1:] != (config.num_positions, config.semantic_feature_dim):
        raise ValueError(
            f"teacher={options.teacher} gives {tuple(target.shape[1:])} features of an image, the tokenizer decodes "
            f"{(config.num_positions, config.semantic_feature_dim)}: give the teacher that it learnt from."
        )
    found = evaluation.workers.map(lambda batch: _measure(model, teacher, batch), batches, "Trajectory")
    originals = torch.cat([embedding for embedding, _ in found])
    levels = [
        Level(*(torch.cat(parts) for parts in zip(*(own[depth] for _, own in found), strict=True)))
        for depth in range(config.num_codebooks)
    ]
    rows = [_row(depth, level, originals) for depth, level in enumerate(levels, 1)]
    depths = [depth for depth in CLUSTER_DEPTHS if depth <= config.num_codebooks]
    clusters = {depth: cluster(_pool(levels[depth - 1].latents), options.clusters, options.seed) for depth in depths}
    agreement = [
        {"depth": depth} | {name: own.agreement(labels) for name, labels in images.labels.items()}
        for depth, own in clusters.items()
        if images.labels
    ]
    tables = {"by_depth": rows} | ({"clusters": agreement} if agreement else {})
    pictures = {
        "trajectory.svg": "what pixels and semantics gain by each level",
        "tsne.svg": "t-SNE of the sums of entries: each position walks from blue to red",
        "clusters.png": "K-means of the sums of entries, images nearest to the centres",
        "reconstructions.png": "originals, and their reconstructions from more and more levels",
    }
    if evaluation.workers.is_main:
        evaluation.folder.mkdir(parents=True, exist_ok=True)
        plot_depths(evaluation.folder, rows, config.num_pixel_codebooks)
        plot_walks(evaluation.folder, _walks(evaluation.folder, [level.latents for level in levels], options))
        for name, sheet in (
            ("clusters", cluster_sheet(images.pixels, clusters)),
            ("reconstructions", _reconstruct(model, images.pixels, rows)),
        ):
            sheet.quantize(256).save(evaluation.folder / f"{name}.png", optimize=True)  # a third of the bytes
    places = {"depth1": 0, f"depth{config.num_pixel_codebooks}": config.num_pixel_codebooks - 1}
    places[f"depth{config.num_codebooks}"] = config.num_codebooks - 1
    figures = {f"{name}_{place}": rows[i][name] for place, i in places.items() for name in rows[0] if name != "depth"}
    return Report(figures, tables, images.fingerprint, pictures, _notes(options, rows, agreement, config))


def _teacher(options: Any, grid_size: int) -> EfficientNetTeacher | SiglipTeacher:
    if options.teacher == EFFICIENTNET:
        return calibrated_teacher(None, grid_size)
    return SiglipTeacher.from_pretrained(options.teacher)


def _images(options: Any, size: int) -> Images:
    if options.data is not None:
        folder = _folder(options)
        pixels = folder.pixels(range(len(folder)), size)
        return Images(pixels, {}, {"images": sha256(*map(Path, folder.names))})
    world = EmojiWorld()
    drawings = evenly(world.drawings("new_concept"), options.images)
    pixels = torch.stack([to_pixels(world.image(drawing)) for drawing in drawings])
    if pixels.shape[-1] != size:
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
    labels = {
        "group": [drawing.concept.group for drawing in drawings],
        "color": [_color(world, drawing) for drawing in drawings],
    }
    files = sorted(path for path in world.root.iterdir() if path.is_file())
    return Images(pixels, labels, {"emoji": sha256(*files)})


def _color(world: EmojiWorld, drawing: Drawing) -> str:
    return world.color(drawing) or "several"


@torch.inference_mode()
def _measure(model: EvoTokVQModel, teacher: Callable, pixels: torch.Tensor) -> tuple[torch.Tensor, list[Level]]:
    """Embedding of the originals (B, E), and a `Level` for every depth."""
    pixels = pixels.to(model.device)
    codes, target = model.encode(pixels), teacher(pixels)
    levels = []
    for depth in range(1, model.config.num_codebooks + 1):
        decoded = model.decode_pixels(codes, depth=depth).clamp(-1, 1)
        measured = (
            psnr((decoded + 1) / 2, (pixels + 1) / 2),
            _embed(teacher, decoded),
            feature_cosine(model.decode_semantics(codes, depth=depth), target),
            model.quantizer.decode_codes(codes[..., :depth]),
        )
        levels.append(Level(*(tensor.float().cpu() for tensor in measured)))
    return _embed(teacher, pixels).float().cpu(), levels


def _embed(teacher: Callable, pixels: torch.Tensor) -> torch.Tensor:
    """One vector an image: the features that find images best, or the mean over positions."""
    return teacher.pooled(pixels) if isinstance(teacher, EfficientNetTeacher) else teacher(pixels).mean(1)


def _pool(latents: torch.Tensor) -> torch.Tensor:
    return latents.mean(1)


def _row(depth: int, level: Level, originals: torch.Tensor) -> dict[str, float]:
    """Figures of one depth. Embeddings are centred: of all images they are too alike for a plain cosine."""
    center = originals.mean(0)
    return {
        "depth": depth,
        "psnr": level.psnr.mean().item(),
        "fd": frechet_distance(FeatureStatistics.of(level.embedding), FeatureStatistics.of(originals)),
        "similarity_pixels": F.cosine_similarity(level.embedding - center, originals - center).mean().item(),
        "similarity_semantics": level.cosine.mean().item(),
    }


def _notes(options: Any, rows: list[dict[str, float]], agreement: list[dict[str, float]], config: Any) -> list[str]:
    last, levels = config.num_pixel_codebooks, config.num_codebooks
    seen = "never trained on" if options.data is None else f"of {options.data}"
    notes = [
        "`psnr` and `fd` (Frechet distance over pooled features of the teacher, which is no FID) compare "
        f"reconstruction and original, images {seen}; `similarity_pixels` is the cosine of their embeddings by the "
        "teacher, centred on the originals'; `similarity_semantics` is the cosine of decoded semantics and the "
        f"teacher's features, position by position. Pixels are learnt from {last} levels and semantics from {levels}: "
        "at other depths a decoder is given what it was never trained on.",
    ]
    first, at_pixels, end = rows[0], rows[last - 1], rows[-1]
    for name, what in (
        ("similarity_pixels", "similarity of the reconstruction to the original"),
        ("similarity_semantics", "similarity of the decoded semantics to the teacher's"),
    ):
        notes.append(
            f"The {what} goes from {first[name]:.3f} at depth 1 to {at_pixels[name]:.3f} at depth {last} and "
            f"{end[name]:.3f} at depth {levels}: {_share(first[name], at_pixels[name], end[name])}."
        )
    if agreement:
        notes.append(
            "`clusters` says how far K-means of the sums of entries, averaged over an image, agrees with what is known "
            "of the drawings, their group and their dominant colour (adjusted mutual information: 0 by chance, 1 at "
            f"most). From depth {agreement[0]['depth']} to {agreement[-1]['depth']} it goes from "
            f"{agreement[0]['group']:.3f} to {agreement[-1]['group']:.3f} for the group and from "
            f"{agreement[0]['color']:.3f} to {agreement[-1]['color']:.3f} for the colour."
        )
    return notes


def _share(first: float, middle: float, end: float) -> str:
    """How much of a gain later levels bring."""
    if end <= first:
        return "the levels together bring no gain"
    return f"{max(0.0, (end - middle) / (end - first)):.0%} of the gain comes after the pixels' levels"


def _walks(folder: Path, latents: list[torch.Tensor], options: Any) -> np.ndarray:
    """Some positions' way on a plane, (T, D, 2), of D sums (I, N, C), by t-SNE; also `tsne.csv`."""
    ways = torch.stack(latents, 2).flatten(0, 1)  # (I x N, D, C)
    generator = torch.Generator().manual_seed(options.seed)
    ways = ways[torch.randperm(len(ways), generator=generator)[: options.tokens]]
    points = project(ways.flatten(0, 1), options.seed).reshape(*ways.shape[:2], 2)
    write_csv(
        folder / "tsne.csv",
        [
            {"position": position, "depth": depth, "x": round(float(x), 3), "y": round(float(y), 3)}
            for position, way in enumerate(points)
            for depth, (x, y) in enumerate(way, 1)
        ],
    )
    return points


@torch.inference_mode()
def _reconstruct(model: EvoTokVQModel, pixels: torch.Tensor, rows: list[dict[str, float]]) -> Image.Image:
    """Some images, decoded of more and more levels, with the mean PSNR of all images beside them."""
    pixels = torch.stack(evenly(list(pixels), RECONSTRUCTIONS)).to(model.device)
    codes, last = model.encode(pixels), model.config.num_pixel_codebooks
    depths = sorted({1, 2, last, model.config.num_codebooks})
    decoded = {depth: model.decode_pixels(codes, depth=depth) for depth in depths}
    return reconstruction_sheet(pixels, decoded, {depth: rows[depth - 1]["psnr"] for depth in depths}, last)
