"""Scenes: one to four things on a canvas of one colour, placed freely or on a lattice of whole patches."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from .drawings import World
from .palette import COLORS, PALETTE
from .splits import is_new_color_pair, is_new_placement


CANVAS = 64
PATCH = 8
MAX_THINGS = 4
TIDY_SIZE = 32
SIZES = {1: (24, 56), 2: (20, 36), 3: (20, 30), 4: (20, 28)}  # smallest and largest side, by number of things
SLOTS = {  # upper left corners in a tidy scene, by number of things; multiples of a patch
    1: ((16, 16),),
    2: ((0, 16), (32, 16)),
    3: ((16, 0), (0, 32), (32, 32)),
    4: ((0, 0), (32, 0), (0, 32), (32, 32)),
}
_CLEAR = 1.5  # a relation holds along an axis with a distance of so many times that along the other one


@dataclass(frozen=True)
class Item:
    """A thing in one colour, in the square with upper left corner (x, y) and side `size`, in pixels."""

    thing: int
    drawing: int
    color: str
    x: int
    y: int
    size: int

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of the middle, in pixels."""
        return self.x + self.size / 2, self.y + self.size / 2


@dataclass(frozen=True)
class Scene:
    """Things on a canvas of 64x64 pixels; `background` is a name of the palette."""

    background: str
    items: tuple[Item, ...]

    @property
    def kinds(self) -> dict[tuple[int, str], int]:
        """Number of items of each (thing, colour), in the order of their first one."""
        counts: dict[tuple[int, str], int] = {}
        for item in self.items:
            counts[item.thing, item.color] = counts.get((item.thing, item.color), 0) + 1
        return counts


def relation(first: Item, second: Item) -> str | None:
    """Where the first item is, seen from the second: left, right, above, below; None where it is not clear."""
    dx, dy = (a - b for a, b in zip(first.center, second.center, strict=True))
    if max(abs(dx), abs(dy)) < _CLEAR * min(abs(dx), abs(dy)):
        return None
    return ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")


def new_pairs(scene: Scene) -> bool:
    """Whether a scene shows a held-out pair of thing and colour, or, of two things, one of thing and relation."""
    if any(is_new_color_pair(item.thing, item.color) for item in scene.items):
        return True
    if len(scene.items) != 2 or scene.items[0].thing == scene.items[1].thing:
        return False
    first, second = scene.items
    seen = relation(first, second)
    return seen is not None and is_new_placement(first.thing, second.thing, seen)


def sample_background(rng: random.Random, colors: list[str]) -> str:
    """A colour that all of the things stand out from."""
    return rng.choice([name for name in COLORS if all(stands_out(color, name) for color in colors)])


def stands_out(color: str, background: str) -> bool:
    """Whether a thing of this colour is told from this background at a glance."""
    return color != background and {color, background} != {"blue", "purple"}


class SceneSampler:
    """Samples scenes without held-out pairs.

    Args:
        world: the drawings.
        drawings: indices of the drawings that may occur, for each thing; a thing without any does not occur.
    """

    def __init__(self, world: World, drawings: list[list[int]]):
        self.world, self.drawings = world, drawings
        self.things = [thing for thing, choices in enumerate(drawings) if choices]

    def free(self, rng: random.Random, count: int | None = None, same: float = 0.25) -> Scene:
        """A scene of things at random places in random sizes.

        Args:
            count: number of things, 1 to 4; random when None.
            same: probability that a further thing is of the kind and colour of the one before.
        """
        return self._accept(rng, lambda: self._free(rng, count or rng.randint(1, MAX_THINGS), same))

    def pair(self, rng: random.Random) -> Scene:
        """Two different things, one clearly left of, right of, above or below the other."""
        while True:
            scene = self.free(rng, 2, same=0.0)
            first, second = scene.items
            if first.thing != second.thing and relation(first, second) is not None:
                return scene

    def tidy(
        self, rng: random.Random, kinds: int, counts: tuple[int, ...] | None = None, upright: bool = False
    ) -> Scene:
        """A scene of canonical drawings, 32 pixels wide, in fixed places on the lattice of patches.

        Args:
            kinds: number of different things.
            counts: number of each; 1 when None.
            upright: two things one above the other, not side by side.
        """
        return self._accept(rng, lambda: self._tidy(rng, kinds, counts or (1,) * kinds, upright))

    def _accept(self, rng: random.Random, sample: Callable[[], Scene | None]) -> Scene:
        while True:
            scene = sample()
            if scene is not None and not new_pairs(scene):
                return scene

    def _kinds(self, rng: random.Random, count: int) -> list[tuple[int, str]]:
        things = rng.sample(self.things, count)
        # At most four colours: some background always stands out from them.
        return [(thing, rng.choice([c for c in COLORS if not is_new_color_pair(thing, c)])) for thing in things]

    def _free(self, rng: random.Random, count: int, same: float) -> Scene | None:
        kinds = self._kinds(rng, count)
        for i in range(1, count):
            if rng.random() < same:
                kinds[i] = kinds[i - 1]
        items: list[Item] = []
        for thing, color in kinds:
            drawing = rng.choice(self.drawings[thing])
            if items and items[-1].thing == thing:
                drawing = items[-1].drawing
            for _ in range(20):
                size = rng.randint(*SIZES[count])
                item = Item(thing, drawing, color, rng.randint(0, CANVAS - size), rng.randint(0, CANVAS - size), size)
                if not any(_overlap(item, other) for other in items):
                    items.append(item)
                    break
            else:
                return None  # the first ones left no room
        return Scene(sample_background(rng, [color for _, color in kinds]), tuple(items))

    def _tidy(self, rng: random.Random, kinds: int, counts: tuple[int, ...], upright: bool) -> Scene:
        chosen = self._kinds(rng, kinds)
        subjects = [kind for kind, number in zip(chosen, counts, strict=True) for _ in range(number)]
        return tidy_scene(self.world, subjects, sample_background(rng, [color for _, color in chosen]), upright)


