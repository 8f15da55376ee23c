"""Encodes a source to code shards, one for each shard of the source; a killed run continues after the last whole
one."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.utils import logging

from ..modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ..processing.image_loading_evotok import load_image
from .atomic_files import atomic_file
from .batch_encoding import BatchEncoder, available_cores
from .code_shards import ShardInfo, ShardWriter
from .collators import MAX_EMPTY_BATCHES
from .errors import row_reason
from .image_files import pixels_of
from .mixture import MixtureSource


logger = logging.get_logger(__name__)


class Encoded(NamedTuple):
    """Result of one process: shards written and found done, images encoded and skipped, seconds in all, and those with
    a batch on the device."""

    written: int
    found: int
    images: int
    skipped: int
    seconds: float
    device_seconds: float

    @property
    def images_per_second(self) -> float:
        """Returns the images encoded per second; 0 if there were none."""
        return self.images / self.seconds if self.images else 0.0

    @property
    def device_share(self) -> float:
        """Returns the share of the time with a batch on the device; 0 if there were none."""
        return self.device_seconds / self.seconds if self.images else 0.0


class _LoadedImage(NamedTuple):
    key: str
    caption: str
    pixels: torch.Tensor | None
    reason: str


class _Batch(NamedTuple):
    """Images that could be read, their codes (B, N, L) once they are encoded, and keys and reasons of the others."""

    keys: list[str]
    captions: list[str]
    codes: Future[np.ndarray] | None
    bad: list[tuple[str, str]]


class CorpusEncoder:
    """Encodes the shards of a source that one process has to encode.

    Threads decode and resize images, others encode batches ([`BatchEncoder`]), and the calling one writes the codes of
    batches before them. Images are prepared by the checkpoint's image processor, as in training, so that the codes are
    the same. A shard is `codes-00012-of-00340.parquet`; images that were skipped are listed beside it in a
    `.skipped.jsonl`.

    Args:
        model, image_processor: of a checkpoint; the model on the device that it runs on.
        source: of images with texts.
        folder: of the shards.
        batch_size: images encoded at once.
        threads: number of threads that decode and resize images; by default one for each core of this process.
        compiled: whether the encoder's layers are compiled, which changes the order of rounding, and so rarely a code.

    Raises:
        ValueError: the folder has shards of another tokenizer, source or number of shards.
    """

    def __init__(
        self,
        model: EvoTokVQModel,
        image_processor: Any,
        source: MixtureSource,
        folder: str | Path,
        batch_size: int = 64,
        threads: int | None = None,
        compiled: bool = False,
    ):
        self.image_processor, self.source = image_processor, source
        self.folder, self.batch_size, self.threads = Path(folder), batch_size, threads or available_cores()
        self.info = ShardInfo.of(model, image_processor, source.name)
        self.total = len(source.rows.shards)
        self._check_folder()
        self.encoder = BatchEncoder(model, self.info.levels, batch_size if compiled else 0)

    def _check_folder(self) -> None:
        for path in self.folder.glob("codes-*.parquet"):
            info = ShardInfo.read(path)
            if (info.origin, info.source) != (self.info.origin, self.info.source):
                raise ValueError(
                    f"{path}: written by the tokenizer {info.tokenizer[:12]} from {info.source}, not by "
                    f"{self.info.tokenizer[:12]} from {self.info.source}, or from images prepared in another way: give "
                    "another folder."
                )
            if not path.stem.endswith(f"-of-{self.total:05d}"):
                raise ValueError(f"{path}: the source has {self.total} shards now: give another folder, or remove it.")

    def run(self, rank: int = 0, world_size: int = 1, on_images: Callable[[int], Any] = lambda _: None) -> Encoded:
        """Encodes every `world_size`-th shard from `rank` on that is not there yet.

        Args:
            rank, world_size: of this process.
            on_images: called with the number of images of every batch, for a progress bar.

        Raises:
            ValueError: no image of a shard can be read, though it has many.
        """
        written = found = images = skipped = 0
        start, busy = time.perf_counter(), self.encoder.busy.seconds
        with self.encoder, ThreadPoolExecutor(self.threads) as pool:
            for index in range(rank, self.total, world_size):
                path = self.folder / f"codes-{index:05d}-of-{self.total:05d}.parquet"
                if path.is_file():
                    found += 1
                    continue
                good, bad = self._encode_shard(path, index, pool, on_images)
                written, images, skipped = written + 1, images + good, skipped + bad
        seconds = time.perf_counter() - start
        return Encoded(written, found, images, skipped, seconds, self.encoder.busy.seconds - busy)

    def _encode_shard(self, path: Path, index: int, pool: ThreadPoolExecutor, on_images) -> tuple[int, int]:
        rows = self.source.rows.read(index)
        writer, images, bad = ShardWriter(path, self.info), 0, []
        for batch in self._encode_batches(self._batches(rows, pool)):
            bad += batch.bad
            if batch.codes is not None:
                writer.write(batch.keys, batch.captions, batch.codes.result())
            images += len(batch.keys)
            on_images(len(batch.keys) + len(batch.bad))
        if len(bad) >= MAX_EMPTY_BATCHES and not images:
            raise ValueError(
                f"{self.source.name}: none of the {len(bad)} images of shard {index} can be used, such as {bad[0][0]} "
                f"({bad[0][1]}): check the data set, and run the command again: it resumes with this shard."
            )
        if bad:
            lines = [json.dumps({"key": key, "reason": reason}, ensure_ascii=False) for key, reason in bad]
            with atomic_file(path.with_suffix(".skipped.jsonl")) as part:
                part.write_text("\n".join(lines) + "\n", encoding="utf-8")
            logger.warning(f"{path.name}: skipped {len(bad)} of {images + len(bad)}, such as {bad[0][1]}")
        writer.close(skipped=len(bad))
        return images, len(bad)

    def _encode_batches(self, batches: Iterable[list[_LoadedImage]]) -> Iterator[_Batch]:
        """Yields batches in their order; those after it are encoded meanwhile, and one more waits for its turn."""
        waiting: deque[_Batch] = deque()
        for loaded in batches:
            good = [image for image in loaded if image.pixels is not None]
            pixels = [image.pixels for image in loaded if image.pixels is not None]
            codes = self.encoder.submit(pixels) if pixels else None
            bad = [(image.key, image.reason) for image in loaded if image.pixels is None]
            waiting.append(_Batch([image.key for image in good], [image.caption for image in good], codes, bad))
            if len(waiting) > self.encoder.parallel:
                yield waiting.popleft()
        yield from waiting

    def _batches(self, rows: Iterator[dict], pool: ThreadPoolExecutor) -> Iterator[list[_LoadedImage]]:
        """Yields batches of images; the next one is decoded while one is encoded."""
        waiting = [pool.submit(self._load, row) for row in islice(rows, self.batch_size)]
        while waiting:
            following = [pool.submit(self._load, row) for row in islice(rows, self.batch_size)]
            yield [future.result() for future in waiting]
            waiting = following

    def _load(self, raw: dict) -> _LoadedImage:
        key = str(raw.get("__key__") or raw.get("id") or raw.get("path") or "?")
        try:
            row = self.source.convert(raw)
            key = row["id"] or key
            if len(row["images"]) != 1:
                raise ValueError("generated from input images: code shards hold images generated from text alone")
            caption = row["messages"][0]["content"][-1]["text"]
            pixels = pixels_of([load_image(row["images"][0])], self.image_processor)[0]
        except (KeyError, TypeError, ValueError) as error:
            return _LoadedImage(key, "", None, row_reason(error))
        return _LoadedImage(key, caption, pixels, "")
