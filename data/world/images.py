"""Images of the world without texts: for the image tokenizer, and with labels for every patch for the vision tower."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..image_files import to_pixels
from .icons import TRAIN_EMOJI_STYLES, World
from .palette import COLORS, PALETTE
from .scenes import CANVAS, PATCH, Scene, SceneObject, SceneSampler, render, render_with_masks


GRID = CANVAS // PATCH
IGNORE = -100
_COVERED = 0.08  # share of a patch from which on it is labelled with a thing


class PlacedEmoji(NamedTuple):
    """An emoji on a background."""

    image: np.ndarray
    """(64, 64, 3) uint8."""
    background: str
    """Name of the palette."""
    square: tuple[int, int, int]
    """(x, y, size) of the emoji in pixels."""
    mask: np.ndarray
    """(size, size) uint8."""


def check_mixture(mixture: Mapping[str, float], kinds: Sequence[str]) -> dict[str, float]:
    """Checks the weights of a mixture of kinds of rows and returns them as a new dict.

    Raises:
        ValueError: unknown kind, or weights that are negative or all zero.
    """
    unknown = sorted(set(mixture) - set(kinds))
    if unknown:
        raise ValueError(f"unknown kind {unknown[0]!r} in the mixture: choose among {', '.join(kinds)}.")
    if min(mixture.values()) < 0 or sum(mixture.values()) <= 0:
        raise ValueError("weights of the mixture must be 0 or more, and one of them above 0.")
    return dict(mixture)


def place_emoji(world: World, rng: random.Random, emoji: int, style: str) -> PlacedEmoji:
    """Renders an emoji in a random size and place on a random background."""
    size = rng.randint(CANVAS // 2, CANVAS)
    x, y = rng.randint(0, CANVAS - size), rng.randint(0, CANVAS - size)
    icon = Image.fromarray(world.emoji(style)[emoji])
    if size != CANVAS:
        icon = icon.convert("RGBa").resize((size, size), Image.Resampling.BOX).convert("RGBA")
    background = rng.choice(COLORS)
    canvas = Image.new("RGBA", (CANVAS, CANVAS), (*PALETTE[background], 255))
    canvas.alpha_composite(icon, (x, y))
    return PlacedEmoji(np.asarray(canvas.convert("RGB")), background, (x, y, size), np.asarray(icon)[..., 3])


class WorldImages(Dataset):
    """Images of the train split, each a function of the seed and its index alone.

    Args:
        world: the icons.
        length: number of images.
        mixture: weights of `scene` (placed freely), `tidy` (on the grid of patches) and `emoji`.
        seed: of everything random.

    Raises:
        ValueError: as [`check_mixture`].
    """

    def __init__(self, world: World, length: int, mixture: Mapping[str, float] | None = None, seed: int = 0):
        mixture = check_mixture(mixture or {"scene": 0.55, "tidy": 0.25, "emoji": 0.2}, ("scene", "tidy", "emoji"))
        self.world, self.length, self.seed = world, length, seed
        self.kinds, self.weights = list(mixture), list(mixture.values())
        solid, lines = world.select("train"), world.select("train", solid=False)
        self.solid = SceneSampler(world, solid)
        self.any = SceneSampler(world, [a + b for a, b in zip(solid, lines, strict=True)])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns `pixel_values` (3, 64, 64) float32 in [-1, 1]."""
        rng = random.Random(f"{self.seed}/{index}")
        kind = rng.choices(self.kinds, self.weights)[0]
        if kind == "emoji":
            image = self._emoji(rng)
        elif kind == "tidy":
            count = rng.randint(1, 4)
            scene = self.solid.tidy(rng, count, upright=rng.random() < 0.5)
            image = render(self.world, scene)
        else:
            sampler = self.solid if rng.random() < 0.8 else self.any
            image = render(self.world, sampler.free(rng), rng if rng.random() < 0.5 else None)
        return {"pixel_values": to_pixels(image)}

    def _emoji(self, rng: random.Random) -> np.ndarray:
        emoji, style = rng.randrange(len(self.world.emoji_names)), rng.choice(TRAIN_EMOJI_STYLES)
        if rng.random() < 0.6:
            return np.asarray(self.world.emoji_image(emoji, style))
        return place_emoji(self.world, rng, emoji, style).image


