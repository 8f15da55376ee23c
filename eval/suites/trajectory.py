"""Trajectory: what each level adds to pixels and semantics (figures 3, 5 and 6 of the paper)."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ...data.image_files import image_files, to_unit_range
from ...data.image_sets import ImageSet, check_images, folder_images
from ...data.processes import Workers
from ...data.sequences import pick_evenly
from ...data.world.evaluation import labelled_pixels
from ...data.world.icons import load_world
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ..clusters import cluster, project
from ..frechet import FeatureStatistics, frechet_distance
from ..metrics import feature_cosine, psnr
from ..mini.tokenizer import fit_probe
from ..plotting.trajectory import cluster_sheet, plot_depths, plot_paths, reconstruction_sheet
from ..probes import PatchProbe
from ..results import write_csv
from ..suite import Evaluation, Report, SuiteOptions, fingerprints, require_at_least, require_packages, sha256
from ..teachers import SiglipTeacher, check_teacher, find_teacher, teacher_files


TAKES = "tokenizer"
CLUSTER_DEPTHS = (1, 4, 8, 16)  # Fig. 6
RECONSTRUCTIONS = 8
LABELS = {  # figure -> its name in a note
    "psnr": "PSNR",
    "similarity_pixels": "The similarity of the reconstruction to the original",
    "similarity_semantics": "The similarity of the decoded semantics to the teacher's",
    "probe": "The accuracy of the probe",
}
IMAGES = {
    "trajectory.svg": "what pixels and semantics gain by each level",
    "tsne.svg": "t-SNE of the sums of entries: each position goes from blue to red",
    "clusters.png": "K-means of the sums of entries, images nearest to the centres",
    "reconstructions.png": "originals, and their reconstructions from more and more levels",
}


@dataclass
class Options(SuiteOptions):
    """Options of the suite `trajectory`."""

    images: int = 512
    """Most images; of the world as many scenes, and as many images of single things for the clusters."""
    data: str | None = None
    """Folder of images; scenes of the world in held-out styles when left out."""
    teacher: str = ""
    """Folder or hub id of the vision tower that the tokenizer was trained with; `vision` beside the checkpoint, or the
    embedded one, when empty."""
    probe_scenes: int = 1024
    """Scenes of trained styles that the probe is fitted on; without `data` only."""
    tokens: int = 150
    """Positions whose path through the levels is plotted."""
    clusters: int = 8
    """Number of clusters of K-means."""

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 40, "images", "tokens")
        require_at_least(self, 1, "probe_scenes")
        require_at_least(self, 2, "clusters")


class Images(NamedTuple):
    """Images that are measured on."""

    pixels: torch.Tensor
    """(I, 3, H, W) in [-1, 1]."""
    things: torch.Tensor | None
    """(I, N), labels of the probe; None for a folder."""
    clustered: torch.Tensor
    """(J, 3, H, W), images that are clustered."""
    labels: dict[str, list[str]]
    """Labels of those; empty for a folder."""
    fingerprint: dict[str, str]


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError where images, vision tower or packages are missing, or an image cannot be read."""
    require_packages("sklearn", "matplotlib")
    if options.data is not None:
        _check_images(_open_folder(options), options.clusters)
    files = teacher_files(find_teacher(options.teacher, inputs[0]))
    return fingerprints(options, "data") | ({"teacher": sha256(*files)} if files else {})


def _open_folder(options: Options) -> ImageSet:
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
    """Decodes the codes at every depth, and compares what pixels and semantics gain."""
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
    scores = [
        {name: torch.cat([own[index][name] for _, own in found]) for name in found[0][1][index]}
        for index in range(config.num_codebooks)
    ]
    rows = [_row(depth, own, originals) for depth, own in enumerate(scores, 1)]
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
        plot_paths(evaluation.folder, _project_paths(evaluation.folder, [own["latents"] for own in scores], options))
        for name, sheet in (
            ("clusters", cluster_sheet(images.clustered, clusters)),
            ("reconstructions", _reconstruct(model, images.pixels, rows)),
        ):
            sheet.quantize(256).save(evaluation.folder / f"{name}.png", optimize=True)  # a third of the bytes
    shown = sorted({1, config.num_pixel_codebooks, config.num_codebooks})
    figures = {f"{name}_depth{depth}": rows[depth - 1][name] for depth in shown for name in rows[0] if name != "depth"}
    tables = {"by_depth": rows} | ({"clusters": agreement} if agreement else {})
    return Report(figures, tables, images.fingerprint, IMAGES, _notes(options, rows, agreement, config))


