"""A corpus to shards of codes: one shard of the source, one file of codes; what is done stays done."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...processing.image_loading_evotok import load_image
from ..atomic_files import whole_file
from ..collators import pixels_of
from ..errors import why_no_record
from ..streams.last_good import MAX_BARREN
from ..streams.mixture import Part
from .shards import ShardInfo, ShardWriter


logger = logging.get_logger(__name__)


class Encoded(NamedTuple):
    """What one process did: shards written and found done, images encoded and skipped, seconds."""

    written: int
    found: int
    images: int
    skipped: int
    seconds: float


class _Picture(NamedTuple):
    key: str
    caption: str
    pixels: torch.Tensor | None
    reason: str


class CorpusEncoder:
    """Encodes the shards of a source that fall to this process.

    Images go through the checkpoint's own image processor, as in training: codes from here and from there are equal.
    Each shard becomes `codes-00012-of-00340.parquet`; beside it, if images were skipped, `.skipped.jsonl` lists them.

    Args:
        model, image_processor: of a checkpoint; the model lies on the device that does the work.
        part: the source.
        folder: of the shards.
        batch_size: images encoded at once.
        threads: that decode and resize images.
    """

    def __init__(
        self,
        model: EvoTokVQModel,
        image_processor: Any,
        part: Part,
        folder: str | Path,
        batch_size: int = 64,
        threads: int = 4,
    ):
        self.model, self.image_processor, self.part = model, image_processor, part
        self.folder, self.batch_size, self.threads = Path(folder), batch_size, threads
        self.info = ShardInfo.of(model, image_processor, part.name)
        self.total = len(part.rows.shards)
        self._check_folder()

    def _check_folder(self) -> None:
        for path in self.folder.glob("codes-*.parquet"):
            info = ShardInfo.read(path)
            if (info.maker, info.source) != (self.info.maker, self.info.source):
                raise ValueError(
                    f"{path}: by the tokenizer {info.tokenizer[:12]} from {info.source}, not by "
                    f"{self.info.tokenizer[:12]} from {self.info.source}, or of images prepared in another way: give "
                    "another folder."
                )
            if not path.stem.endswith(f"-of-{self.total:05d}"):
                raise ValueError(f"{path}: the source has {self.total} shards now: give another folder, or remove it.")

    def run(self, rank: int = 0, world_size: int = 1, tick: Callable[[int], Any] = lambda _: None) -> Encoded:
        """Encode every `world_size`-th shard from `rank` on, but those that are there; `tick` hears of images."""
        written = found = images = skipped = 0
        start = time.monotonic()
        with ThreadPoolExecutor(self.threads) as pool:
            for index in range(rank, self.total, world_size):
                path = self.folder / f"codes-{index:05d}-of-{self.total:05d}.parquet"
                if path.is_file():
                    found += 1
                    continue
                good, bad = self._encode_shard(path, index, pool, tick)
                written, images, skipped = written + 1, images + good, skipped + bad
        return Encoded(written, found, images, skipped, time.monotonic() - start)

    def _encode_shard(self, path: Path, index: int, pool: ThreadPoolExecutor, tick) -> tuple[int, int]:
        rows = self.part.rows.read(index)
        writer, images, bad = ShardWriter(path, self.info), 0, []
        for pictures in self._batches(rows, pool):
            bad += [picture for picture in pictures if picture.pixels is None]
            good = [picture for picture in pictures if picture.pixels is not None]
            if good:
                pixels = torch.stack([picture.pixels for picture in good]).to(self.model.device)
                codes = self.model.encode(pixels)[..., : self.info.levels].cpu().numpy()
                writer.write([p.key for p in good], [p.caption for p in good], codes)
            images += len(good)
            tick(len(pictures))
        if len(bad) >= MAX_BARREN and not images:
            raise ValueError(
                f"{self.part.name}: none of the {len(bad)} images of shard {index} can be used, such as {bad[0].key} "
                f"({bad[0].reason}): check the data set, and give the command again: it goes on from there."
            )
        if bad:
            lines = [json.dumps({"key": p.key, "reason": p.reason}, ensure_ascii=False) for p in bad]
            with whole_file(path.with_suffix(".skipped.jsonl")) as part:
                part.write_text("\n".join(lines) + "\n", encoding="utf-8")
            logger.warning(f"{path.name}: skipped {len(bad)} of {images + len(bad)}, such as {bad[0].reason}")
        writer.close(skipped=len(bad))
        return images, len(bad)

    def _batches(self, rows: Iterator[dict], pool: ThreadPoolExecutor) -> Iterator[list[_Picture]]:
        """Pictures by the batch; the next is decoded while one is encoded."""
        waiting = [pool.submit(self._load, row) for row in islice(rows, self.batch_size)]
        while waiting:
            following = [pool.submit(self._load, row) for row in islice(rows, self.batch_size)]
            yield [future.result() for future in waiting]
            waiting = following

    def _load(self, row: dict) -> _Picture:
        key = str(row.get("__key__") or row.get("id") or row.get("path") or "?")
        try:
            record = self.part.record(row)
            key = record["id"] or key
            if len(record["images"]) != 1:
                raise ValueError("drawn from other pictures; shards hold what is drawn from text alone")
            caption = record["messages"][0]["content"][-1]["text"]
            pixels = pixels_of([load_image(record["images"][0])], self.image_processor)[0]
        except (KeyError, TypeError, ValueError) as error:
            return _Picture(key, "", None, why_no_record(error))
        return _Picture(key, caption, pixels, "")
