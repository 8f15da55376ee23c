"""Images of the world without texts: for the image tokenizer, and with labels at every patch for the vision tower."""

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from .drawings import EMOJI_STYLES, NEW_EMOJI_STYLE, World
from .palette import COLORS, PALETTE
from .scenes import CANVAS, PATCH, Item, Scene, SceneSampler, render, render_with_masks


GRID = CANVAS // PATCH
IGNORE = -100
_COVERED = 0.08  # share of a patch from which on it belongs to a thing
_TRAIN_STYLES = tuple(style for style in EMOJI_STYLES if style != NEW_EMOJI_STYLE)


def to_pixels(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 127.5 - 1


def place_emoji(
    world: World, rng: random.Random, emoji: int, style: str
) -> tuple[np.ndarray, str, tuple[int, int, int], np.ndarray]:
    """An emoji in a random size and place on a random colour.

    Returns:
        Pixels (64, 64, 3) uint8, name of the background, (x, y, size) of the emoji, its coverage (size, size) uint8.
    """
    size = rng.randint(CANVAS // 2, CANVAS)
    x, y = rng.randint(0, CANVAS - size), rng.randint(0, CANVAS - size)
    icon = Image.fromarray(world.emoji(style)[emoji])
    if size != CANVAS:
        icon = icon.convert("RGBa").resize((size, size), Image.Resampling.BOX).convert("RGBA")
    background = rng.choice(COLORS)
    canvas = Image.new("RGBA", (CANVAS, CANVAS), (*PALETTE[background], 255))
    canvas.alpha_composite(icon, (x, y))
    return np.asarray(canvas.convert("RGB")), background, (x, y, size), np.asarray(icon)[..., 3]


class WorldImages(Dataset):
    """Endless images of the train split, in an order fixed by the seed: sample i does not depend on the others.

    Args:
        world: the drawings.
        length: number of samples.
        mixture: weights of `scene` (placed freely), `tidy` (on the lattice) and `emoji`.
        seed: of everything random.
    """

    def __init__(self, world: World, length: int, mixture: Mapping[str, float] | None = None, seed: int = 0):
        mixture = dict(mixture or {"scene": 0.55, "tidy": 0.25, "emoji": 0.2})
        unknown = sorted(set(mixture) - {"scene", "tidy", "emoji"})
        if unknown:
            raise ValueError(f"unknown kind {unknown[0]!r} of images in the mixture: choose among scene, tidy, emoji.")
        self.world, self.length, self.seed = world, length, seed
        self.kinds, self.weights = list(mixture), list(mixture.values())
        solid, lines = world.select("train"), world.select("train", solid=False)
        self.solid = SceneSampler(world, solid)
        self.any = SceneSampler(world, [a + b for a, b in zip(solid, lines, strict=True)])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`pixel_values` (3, 64, 64) float32 in [-1, 1]."""
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
        emoji, style = rng.randrange(len(self.world.emoji_names)), rng.choice(_TRAIN_STYLES)
        if rng.random() < 0.6:
            return np.asarray(self.world.emoji_image(emoji, style))
        return place_emoji(self.world, rng, emoji, style)[0]


def patch_labels(scene: Scene, masks: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What is at every patch of a scene.

    Returns:
        `things` and `colors` (64,) int64, index + 1 of the thing and of its colour, 0 on the background; `background`
        () int64, index of its colour; `centers` (64,) int64, 1 at the patch that holds the middle of a thing.
    """
    things = np.zeros(GRID * GRID, dtype=np.int64)
    colors, centers = things.copy(), things.copy()
    best = np.full(GRID * GRID, _COVERED, dtype=np.float32)
    for item, mask in zip(scene.items, masks, strict=True):
        placed = np.zeros((CANVAS, CANVAS), dtype=np.float32)
        placed[item.y : item.y + item.size, item.x : item.x + item.size] = mask
        share = placed.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)).ravel() / 255
        own = share > best
        best[own] = share[own]
        things[own], colors[own] = item.thing + 1, COLORS.index(item.color) + 1
        column, row = (int(c) // PATCH for c in item.center)
        centers[min(row, GRID - 1) * GRID + min(column, GRID - 1)] = 1
    return {
        "things": things,
        "colors": colors,
        "background": np.int64(COLORS.index(scene.background)),
        "centers": centers,
    }


class LabelledScenes(Dataset):
    """Scenes with labels at every patch, from easy to hard: a vision tower that begins with coloured scenes learns
    colours and never shapes.

    It begins with single large things in black on white. Colours fade in between `chroma` shares of the samples, things
    become smaller and line drawings more frequent meanwhile, and scenes of several things come in between `several`
    shares, up to six in ten.

    Args:
        world: the drawings.
        length: number of samples, read in order.
        seed: of everything random.
        chroma, several: first and last share of `length` of each transition.
        curriculum: whether there are transitions; otherwise all samples are as the last ones, and more of them warped.
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
        """`pixel_values` (3, 64, 64) float32 in [-1, 1] and the labels of [`patch_labels`]."""
        rng = random.Random(f"{self.seed}/{index}")
        chroma = self._reached(self.chroma, index)
        sampler = self.lines if rng.random() < 0.3 * chroma else self.solid
        if rng.random() < 0.06 * chroma:
            return self._emoji(rng)
        if rng.random() < 0.6 * self._reached(self.several, index):
            scene = sampler.free(rng, rng.randint(2, 4))
        else:
            scene = self._single(rng, sampler, round(44 - 20 * chroma))
        return self._labelled(rng, scene, chroma * (1.0 if rng.random() < 0.6 else rng.random()) if chroma < 1 else 1.0)

    def _reached(self, part: tuple[float, float], index: int) -> float:
        if not self.curriculum:
            return 1.0
        start, end = (share * self.length for share in part)
        return min(1.0, max(0.0, (index - start) / (end - start)))

    def _single(self, rng: random.Random, sampler: SceneSampler, smallest: int) -> Scene:
        scene = sampler.free(rng, 1)
        size = rng.randint(smallest, 60)
        x, y = rng.randint(0, CANVAS - size), rng.randint(0, CANVAS - size)
        return Scene(scene.background, (replace(scene.items[0], x=x, y=y, size=size),))

    def _labelled(self, rng: random.Random, scene: Scene, chroma: float) -> dict[str, torch.Tensor]:
        image, masks = render_with_masks(self.world, scene, rng if rng.random() < self.warped else None, chroma)
        labels = patch_labels(scene, masks)
        if chroma < 0.5:  # still too pale to have a name
            labels["colors"][labels["colors"] > 0] = IGNORE
            labels["background"] = np.int64(IGNORE)
        return {"pixel_values": to_pixels(image)} | {name: torch.as_tensor(value) for name, value in labels.items()}

    def _emoji(self, rng: random.Random) -> dict[str, torch.Tensor]:
        emoji, style = rng.randrange(len(self.emoji_things)), rng.choice(_TRAIN_STYLES)
        thing = self.emoji_things[emoji]
        image, background, (x, y, size), mask = place_emoji(self.world, rng, emoji, style)
        labels = patch_labels(Scene(background, (Item(thing or 0, 0, "red", x, y, size),)), [mask])
        if thing is None:
            labels["things"][labels["things"] > 0] = IGNORE
        labels["colors"][labels["colors"] > 0] = IGNORE
        return {"pixel_values": to_pixels(image)} | {name: torch.as_tensor(value) for name, value in labels.items()}


def held_out_scenes(world: World, split: str, count: int, single: bool = False, seed: int = 0) -> list[Scene]:
    """The same scenes for the same arguments, of solid drawings of a split.

    Args:
        split: val or test, whose icon families are not trained on.
        single: one thing each, 32 to 56 pixels wide, instead of one to four.
    """
    rng = random.Random(f"{seed}/{split}/{single}")
    sampler = SceneSampler(world, world.select(split))
    scenes = []
    while len(scenes) < count:
        scene = sampler.free(rng, 1 if single else None)
        if not single or scene.items[0].size >= 32:
            scenes.append(scene)
    return scenes


def scene_pixels(world: World, scenes: list[Scene]) -> torch.Tensor:
    """Pixels of scenes, (I, 3, 64, 64) float32 in [-1, 1]."""
    return torch.stack([to_pixels(render(world, scene)) for scene in scenes])
