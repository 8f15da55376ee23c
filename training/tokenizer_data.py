"""Images that the tokenizer learns from, the emoji world with scenes or any others, and those it is measured on."""

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
from .emoji.scenes import render, sample_scene
from .emoji.world import EmojiWorld
from .last_good import LastGood
from .messages import printable


logger = logging.get_logger(__name__)

MAX_ASPECT = 200  # of any image, as in Qwen2-VL; those that are learnt from are squarer
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def to_pixels(image: Image.Image) -> torch.Tensor:
    """RGB picture -> (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


class EmojiImages(Dataset):
    """Endless variations of the training drawings, in an order fixed by the seed: sample i never depends on the others.

    Args:
        world: the emoji world.
        length: number of samples.
        mixture: weights of `plain` (on white, as drawn), `varied` (moved, scaled, on any colour) and `scene`.
        seed: of everything random.
    """

    def __init__(self, world: EmojiWorld, length: int, mixture: dict[str, float] | None = None, seed: int = 0):
        self.world, self.length, self.seed = world, length, seed
        mixture = mixture or {"plain": 0.5, "varied": 0.3, "scene": 0.2}
        self.kinds, self.weights = list(mixture), list(mixture.values())
        self.drawings = world.drawings("train")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"{self.seed}/{index}")
        kind = rng.choices(self.kinds, self.weights)[0]
        if kind == "scene":
            return {"pixel_values": to_pixels(render(sample_scene(rng, self.world, self.drawings), self.world))}
        drawing = rng.choice(self.drawings)
        if kind == "plain":
            return {"pixel_values": to_pixels(self.world.image(drawing))}
        return {"pixel_values": to_pixels(self._vary(rng, drawing))}

    def _vary(self, rng: random.Random, drawing) -> Image.Image:
        size = self.world.size
        color = (255, 255, 255) if rng.random() < 0.4 else tuple(rng.randrange(256) for _ in range(3))
        scaled = max(8, round(size * rng.uniform(0.6, 1.2)))
        emoji = Image.fromarray(self.world.rgba(drawing)).resize((scaled, scaled), Image.Resampling.BICUBIC)
        slack = size - scaled
        corner = tuple(rng.randint(min(0, slack), max(0, slack)) for _ in range(2))
        canvas = Image.new("RGB", (size, size), color)
        canvas.paste(emoji, corner, emoji)
        return canvas


def image_files(folder: str | Path) -> list[Path]:
    """All images below a folder, by their suffix, in the order of their paths."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


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


def crop_square(image: Image.Image, size: int, place: tuple[float, float]) -> Image.Image:
    """The short side resized to `size`, and of the long one the square at `place`, 0 to 1 across and down.

    Raises:
        EvoTokImageError: a strip, which would be blown up to many times its size.
    """
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise EvoTokImageError(f"{image.width} x {image.height} is too long a strip to crop a square from: crop it.")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (round(share * (side - size)) for share, side in zip(place, (width, height), strict=True))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


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


def emoji_pixels(world: EmojiWorld, split: str, limit: int | None = None) -> torch.Tensor:
    """Drawings of a split on white, evenly picked when limited: (I, 3, 64, 64) in [-1, 1]."""
    drawings = world.drawings(split)
    if limit is not None and limit < len(drawings):
        drawings = [drawings[i * len(drawings) // limit] for i in range(limit)]
    return torch.stack([to_pixels(world.image(drawing)) for drawing in drawings])