def tidy_scene(world: World, subjects: list[tuple[int, str]], background: str, upright: bool = False) -> Scene:
    """The scene that a prompt determines: (thing, colour) in the slots, in their order."""
    slots = SLOTS[len(subjects)]
    if upright and len(subjects) == 2:
        slots = tuple((y, x) for x, y in slots)
    items = (
        Item(thing, world.things[thing].canonical, color, x, y, TIDY_SIZE)
        for (thing, color), (x, y) in zip(subjects, slots, strict=True)
    )
    return Scene(background, tuple(items))


def _overlap(a: Item, b: Item) -> bool:
    return a.x < b.x + b.size and b.x < a.x + a.size and a.y < b.y + b.size and b.y < a.y + a.size


def render(world: World, scene: Scene, warp: random.Random | None = None) -> np.ndarray:
    """Pixels of a scene, (64, 64, 3) uint8.

    Args:
        warp: distort every thing a little (turn, stretch, shear, mirror) with this generator, as augmentation.
    """
    return render_with_masks(world, scene, warp)[0]


def render_with_masks(
    world: World, scene: Scene, warp: random.Random | None = None, chroma: float = 1.0
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Pixels of a scene, (64, 64, 3) uint8, and the coverage (size, size) uint8 of every item.

    Args:
        warp: as in [`render`].
        chroma: from 0, every thing black on white, to 1, all in their own colours.
    """
    canvas = np.empty((CANVAS, CANVAS, 3), dtype=np.float32)
    canvas[:] = 255 + (np.array(PALETTE[scene.background]) - 255) * chroma
    masks = []
    for item in scene.items:
        mask = scaled_mask(world, item.drawing, item.size) if warp is None else _warped(world, item, warp)
        masks.append(mask)
        region = canvas[item.y : item.y + item.size, item.x : item.x + item.size]
        color = np.array(PALETTE[item.color], dtype=np.float32) * np.float32(chroma)
        region += (color - region) * (mask[..., None] / np.float32(255))
    return (canvas + 0.5).astype(np.uint8), masks


def scaled_mask(world: World, drawing: int, size: int) -> np.ndarray:
    """Coverage (size, size) uint8 of a drawing."""
    return _scaled(world.root, drawing, size, world)


@lru_cache(maxsize=8192)
def _scaled(root, drawing: int, size: int, world: World) -> np.ndarray:
    return np.asarray(Image.fromarray(world.masks[drawing]).resize((size, size), Image.Resampling.BOX))


def _warped(world: World, item: Item, rng: random.Random) -> np.ndarray:
    """The mask under a random affine map that keeps it inside its square, mirrored half of the time, its strokes
    thicker or thinner in one of three cases."""
    size = item.size
    # The map reads single pixels: a mask of about the target's size keeps it from skipping lines.
    side = min(world.size, -(-size * 5 // 4 // 8) * 8)
    source = Image.fromarray(scaled_mask(world, item.drawing, side))
    if rng.random() < 1 / 3:
        source = source.filter(rng.choice((ImageFilter.MaxFilter(3), ImageFilter.MinFilter(3))))
    angle, shear = rng.gauss(0, 0.12), rng.gauss(0, 0.1)
    wide, high = rng.uniform(0.78, 1.0), rng.uniform(0.78, 1.0)
    longest = max(wide, high)
    wide, high = wide / longest, high / longest
    mirror = -1 if rng.random() < 0.5 else 1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[wide * mirror, shear], [0, high]])
    extent = np.abs(forward).sum(1).max()  # of the unit square
    backward = np.linalg.inv(forward / max(1.0, extent * 0.92)) * side / size
    shift = side / 2 - backward @ np.array([size / 2, size / 2])
    matrix = (*backward[0], shift[0], *backward[1], shift[1])
    return np.asarray(source.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))
