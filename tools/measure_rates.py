"""Measures how fast this machine encodes images to codes, and how fast one process reads them for training.

    python -m tools.measure_rates               # all, a minute or two, 5 GB
    python -m tools.measure_rates read          # rates whose name contains the word
    python -m tools.measure_rates --json docs/results/training/rates.json

Images are encoded as in `evotok encode-dataset`, from PNG files to a shard. Codes, of the paper's shape, are read three
times: as rows; through a mixture, in pools that resume; and collated to batches as well.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from evotok.data.arguments import SourceArguments
from evotok.data.code_encoding import CorpusEncoder
from evotok.data.code_shards import ShardInfo, ShardWriter, code_row, open_codes
from evotok.data.collators import EvoTokCollator
from evotok.data.mixture import MixtureStream
from evotok.data.stream_loader import open_source
from evotok.eval.benchmarks.report import save_row
from evotok.modeling_evotok.configuration_evotok import EvoTokVQConfig
from evotok.modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from evotok.modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from evotok.processing.processing_evotok import EvoTokProcessor


_MINI = Path(__file__).resolve().parents[1] / "assets" / "evotok-mini"
_BATCH = 64


class Rate(NamedTuple):
    """Number of images, and seconds."""

    images: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Returns the images per second of one process."""
        return self.images / self.seconds


def encode_mini(images: int = 1024) -> Rate:
    """Measures the embedded tokenizer, on images of 64 pixels."""
    processor = EvoTokProcessor.from_pretrained(_MINI)
    model = EvoTokForConditionalGeneration.from_pretrained(_MINI)
    return _encode(model.model.vq_model, processor.image_processor, images, 64)


def encode_paper(images: int = 6) -> Rate:
    """Measures a random tokenizer of the paper's size, on images of 256 pixels, two at a time."""
    model = EvoTokVQModel._from_config(EvoTokVQConfig(), dtype=torch.float32).eval()
    processor = EvoTokProcessor.from_pretrained(_MINI)
    processor.image_processor.size = {"height": 256, "width": 256}
    return _encode(model, processor.image_processor, images, 2)


def _encode(model: EvoTokVQModel, image_processor, images: int, batch_size: int) -> Rate:
    side, rng = model.config.image_size, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(images):
            # Smooth, as photographs are: the PNG decoder is far slower on noise.
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            small.resize((side, side), Image.Resampling.BICUBIC).save(Path(folder) / f"{number}.png")
        source, _ = open_source(SourceArguments("image-folder", folder))
        model.encode(torch.zeros(1, 3, side, side))  # the first call is slower
        done = CorpusEncoder(model, image_processor, source, Path(folder) / "codes", batch_size).run()
    return Rate(done.images, done.seconds)


def read_records(images: int = 65536) -> Rate:
    """Measures reading shards to rows."""
    return _read(images, _rows)


def read_stream(images: int = 65536) -> Rate:
    """Measures reading shards to batches of rows, sampled, shuffled and ready to resume."""
    return _read(images, lambda folder: _stream(folder, lambda rows: {"rows": rows}))


def read_batches(images: int = 16384) -> Rate:
    """Measures reading shards to inputs of the model, captions as tokens."""
    processor = EvoTokProcessor.from_pretrained(_MINI)
    processor.num_image_tokens = EvoTokVQConfig().num_positions
    return _read(images, lambda folder: _stream(folder, EvoTokCollator(processor)))


def _rows(folder: Path):
    rows, info = open_codes(folder)
    for row in rows:
        yield [code_row(row, info)]


def _stream(folder: Path, collate: Callable):
    source, _ = open_source(SourceArguments("codes", str(folder)))
    for _ in MixtureStream([source], collate, _BATCH):
        yield [None] * _BATCH


def _read(images: int, batches: Callable) -> Rate:
    """Measures `batches(folder)`, which yields lists with one element for each image."""
    config, rng = EvoTokVQConfig(), np.random.default_rng(0)
    shape = config.num_positions, config.num_pixel_codebooks
    with tempfile.TemporaryDirectory() as folder:
        for shard in range(4):
            writer = ShardWriter(Path(folder) / f"codes-{shard}.parquet", ShardInfo("", *shape))
            for start in range(0, images // 4, 4096):
                keys = [f"{shard}-{start + number}" for number in range(min(4096, images // 4 - start))]
                codes = rng.integers(0, config.codebook_size, (len(keys), *shape))
                writer.write(keys, ["a photo of two dogs that run along a beach at noon"] * len(keys), codes)
            writer.close(skipped=0)
        found, start = 0, time.perf_counter()
        for batch in batches(Path(folder)):
            found += len(batch)
            if found >= images:
                break
        return Rate(found, time.perf_counter() - start)


RATES = {
    "encode-mini": encode_mini,
    "encode-paper": encode_paper,
    "read-records": read_records,
    "read-stream": read_stream,
    "read-batches": read_batches,
}


def main(argv: list[str] | None = None) -> int:
    """Prints images a second of every measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="parts of the names")
    parser.add_argument("--json", metavar="FILE", help="also write the figures into FILE; those of others stay")
    options, threads = parser.parse_args(argv), torch.get_num_threads()
    print(f"one process, {threads} threads")
    for name, measure in RATES.items():
        if not options.words or any(word in name for word in options.words):
            rate = measure()
            if options.json:
                figures = {"images_per_second": rate.images_per_second, "threads": threads}
                save_row(options.json, {"name": name} | rate._asdict() | figures)
            print(f"{name:14} {rate.images_per_second:12,.1f} images/s   ({rate.images:,} in {rate.seconds:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
