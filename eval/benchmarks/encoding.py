"""Benchmark of encoding a folder of images to code shards, against one batch after another without threads.

Both run in float32, whatever the dtype. The floor is the time of the encoder and the quantizer alone, on pixels in the
memory of the device, with all threads on one batch.
"""

import io
import shutil
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import SiglipImageProcessorPil

from ...data.arguments import SourceArguments
from ...data.batch_encoding import exact_float32
from ...data.code_encoding import CorpusEncoder, Encoded
from ...data.code_shards import code_row, open_codes
from ...data.mixture import MixtureSource
from ...data.stream_loader import open_source
from ...modeling_evotok.configuration_evotok import EvoTokVQConfig
from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...processing.image_loading_evotok import load_image
from . import generation
from .meters import Setting, best_seconds, peak_extra_mib
from .report import Row, comparison


class Corpus(NamedTuple):
    """Images of a benchmark: their number, shortest and longest side, those of a batch, and those whose codes are
    compared with the codes of compiled layers."""

    images: int
    shortest: int
    longest: int
    batch: int
    compared: int


# `full`: EvoTok-mini's tokenizer; `paper`: the paper's with random weights, on a GPU.
SIZES = {
    "full": Corpus(images=256, shortest=256, longest=512, batch=64, compared=512),
    "tiny": Corpus(images=5, shortest=24, longest=48, batch=2, compared=4),
    "paper": Corpus(images=512, shortest=384, longest=1024, batch=64, compared=10_000),
}
_DISTINCT = 64  # images; files after them are copies
_MINI = Path(__file__).resolve().parents[2] / "assets" / "evotok-mini"
Codes = dict[str, np.ndarray]  # key -> (N, L)


def run(setting: Setting) -> Iterator[Row]:
    """Measures the rows `corpus` and `corpus_compiled`, whose encoder's layers are compiled."""
    size, model = SIZES[setting.size], build_tokenizer(setting)
    side = model.config.image_size
    image_processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder) / "images", Path(folder) / "codes"
        write_images(images, size)
        source, _ = open_source(SourceArguments("image-folder", str(images)))
        encoder = CorpusEncoder(model, image_processor, source, out, size.batch)
        _encode(encoder)  # the first run is slower
        runs, seconds, reference = [], [], {}
        for _ in range(setting.repeats):
            start = time.perf_counter()
            reference = encode_one_by_one(model, image_processor, source, size.batch)
            seconds.append(time.perf_counter() - start)
            runs.append(_encode(encoder))
        best, equal = min(runs, key=lambda done: done.seconds), same_codes(_read(out), reference)
        [floor] = best_seconds(lambda: _encode_pixels(model, size.images, size.batch), setting=setting)
        peak = peak_extra_mib(lambda: _encode(encoder), setting.device)
        row = comparison("corpus", "one batch after another", best.seconds, min(seconds), floor, peak, equal)
        row |= {"images": size.images, "images_per_second": best.images_per_second}
        row |= {"reference_images_per_second": size.images / min(seconds), "device_share": best.device_share}
        yield row | {"decoding_threads": encoder.threads, "batches_at_once": encoder.encoder.parallel}
        yield _compiled(model, encoder, best.seconds, setting)


def _compiled(model: EvoTokVQModel, encoder: CorpusEncoder, plain_seconds: float, setting: Setting) -> Row:
    """Measures the same with compiled layers; returns a note where there is no compiler."""
    if setting.device == "cpu" and shutil.which("g++") is None:
        return {"name": "corpus_compiled", "note": "not measured: torch.compile needs g++ for code on CPUs"}
    size = SIZES[setting.size]
    shutil.rmtree(encoder.folder)
    compiled = deepcopy(model)
    encoder = CorpusEncoder(
        compiled, encoder.image_processor, encoder.source, encoder.folder, size.batch, compiled=True
    )
    first = _encode(encoder).seconds
    best = min((_encode(encoder) for _ in range(setting.repeats)), key=lambda done: done.seconds)
    equal, other = (_encode_pixels(each, size.compared, size.batch) for each in (model, compiled))
    return {
        "name": "corpus_compiled",
        "seconds": best.seconds,
        "over_plain": best.seconds / plain_seconds,
        "first_seconds": first,
        "images_per_second": best.images_per_second,
        "device_share": best.device_share,
        "compared_images": size.compared,
        "same_codes": (equal == other).float().mean().item(),
        "images_with_the_same_codes": (equal == other).flatten(1).all(1).float().mean().item(),
    }


