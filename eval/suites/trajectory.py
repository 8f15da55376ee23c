"""What each level of the trajectory adds: pixels, then semantics (figures 3, 5 and 6 of the paper)."""

import itertools
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ...data.image_files import image_files
from ...data.image_sets import ImageSet, check_images, folder_images
from ...data.processes import Workers
from ...data.world.evaluation import labelled_pixels
from ...data.world.icons import load_world
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ..clusters import cluster, project
from ..frechet import FeatureStatistics, frechet_distance
from ..metrics import feature_cosine, psnr
from ..mini.tokenizer import fit_probe
from ..plotting.trajectory import cluster_sheet, plot_depths, plot_walks, reconstruction_sheet
from ..probes import PatchProbe
from ..suite import Evaluation, Report, SuiteOptions, fingerprints, sha256, write_csv
from ..teachers import SiglipTeacher, check_teacher, find_teacher, teacher_files


TAKES = "tokenizer"
CLUSTER_DEPTHS = (1, 4, 8, 16)  # Fig. 6
RECONSTRUCTIONS = 8
SAID = {
    "psnr": "PSNR",
    "similarity_pixels": "The similarity of the reconstruction to the original",
    "similarity_semantics": "The similarity of the decoded semantics to the teacher's",
    "probe": "The accuracy of the probe",
}
PICTURES = {
    "trajectory.svg": "what pixels and semantics gain by each level",
    "tsne.svg": "t-SNE of the sums of entries: each position goes from blue to red",
    "clusters.png": "K-means of the sums of entries, images nearest to the centres",
    "reconstructions.png": "originals, and their reconstructions from more and more levels",
}