def patch_labels(scene: Scene, masks: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Labels every patch of a scene.

    Args:
        scene: the scene.
        masks: of its objects, (size, size) uint8 each.

    Returns:
        `things` and `colors` (64,) int64, index + 1 of the thing and of its colour, 0 on the background; `background`
        () int64, index of its colour; `centers` (64,) int64, 1 at the patch with the middle of an object.
    """
    things = np.zeros(GRID * GRID, dtype=np.int64)
    colors, centers = things.copy(), things.copy()
    best = np.full(GRID * GRID, _COVERED, dtype=np.float32)
    for obj, mask in zip(scene.objects, masks, strict=True):
        placed = np.zeros((CANVAS, CANVAS), dtype=np.float32)
        placed[obj.y : obj.y + obj.size, obj.x : obj.x + obj.size] = mask
        share = placed.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)).ravel() / 255
        own = share > best
        best[own] = share[own]
        things[own], colors[own] = obj.thing + 1, COLORS.index(obj.color) + 1
        column, row = (int(c) // PATCH for c in obj.center)
        centers[min(row, GRID - 1) * GRID + min(column, GRID - 1)] = 1
    return {
        "things": things,
        "colors": colors,
        "background": np.array(COLORS.index(scene.background), dtype=np.int64),
        "centers": centers,
    }


class LabelledScenes(Dataset):
    """Scenes with labels for every patch, from easy to hard: a vision tower that begins with coloured scenes learns
    colours and never shapes.

    The first scenes are single large objects in black on white. Within the `chroma` shares of the data set colours fade
    in, objects become smaller and line drawings more frequent; within the `several` shares up to six in ten scenes get
    several objects.

    Args:
        world: the icons.
        length: number of scenes, read in order.
        seed: of everything random.
        chroma, several: first and last share of `length` of each transition.
        curriculum: whether there are transitions; otherwise all scenes are as the last ones, and more of them warped.
    """

    def __init__(
        self,
        world: World,
        length: int,
        seed: int = 0,
        chroma: tuple[float, float] = (0.1, 0.4),
        several: tuple[float, float] = (0.3, 0.55),
        curriculum: bool = True,
    ):
        self.world, self.length, self.seed = world, length, seed
        self.chroma, self.several, self.curriculum = chroma, several, curriculum
        self.warped = 0.5 if curriculum else 0.8
        solid, lines = world.select("train"), world.select("train", solid=False)
        self.solid = SceneSampler(world, solid)
        self.lines = SceneSampler(world, lines)
        by_name = {thing.name: thing.index for thing in world.things}
        self.emoji_things = [by_name.get(name) for name in world.emoji_names]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns `pixel_values` (3, 64, 64) float32 in [-1, 1] and the labels of [`patch_labels`]."""
        rng = random.Random(f"{self.seed}/{index}")
        chroma = self._progress(self.chroma, index)
        sampler = self.lines if rng.random() < 0.3 * chroma else self.solid
        if rng.random() < 0.06 * chroma:
            return self._emoji(rng)
        if rng.random() < 0.6 * self._progress(self.several, index):
            scene = sampler.free(rng, rng.randint(2, 4))
        else:
            scene = self._single(rng, sampler, round(44 - 20 * chroma))
        return self._labelled(rng, scene, chroma * (1.0 if rng.random() < 0.6 else rng.random()) if chroma < 1 else 1.0)

    def _progress(self, transition: tuple[float, float], index: int) -> float:
        if not self.curriculum:
            return 1.0
        start, end = (share * self.length for share in transition)
        return min(1.0, max(0.0, (index - start) / (end - start)))

    def _single(self, rng: random.Random, sampler: SceneSampler, smallest: int) -> Scene:
        scene = sampler.free(rng, 1)
        size = rng.randint(smallest, 60)
        x, y = rng.randint(0, CANVAS - size), rng.randint(0, CANVAS - size)
        return Scene(scene.background, (replace(scene.objects[0], x=x, y=y, size=size),))

    def _labelled(self, rng: random.Random, scene: Scene, chroma: float) -> dict[str, torch.Tensor]:
        image, masks = render_with_masks(self.world, scene, rng if rng.random() < self.warped else None, chroma)
        labels = patch_labels(scene, masks)
        if chroma < 0.5:  # too pale to be named
            labels["colors"][labels["colors"] > 0] = IGNORE
            labels["background"] = np.array(IGNORE, dtype=np.int64)
        return _sample(image, labels)

    def _emoji(self, rng: random.Random) -> dict[str, torch.Tensor]:
        emoji, style = rng.randrange(len(self.emoji_things)), rng.choice(TRAIN_EMOJI_STYLES)
        thing = self.emoji_things[emoji]
        placed = place_emoji(self.world, rng, emoji, style)
        shown = SceneObject(thing or 0, 0, "red", *placed.square)
        labels = patch_labels(Scene(placed.background, (shown,)), [placed.mask])
        if thing is None:
            labels["things"][labels["things"] > 0] = IGNORE
        labels["colors"][labels["colors"] > 0] = IGNORE
        return _sample(placed.image, labels)


def _sample(image: np.ndarray, labels: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {"pixel_values": to_pixels(image)} | {name: torch.as_tensor(value) for name, value in labels.items()}


def held_out_scenes(world: World, split: str, count: int, single: bool = False, seed: int = 0) -> list[Scene]:
    """Samples scenes of filled icons of a split, placed freely: the same ones for the same arguments.

    Args:
        world: the icons.
        split: val or test, whose icon families are not trained on, or train.
        count: number of scenes.
        single: one object each, 32 to 56 pixels wide, instead of one to four.
        seed: of everything random.

    Raises:
        ValueError: unknown split.
    """
    rng = random.Random(f"{seed}/{split}/{single}")
    sampler = SceneSampler(world, world.select(split))
    scenes = []
    while len(scenes) < count:
        scene = sampler.free(rng, 1 if single else None)
        if not single or scene.objects[0].size >= 32:
            scenes.append(scene)
    return scenes


def scene_pixels(world: World, scenes: list[Scene]) -> torch.Tensor:
    """Renders scenes as pixels (I, 3, 64, 64) float32 in [-1, 1]."""
    return torch.stack([to_pixels(render(world, scene)) for scene in scenes])