def build_tokenizer(setting: Setting) -> EvoTokVQModel:
    """Builds the image tokenizer of a size in evaluation mode, in float32: EvoTok-mini's, or one of random weights."""
    if setting.size == "full":
        model = EvoTokForConditionalGeneration.from_pretrained(_MINI, dtype=torch.float32)
        return model.model.vq_model.to(setting.device).eval().requires_grad_(False)
    torch.manual_seed(0)
    with torch.device(setting.device):
        config = EvoTokVQConfig(**generation.SIZES[setting.size].get("vq_config", {}))
        model = EvoTokVQModel._from_config(config, dtype=torch.float32)
    for codebook in model.eval().requires_grad_(False).quantizer.codebooks:
        codebook.weight.normal_()
    return model


def synthetic_photo(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Builds an image of smooth colours with some noise, whose JPEG file takes as long to decode as a photograph's."""
    smooth = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((width, height))
    noisy = np.asarray(smooth).astype(int) + rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_images(folder: Path, corpus: Corpus) -> None:
    """Writes JPEG files of random sizes."""
    folder.mkdir()
    rng, files = np.random.default_rng(0), []
    for _ in range(min(corpus.images, _DISTINCT)):
        width, height = rng.integers(corpus.shortest, corpus.longest, 2, endpoint=True).tolist()
        stream = io.BytesIO()
        synthetic_photo(width, height, rng).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    for number in range(corpus.images):
        (folder / f"{number}.jpg").write_bytes(files[number % len(files)])


@torch.no_grad()
def encode_one_by_one(model: EvoTokVQModel, image_processor: Any, source: MixtureSource, batch_size: int) -> Codes:
    """Encodes a source in the plain way: loads a batch, processes it, encodes all levels, then the next batch."""
    rows, codes = list(source.rows), {}
    for start in range(0, len(rows), batch_size):
        batch = [source.convert(row) for row in rows[start : start + batch_size]]
        images = [load_image(row["images"][0]) for row in batch]
        pixels = image_processor(images, return_tensors="pt")["pixel_values"].to(model.device)
        with exact_float32():
            found = model.encode(pixels)[..., : model.config.num_pixel_codebooks].cpu().numpy()
        codes |= {row["id"]: each for row, each in zip(batch, found, strict=True)}
    return codes


def same_codes(codes: Codes, reference: Codes) -> bool:
    """Returns whether all images have the same codes."""
    return codes.keys() == reference.keys() and all((codes[key] == reference[key]).all() for key in codes)


def _encode(encoder: CorpusEncoder) -> Encoded:
    """Encodes the whole source again."""
    shutil.rmtree(encoder.folder, ignore_errors=True)
    return encoder.run()


def _read(folder: Path) -> Codes:
    rows, info = open_codes(folder)
    return {row["key"]: code_row(row, info)["codes"][0] for row in rows}


@torch.no_grad()
def _encode_pixels(model: EvoTokVQModel, images: int, batch_size: int) -> torch.Tensor:
    """Encodes random images, (batch_size, 3, H, W) at once, without loading them: codes (images, N, L), on the CPU."""
    generator, codes = torch.Generator(model.device).manual_seed(0), []
    side, levels = model.config.image_size, model.config.num_pixel_codebooks
    with exact_float32():
        for _ in range(0, images, batch_size):
            small = torch.rand(batch_size, 3, 12, 12, device=model.device, generator=generator) * 2 - 1
            codes.append(model.encode(F.interpolate(small, size=side, mode="bilinear"), levels).cpu())
    return torch.cat(codes)[:images]