def _images(options: Any, size: int) -> Images:
    if options.data is not None:
        folder = _open_folder(options)
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
) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Measures a batch at every depth.

    Returns:
        Embedding of the originals (B, E), the teacher's features averaged over the positions; and for every depth
        `psnr` (B,) in dB, `embedding` (B, E) of the reconstruction, `cosine` (B,) of decoded semantics to the teacher's
        features, `latents` (B, N, C), the sums of entries, and with a probe `right` (patches with a thing,).
    """
    pixels = pixels.to(model.device)
    codes, target = model.encode(pixels), teacher(pixels)
    scores = []
    for depth in range(1, model.config.num_codebooks + 1):
        decoded, semantics = model.decode_pixels(codes, depth).clamp(-1, 1), model.decode_semantics(codes, depth)
        measured = {
            "psnr": psnr(to_unit_range(decoded), to_unit_range(pixels)),
            "embedding": teacher(decoded).mean(1),
            "cosine": feature_cosine(semantics, target),
            "latents": model.quantizer.decode_codes(codes[..., :depth]),
        }
        if probe is not None and things is not None:
            measured["right"] = probe.right(semantics.float().cpu(), things)
        scores.append({name: tensor.float().cpu() for name, tensor in measured.items()})
    return target.mean(1).float().cpu(), scores


@torch.inference_mode()
def _pool(model: EvoTokVQModel, pixels: torch.Tensor, depths: list[int]) -> dict[int, torch.Tensor]:
    """Returns depth -> sums of entries, averaged over the positions, (B, C)."""
    codes = model.encode(pixels.to(model.device))
    return {depth: model.quantizer.decode_codes(codes[..., :depth]).mean(1).float().cpu() for depth in depths}


def _row(depth: int, scores: dict[str, torch.Tensor], originals: torch.Tensor) -> dict[str, float]:
    """Computes the figures of one depth; embeddings are centred, since those of all images are similar."""
    center = originals.mean(0)
    row = {
        "depth": depth,
        "psnr": scores["psnr"].mean().item(),
        "fd": frechet_distance(FeatureStatistics.of(scores["embedding"]), FeatureStatistics.of(originals)),
        "similarity_pixels": F.cosine_similarity(scores["embedding"] - center, originals - center).mean().item(),
        "similarity_semantics": scores["cosine"].mean().item(),
    }
    return row | ({"probe": scores["right"].mean().item()} if "right" in scores else {})


def _notes(options: Any, rows: list[dict[str, float]], agreement: list[dict[str, float]], config: Any) -> list[str]:
    last, levels = config.num_pixel_codebooks, config.num_codebooks
    shown = "scenes in held-out styles" if options.data is None else f"images of {options.data}"
    notes = [
        f"Measured on {shown}. `fd` is the Frechet distance over features of the teacher, averaged over an image: no "
        "FID. `similarity_pixels` is the cosine of these features, centred on the originals'; `similarity_semantics` "
        "is that of decoded semantics and the teacher's features, position by position; `probe` is the accuracy of the "
        "thing at a patch, by a logistic regression on the teacher's features that is applied to decoded semantics. "
        f"Pixels are trained from {last} levels and semantics from {levels}: at other depths a decoder is given input "
        "that it was never trained on."
    ]
    first, at_pixels, end = rows[0], rows[last - 1], rows[-1]
    notes += [
        f"{label} goes from {first[name]:.3f} at depth 1 to {at_pixels[name]:.3f} at depth {last} and {end[name]:.3f} "
        f"at depth {levels}: {_share(first[name], at_pixels[name], end[name])}."
        for name, label in LABELS.items()
        if name in first
    ]
    if agreement:
        gains = [f"{name} {agreement[0][name]:.3f} to {agreement[-1][name]:.3f}" for name in list(agreement[0])[1:]]
        notes.append(
            "`clusters` is the agreement of K-means of the sums of entries, averaged over an image of one thing, with "
            "what the image shows (adjusted mutual information: 0 by chance, 1 at most), from depth "
            f"{agreement[0]['depth']} to {agreement[-1]['depth']}: {', '.join(gains)}."
        )
    return notes


def _share(first: float, middle: float, end: float) -> str:
    """Describes how much of a gain the levels after those for pixels bring."""
    if end <= first:
        return "the levels together bring no gain"
    return f"{max(0.0, (end - middle) / (end - first)):.0%} of the gain comes after the levels for pixels"


def _project_paths(folder: Path, latents: list[torch.Tensor], options: Any) -> np.ndarray:
    """Projects the paths of some positions through D sums (I, N, C) on a plane, (T, D, 2); writes `tsne.csv`."""
    paths = torch.stack(latents, 2).flatten(0, 1)  # (I x N, D, C)
    generator = torch.Generator().manual_seed(options.seed)
    paths = paths[torch.randperm(len(paths), generator=generator)[: options.tokens]]
    points = project(paths.flatten(0, 1), options.seed).reshape(*paths.shape[:2], 2)
    write_csv(
        folder / "tsne.csv",
        [
            {"position": position, "depth": depth, "x": round(float(x), 3), "y": round(float(y), 3)}
            for position, path in enumerate(points)
            for depth, (x, y) in enumerate(path, 1)
        ],
    )
    return points


@torch.inference_mode()
def _reconstruct(model: EvoTokVQModel, pixels: torch.Tensor, rows: list[dict[str, float]]) -> Image.Image:
    """Renders some images, decoded from more and more levels, with the mean PSNR of all images."""
    pixels = torch.stack(pick_evenly(pixels.unbind(), RECONSTRUCTIONS)).to(model.device)
    codes, last = model.encode(pixels), model.config.num_pixel_codebooks
    depths = sorted({1, 2, last, model.config.num_codebooks})
    decoded = {depth: model.decode_pixels(codes, depth=depth) for depth in depths}
    return reconstruction_sheet(pixels, decoded, {depth: rows[depth - 1]["psnr"] for depth in depths}, last)