@dataclass
class Options(SuiteOptions):
    """What is measured and drawn."""

    images: int = 512
    """Images at most; of the world as many scenes, and as many single things for the clusters."""
    data: str | None = None
    """Folder of images; scenes of the world in held-out styles when left out."""
    teacher: str = ""
    """Folder or hub id of the vision tower that the tokenizer was trained with; `vision` beside the checkpoint, or the
    embedded one, when empty."""
    probe_scenes: int = 1024
    """Scenes of trained styles that the probe is fitted on; without `data` only."""
    tokens: int = 150
    """Positions whose path through the levels is drawn."""
    clusters: int = 8
    """Of K-means."""

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("images", 40), ("probe_scenes", 1), ("tokens", 40), ("clusters", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")


class Images(NamedTuple):
    """What is measured on."""

    pixels: torch.Tensor
    """(I, 3, H, W) in [-1, 1]."""
    things: torch.Tensor | None
    """(I, N), the labels of the probe; None for a folder."""
    clustered: torch.Tensor
    """(J, 3, H, W), the images that are put into clusters."""
    labels: dict[str, list[str]]
    """What is known of each of those; empty for a folder."""
    fingerprint: dict[str, str]


class Level(NamedTuple):
    """A batch, decoded from the first levels."""

    psnr: torch.Tensor
    """(B,) in dB."""
    embedding: torch.Tensor
    """(B, E), the mean over positions of the teacher's features of the reconstruction."""
    cosine: torch.Tensor
    """(B,), of decoded semantics to the teacher's features."""
    latents: torch.Tensor
    """(B, N, C), the sum of the entries."""
    right: torch.Tensor
    """(patches,), whether the probe reads the thing of each patch that shows one; empty without a probe."""


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError for a folder without images or with one that cannot be read, a teacher that is not there, or an
    extra that is missing."""
    for package in ("sklearn", "matplotlib"):
        if find_spec(package) is None:
            raise ValueError(f"the package {package} is missing: pip install 'evotok[eval]'")
    if options.data is not None:
        _check_images(_folder(options), options.clusters)
    files = teacher_files(find_teacher(options.teacher, inputs[0]))
    return fingerprints(options, "data") | ({"teacher": sha256(*files)} if files else {})


def _folder(options: Options) -> ImageSet:
    return folder_images(str(options.data), image_files(str(options.data))).limited(options.images)


def _check_images(images: ImageSet, clusters: int) -> None:
    if not len(images):
        raise ValueError(f"{images.name}: no images below this folder: give another one.")
    if len(images) < clusters:
        raise ValueError(f"{images.name}: fewer images than clusters={clusters}: give more, or fewer clusters.")
    unreadable = check_images(images, 64, Workers()).unreadable
    if unreadable:
        name, reason = next(iter(unreadable.items()))
        count = f"{len(unreadable)} of {len(images)} images"
        raise ValueError(f"{images.name}: {count} cannot be read, the first is {name}: {reason}")


def run(evaluation: Evaluation) -> Report:
    """Decodes every prefix of the codes, and compares what pixels and semantics gain by each level."""
    options: Any = evaluation.options
    assert evaluation.load is not None
    model, _ = evaluation.load()
    config, workers = model.config, evaluation.workers
    teacher = SiglipTeacher.from_pretrained(find_teacher(options.teacher, evaluation.inputs[0])).to(model.device)
    images, size = _images(options, config.image_size), options.batch_size
    check_teacher(teacher, model, images.pixels[:1])
    probe = None if images.things is None else fit_probe(teacher, model.device, load_world(), options, workers)[0]
    things = itertools.repeat(None) if images.things is None else images.things.split(size)
    batches = list(zip(images.pixels.split(size), things, strict=False))
    found = workers.map(lambda batch: _measure(model, teacher, probe, *batch), batches, "Trajectory")
    originals = torch.cat([embedding for embedding, _ in found])
    levels = [
        Level(*(torch.cat(parts) for parts in zip(*(own[depth] for _, own in found), strict=True)))
        for depth in range(config.num_codebooks)
    ]
    rows = [_row(depth, level, originals) for depth, level in enumerate(levels, 1)]
    depths = [depth for depth in CLUSTER_DEPTHS if depth <= config.num_codebooks]
    pooled = workers.map(lambda pixels: _pool(model, pixels, depths), images.clustered.split(size), "Clusters")
    clusters = {
        depth: cluster(torch.cat([sums[depth] for sums in pooled]), options.clusters, options.seed) for depth in depths
    }
    agreement = [
        {"depth": depth} | {name: own.agreement(labels) for name, labels in images.labels.items()}
        for depth, own in clusters.items()
        if images.labels
    ]
    if workers.is_main:
        evaluation.folder.mkdir(parents=True, exist_ok=True)
        plot_depths(evaluation.folder, rows, config.num_pixel_codebooks)
        plot_walks(evaluation.folder, _walks(evaluation.folder, [level.latents for level in levels], options))
        for name, sheet in (
            ("clusters", cluster_sheet(images.clustered, clusters)),
            ("reconstructions", _reconstruct(model, images.pixels, rows)),
        ):
            sheet.quantize(256).save(evaluation.folder / f"{name}.png", optimize=True)  # a third of the bytes
    places = sorted({1, config.num_pixel_codebooks, config.num_codebooks})
    figures = {f"{name}_depth{depth}": rows[depth - 1][name] for depth in places for name in rows[0] if name != "depth"}
    tables = {"by_depth": rows} | ({"clusters": agreement} if agreement else {})
    return Report(figures, tables, images.fingerprint, PICTURES, _notes(options, rows, agreement, config))


def _images(options: Any, size: int) -> Images:
    if options.data is not None:
        folder = _folder(options)
        pixels = folder.pixels(range(len(folder)), size)
        return Images(pixels, None, pixels, {}, {"images": sha256(*map(Path, folder.names))})
    world = load_world()
    if size != world.size:
        raise ValueError(f"a tokenizer of {size} px, and scenes of {world.size}: give data=FOLDER, images of your own.")
    scenes = labelled_pixels(world, "test", options.images, seed=options.seed)
    single = labelled_pixels(world, "test", options.images, single=True, seed=options.seed)
    files = sorted(path for path in world.root.iterdir() if path.is_file())
    return Images(scenes.pixels, scenes.things, single.pixels, single.names(world), {"world": sha256(*files)})


@torch.inference_mode()
def _measure(
    model: EvoTokVQModel,
    teacher: SiglipTeacher,
    probe: PatchProbe | None,
    pixels: torch.Tensor,
    things: torch.Tensor | None,
) -> tuple[torch.Tensor, list[Level]]:
    """Embedding of the originals (B, E), and a `Level` for every depth."""
    pixels = pixels.to(model.device)
    codes, target = model.encode(pixels), teacher(pixels)
    levels = []
    for depth in range(1, model.config.num_codebooks + 1):
        decoded, semantics = model.decode_pixels(codes, depth).clamp(-1, 1), model.decode_semantics(codes, depth)
        right = torch.zeros(0) if probe is None else probe.right(semantics.float().cpu(), things)
        measured = (
            psnr((decoded + 1) / 2, (pixels + 1) / 2),
            teacher(decoded).mean(1),
            feature_cosine(semantics, target),
            model.quantizer.decode_codes(codes[..., :depth]),
            right,
        )
        levels.append(Level(*(tensor.float().cpu() for tensor in measured)))
    return target.mean(1).float().cpu(), levels


@torch.inference_mode()
def _pool(model: EvoTokVQModel, pixels: torch.Tensor, depths: list[int]) -> dict[int, torch.Tensor]:
    """By depth the sums of entries, averaged over the positions, (B, C)."""
    codes = model.encode(pixels.to(model.device))
    return {depth: model.quantizer.decode_codes(codes[..., :depth]).mean(1).float().cpu() for depth in depths}


def _row(depth: int, level: Level, originals: torch.Tensor) -> dict[str, float]:
    """Figures of one depth. Embeddings are centred: of all images they are too alike for a plain cosine."""
    center = originals.mean(0)
    row = {
        "depth": depth,
        "psnr": level.psnr.mean().item(),
        "fd": frechet_distance(FeatureStatistics.of(level.embedding), FeatureStatistics.of(originals)),
        "similarity_pixels": F.cosine_similarity(level.embedding - center, originals - center).mean().item(),
        "similarity_semantics": level.cosine.mean().item(),
    }
    return row | ({"probe": level.right.mean().item()} if len(level.right) else {})


def _notes(options: Any, rows: list[dict[str, float]], agreement: list[dict[str, float]], config: Any) -> list[str]:
    last, levels = config.num_pixel_codebooks, config.num_codebooks
    shown = "scenes in held-out styles" if options.data is None else f"images of {options.data}"
    notes = [
        f"`psnr` and `fd` compare reconstruction and original, {shown}; `fd` is the Frechet distance over features of "
        "the teacher, averaged over an image: no FID. `similarity_pixels` is the cosine of these features, centred on "
        "the originals'; `similarity_semantics` is that of decoded semantics and the teacher's features, position by "
        f"position. Pixels are trained from {last} levels and semantics from {levels}: at other depths a decoder is "
        "given what it was never trained on.",
    ]
    first, at_pixels, end = rows[0], rows[last - 1], rows[-1]
    if "probe" in first:
        notes.append(
            "`probe` is the accuracy of the thing at a patch, by a logistic regression that is fitted on the teacher's "
            "features of scenes in trained styles and applied to decoded semantics."
        )
    for name, what in SAID.items():
        if name in first:
            notes.append(
                f"{what} goes from {first[name]:.3f} at depth 1 to {at_pixels[name]:.3f} at depth {last} and "
                f"{end[name]:.3f} at depth {levels}: {_share(first[name], at_pixels[name], end[name])}."
            )
    if agreement:
        gains = ", ".join(
            f"{name} {agreement[0][name]:.3f} to {agreement[-1][name]:.3f}" for name in agreement[0] if name != "depth"
        )
        notes.append(
            "`clusters` is the agreement of K-means of the sums of entries, averaged over an image of one thing, with "
            "what the image shows (adjusted mutual information: 0 by chance, 1 at most), from depth "
            f"{agreement[0]['depth']} to {agreement[-1]['depth']}: {gains}."
        )
    return notes


def _share(first: float, middle: float, end: float) -> str:
    """How much of a gain later levels bring."""
    if end <= first:
        return "the levels together bring no gain"
    return f"{max(0.0, (end - middle) / (end - first)):.0%} of the gain comes after the levels for pixels"


def _walks(folder: Path, latents: list[torch.Tensor], options: Any) -> np.ndarray:
    """Paths of some positions on a plane, (T, D, 2), of D sums (I, N, C), by t-SNE; also `tsne.csv`."""
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
    pixels = pixels[torch.arange(RECONSTRUCTIONS) * len(pixels) // RECONSTRUCTIONS].to(model.device)
    codes, last = model.encode(pixels), model.config.num_pixel_codebooks
    depths = sorted({1, 2, last, model.config.num_codebooks})
    decoded = {depth: model.decode_pixels(codes, depth=depth) for depth in depths}
    return reconstruction_sheet(pixels, decoded, {depth: rows[depth - 1]["psnr"] for depth in depths}, last)
