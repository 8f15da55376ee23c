"""Images that the tokenizer learns from: the emoji world with scenes, or any folder."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..processing.image_loading_evotok import load_image
from .emoji.scenes import render, sample_scene
from .emoji.world import EmojiWorld


_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


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


class FolderImages(Dataset):
    """All images below a folder, resized on the short side and cropped to a square; a random place when training.

    Raises:
        ValueError: no image there.
    """

    def __init__(self, folder: str | Path, size: int, random_crop: bool = True):
        self.size, self.random_crop = size, random_crop
        self.paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not self.paths:
            raise ValueError(f"{folder}: no images below this folder ({', '.join(sorted(_SUFFIXES))}).")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = load_image(self.paths[index])
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        slack = (width - self.size, height - self.size)
        if self.random_crop:
            left, top = (int(torch.randint(s + 1, ())) for s in slack)
        else:
            left, top = (s // 2 for s in slack)
        return {"pixel_values": to_pixels(image.crop((left, top, left + self.size, top + self.size)))}


def emoji_pixels(world: EmojiWorld, split: str, limit: int | None = None) -> torch.Tensor:
    """Drawings of a split on white, evenly picked when limited: (I, 3, 64, 64) in [-1, 1]."""
    drawings = world.drawings(split)
    if limit is not None and limit < len(drawings):
        drawings = [drawings[i * len(drawings) // limit] for i in range(limit)]
    return torch.stack([to_pixels(world.image(drawing)) for drawing in drawings])
