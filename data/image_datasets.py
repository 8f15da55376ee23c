"""Images from folders and streams that the tokenizer learns from, and those it is measured on."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.utils import logging

from ..processing.image_loading_evotok import EvoTokImageError, load_image
from .errors import printable
from .image_files import IMAGE_SUFFIXES, crop_square, image_files
from .streams.last_good import LastGood


logger = logging.get_logger(__name__)


def to_pixels(image: Image.Image) -> torch.Tensor:
    """RGB picture -> (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


class FolderImages(Dataset):
    """All images below a folder, resized on the short side and cropped to the square in their middle.

    Raises:
        ValueError: no image there; when one is read, that it cannot be.
    """

    def __init__(self, folder: str | Path, size: int):
        self.size = size
        self.paths = image_files(folder)
        if not self.paths:
            raise ValueError(f"{folder}: no images below this folder ({', '.join(sorted(IMAGE_SUFFIXES))}).")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": to_pixels(crop_square(load_image(self.paths[index]), self.size, (0.5, 0.5)))}


class ImageCollator:
    """Collates the pictures of records, the last of each, into `pixel_values` (B, 3, H, W) in [-1, 1].

    A record's `index` and the seed say where it is cropped. Pictures that cannot be read, are over the limit of
    pixels or longer than `max_aspect` are left out, logged and counted in `skipped`; a batch of nothing else repeats
    the last good picture.

    Raises:
        ValueError: no good picture has been seen yet, or for many batches.
    """

    def __init__(self, size: int, seed: int = 0, max_aspect: float = 20.0):
        self.size, self.seed, self.max_aspect = size, seed, max_aspect
        self.skipped: Counter[str] = Counter()
        self._last_good: LastGood[torch.Tensor] = LastGood()

    def __call__(self, records: Sequence[dict]) -> dict[str, torch.Tensor]:
        pixels = [image for record in records if (image := self._read(record)) is not None]
        return {"pixel_values": torch.stack(self._last_good.fill(pixels, self.skipped))}

    def _read(self, record: dict) -> torch.Tensor | None:
        if not record["images"]:
            self.skipped["no_image"] += 1
            return None
        try:
            image = load_image(record["images"][-1])
            if max(image.size) > self.max_aspect * min(image.size):
                raise EvoTokImageError(f"{image.width} x {image.height} is too long to crop a square from")
        except EvoTokImageError as error:
            self.skipped["image"] += 1
            said = f"Skipped (image, {self.skipped['image']} so far): record {record['id']}: {error}"
            logger.warning(printable(said))
            return None
        rng = random.Random(f"{self.seed}/{record['index']}")
        return to_pixels(crop_square(image, self.size, (rng.random(), rng.random())))


def folder_pixels(folder: str | Path, size: int, limit: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
    """Images below a folder, evenly picked when limited, their middle squares: those of this process out of all.

    Returns:
        (I, 3, size, size) in [-1, 1].

    Raises:
        ValueError: no image there, fewer than processes, or one that cannot be read.
    """
    images = FolderImages(folder, size)
    count = min(limit, len(images))
    if count < world_size:
        raise ValueError(f"{folder}: {count} images to measure on {world_size} processes: give one for each at least.")
    picked = [i * len(images) // count for i in range(rank, count, world_size)]
    return torch.stack([images[index]["pixel_values"] for index in picked])
