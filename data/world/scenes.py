"""Scenes: one to four objects on a background of one colour, placed freely or, in tidy scenes, on a grid of patches.

Two kinds of pairs are held out from all training: a thing in a colour, and a thing as the subject of a relation. Both
rules are functions of indices alone. Every thing lacks one or two of its nine colours, and at most one of its four
relations; every colour and every relation is seen with most things.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from .icons import World
from .palette import COLORS, PALETTE


CANVAS = 64
PATCH = 8
MAX_THINGS = 4
TIDY_SIZE = 32
SIZES = {1: (24, 56), 2: (20, 36), 3: (20, 30), 4: (20, 28)}  # smallest and largest side, by number of objects
SLOTS = {  # upper left corners in a tidy scene, by number of objects; multiples of a patch
    1: ((16, 16),),
    2: ((0, 16), (32, 16)),
    3: ((16, 0), (0, 32), (32, 32)),
    4: ((0, 0), (32, 0), (0, 32), (32, 32)),
}
RELATIONS = ("left", "right", "above", "below")
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_CLEAR = 1.5  # a relation is clear where the distance along its axis is so many times that along the other axis
_HELD_OUT = 8  # one pair in so many is held out


@dataclass(frozen=True)
class SceneObject:
    """An icon in one colour, in the square with upper left corner (x, y) and side `size`, in pixels."""

    thing: int
    icon: int
    color: str
    x: int
    y: int
    size: int

    @property
    def center(self) -> tuple[float, float]:
        """Returns (x, y) of the middle, in pixels."""
        return self.x + self.size / 2, self.y + self.size / 2


@dataclass(frozen=True)
class Scene:
    """Objects on a canvas of 64x64 pixels; `background` is a name of the palette."""

    background: str
    objects: tuple[SceneObject, ...]

    @property
    def kinds(self) -> dict[tuple[int, str], int]:
        """Counts the objects of each (thing, colour), in the order of their first one."""
        counts: dict[tuple[int, str], int] = {}
        for obj in self.objects:
            counts[obj.thing, obj.color] = counts.get((obj.thing, obj.color), 0) + 1
        return counts


def relation(first: SceneObject, second: SceneObject) -> str | None:
    """Returns the relation of the first object to the second, one of `RELATIONS`; None where it is not clear."""
    dx, dy = (a - b for a, b in zip(first.center, second.center, strict=True))
    if max(abs(dx), abs(dy)) < _CLEAR * min(abs(dx), abs(dy)):
        return None
    return ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")


def is_held_out_color(thing: int, color: str) -> bool:
    """Returns whether a thing in this colour is held out, one pair in eight."""
    return (3 * thing + COLORS.index(color)) % _HELD_OUT == 0


def is_held_out_relation(thing: int, relation: str) -> bool:
    """Returns whether a thing as the subject of this relation is held out, one pair in eight."""
    return (thing + thing // 8 + 2 * RELATIONS.index(relation)) % _HELD_OUT == 0


def is_held_out_placement(first: int, second: int, relation: str) -> bool:
    """Returns whether the first thing `relation` the second, or the inverse of it, is a held-out relation."""
    return is_held_out_relation(first, relation) or is_held_out_relation(second, INVERSE[relation])


def has_held_out_pair(scene: Scene) -> bool:
    """Returns whether a scene shows a held-out pair of thing and colour or, with two objects, of thing and relation."""
    if any(is_held_out_color(obj.thing, obj.color) for obj in scene.objects):
        return True
    if len(scene.objects) != 2 or scene.objects[0].thing == scene.objects[1].thing:
        return False
    first, second = scene.objects
    seen = relation(first, second)
    return seen is not None and is_held_out_placement(first.thing, second.thing, seen)


def sample_background(rng: random.Random, colors: list[str]) -> str:
    """Samples a background that objects of these colours stand out from."""
    return rng.choice([name for name in COLORS if all(stands_out(color, name) for color in colors)])


def stands_out(color: str, background: str) -> bool:
    """Returns whether an object of this colour is easily distinguished from this background."""
    return color != background and {color, background} != {"blue", "purple"}


class SceneSampler:
    """Sampler of scenes without held-out pairs.

    Args:
        world: the icons.
        icons: indices of the icons to sample from, for each thing; a thing without any does not occur.
    """

    def __init__(self, world: World, icons: list[list[int]]):
        self.world, self.icons = world, icons
        self.things = [thing for thing, choices in enumerate(icons) if choices]

    def free(self, rng: random.Random, count: int | None = None, same: float = 0.25) -> Scene:
        """Samples a scene of objects in random places and sizes.

        Args:
            count: number of objects, 1 to 4; random when None.
            same: probability that a further object has the thing and colour of the one before.
        """
        return self._accept(lambda: self._free(rng, count or rng.randint(1, MAX_THINGS), same))

    def pair(self, rng: random.Random) -> Scene:
        """Samples a scene of two different things in a clear relation."""
        while True:
            scene = self.free(rng, 2, same=0.0)
            first, second = scene.objects
            if first.thing != second.thing and relation(first, second) is not None:
                return scene

    def tidy(
        self, rng: random.Random, kinds: int, counts: tuple[int, ...] | None = None, upright: bool = False
    ) -> Scene:
        """Samples a scene of canonical icons, 32 pixels wide, in fixed places on the grid of patches.

        Args:
            kinds: number of different things.
            counts: number of each; 1 when None.
            upright: two objects one above the other, not side by side.
        """
        return self._accept(lambda: self._tidy(rng, kinds, counts or (1,) * kinds, upright))

    def _accept(self, sample: Callable[[], Scene | None]) -> Scene:
        while True:
            scene = sample()
            if scene is not None and not has_held_out_pair(scene):
                return scene

    def _kinds(self, rng: random.Random, count: int) -> list[tuple[int, str]]:
        things = rng.sample(self.things, count)
        # Of at most four colours, all of them stand out from some background.
        return [(thing, rng.choice([c for c in COLORS if not is_held_out_color(thing, c)])) for thing in things]

    def _free(self, rng: random.Random, count: int, same: float) -> Scene | None:
        kinds = self._kinds(rng, count)
        for i in range(1, count):
            if rng.random() < same:
                kinds[i] = kinds[i - 1]
        objects: list[SceneObject] = []
        for thing, color in kinds:
            icon = rng.choice(self.icons[thing])
            if objects and objects[-1].thing == thing:
                icon = objects[-1].icon
            for _ in range(20):
                size = rng.randint(*SIZES[count])
                obj = SceneObject(
                    thing, icon, color, rng.randint(0, CANVAS - size), rng.randint(0, CANVAS - size), size
                )
                if not any(_overlap(obj, other) for other in objects):
                    objects.append(obj)
                    break
            else:
                return None  # no room beside the first ones
        return Scene(sample_background(rng, [color for _, color in kinds]), tuple(objects))

    def _tidy(self, rng: random.Random, kinds: int, counts: tuple[int, ...], upright: bool) -> Scene:
        chosen = self._kinds(rng, kinds)
        subjects = [kind for kind, number in zip(chosen, counts, strict=True) for _ in range(number)]
        return tidy_scene(self.world, subjects, sample_background(rng, [color for _, color in chosen]), upright)


def tidy_scene(world: World, subjects: list[tuple[int, str]], background: str, upright: bool = False) -> Scene:
    """Builds the scene that a prompt determines: (thing, colour) in the slots, in their order."""
    slots = SLOTS[len(subjects)]
    if upright and len(subjects) == 2:
        slots = tuple((y, x) for x, y in slots)
    objects = (
        SceneObject(thing, world.things[thing].canonical, color, x, y, TIDY_SIZE)
        for (thing, color), (x, y) in zip(subjects, slots, strict=True)
    )
    return Scene(background, tuple(objects))


def _overlap(a: SceneObject, b: SceneObject) -> bool:
    return a.x < b.x + b.size and b.x < a.x + a.size and a.y < b.y + b.size and b.y < a.y + a.size


def render(world: World, scene: Scene, warp: random.Random | None = None) -> np.ndarray:
    """Renders a scene, (64, 64, 3) uint8.

    Args:
        warp: random generator that distorts every object a little (turn, stretch, shear, mirror), as augmentation.
    """
    return render_with_masks(world, scene, warp)[0]


def render_with_masks(
    world: World, scene: Scene, warp: random.Random | None = None, chroma: float = 1.0
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Renders a scene, (64, 64, 3) uint8, and the scaled mask of every object, (size, size) uint8.

    Args:
        warp: as in [`render`].
        chroma: from 0, all black on white, to 1, all in their own colours.
    """
    canvas = np.empty((CANVAS, CANVAS, 3), dtype=np.float32)
    canvas[:] = 255 + (np.array(PALETTE[scene.background]) - 255) * chroma
    masks = []
    for obj in scene.objects:
        mask = scaled_mask(world, obj.icon, obj.size) if warp is None else _warped(world, obj, warp)
        masks.append(mask)
        region = canvas[obj.y : obj.y + obj.size, obj.x : obj.x + obj.size]
        color = np.array(PALETTE[obj.color], dtype=np.float32) * np.float32(chroma)
        region += (color - region) * (mask[..., None] / np.float32(255))
    return (canvas + 0.5).astype(np.uint8), masks


@lru_cache(maxsize=8192)
def scaled_mask(world: World, icon: int, size: int) -> np.ndarray:
    """Scales the mask of an icon to (size, size) uint8."""
    return np.asarray(Image.fromarray(world.masks[icon]).resize((size, size), Image.Resampling.BOX))


def _warped(world: World, obj: SceneObject, rng: random.Random) -> np.ndarray:
    """Distorts the mask of an object by a random affine map inside its square, mirrored in half of the cases, with
    strokes thicker or thinner in a third of them."""
    size = obj.size
    # The map reads single pixels: from a mask much larger than the target it would skip lines.
    side = min(world.size, -(-size * 5 // 4 // 8) * 8)
    source = Image.fromarray(scaled_mask(world, obj.icon, side))
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
