"""Detector of things, colours, places and the background in generated images of the world, without learned weights.

A right image of a prompt shows canonical icons of one size on the lattice of patches. Each window of the lattice is
compared with each icon in each colour on each background, and those that explain most of the image are taken, one after
the other, without overlap. Pixels that stay unexplained are reported, too.

Shapes: P windows of the lattice, K masks, A pixels of a window.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from ...data.world.icons import World
from ...data.world.palette import COLORS, RGB, nearest_color
from ...data.world.prompts import Prompt
from ...data.world.scenes import CANVAS, PATCH, TIDY_SIZE, Scene, SceneObject, relation, scaled_mask


BLURS = (0.0, 0.8, 1.6)
"""Standard deviations, in pixels, of Gaussian blurs of the icons: image tokenizers blur edges."""
PRESENT = 0.3
"""Smallest share of a thing's energy in a perfect image at which it is detected."""
EXPLAINED = 0.5
"""Smallest share of the difference from the background in its window that a detected thing explains."""
SMALLEST_BACKGROUND = 0.08
"""Smallest share of the pixels that a background has; four things leave more than this."""
OFF = 90.0
"""Smallest distance of 8-bit colours at which a pixel is unexplained."""
STRAY = 5
"""Side, in pixels, of the smallest square of unexplained pixels that counts as another object."""


@dataclass(frozen=True)
class Detection:
    """Background and things that are detected in an image."""

    background: str
    """Name of a colour of the palette."""
    objects: tuple[SceneObject, ...]
    """The things, with canonical icons."""
    stray: bool
    """Whether the image shows anything else."""


class SceneDetector:
    """Detector of canonical icons on the lattice.

    Args:
        world: that the icons belong to.
    """

    def __init__(self, world: World):
        self.world = world
        icons = [thing.canonical for thing in world.things]
        masks = [Image.fromarray(scaled_mask(world, icon, TIDY_SIZE)) for icon in icons]
        blurred = [mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask for blur in BLURS for mask in masks]
        self.flat = np.stack([np.asarray(mask, dtype=np.float32).ravel() / 255 for mask in blurred])  # (K, A)
        self.mass = np.square(self.flat).sum(1)  # (K,)
        corners = range(0, CANVAS - TIDY_SIZE + 1, PATCH)
        self.corners = np.array([(x, y) for y in corners for x in corners])  # (P, 2)

    def __call__(self, image: Image.Image | np.ndarray) -> Detection:
        """Detects the background and the things of an image.

        Args:
            image: RGB, 64 x 64 pixels; an array is (64, 64, 3) uint8.

        Raises:
            ValueError: an image of another size.
        """
        pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image, dtype=np.float32)
        if pixels.shape != (CANVAS, CANVAS, 3):
            raise ValueError(f"an image of shape {pixels.shape}: give one of {CANVAS} x {CANVAS} pixels in RGB.")
        shares = np.bincount(nearest_color(pixels).ravel(), minlength=len(COLORS)) / CANVAS**2
        candidates = np.flatnonzero(shares >= min(SMALLEST_BACKGROUND, shares.max())).tolist()
        explanations = [(background, *self._explain(pixels, background)) for background in candidates]
        background, objects, left = min(explanations, key=lambda explanation: np.square(explanation[2]).sum())
        return Detection(COLORS[background], tuple(objects), _has_square(np.linalg.norm(left, axis=0) > OFF))

    def _explain(self, pixels: np.ndarray, background: int) -> tuple[list[SceneObject], np.ndarray]:
        """Returns the things on a background, and the image less background and things, (3, 64, 64)."""
        contrast = RGB - RGB[background]  # (9, 3)
        left = (pixels - RGB[background]).transpose(2, 0, 1).copy()
        energy = np.square(contrast).sum(1)[:, None, None] * self.mass  # (9, 1, K)
        energy[background] = np.inf
        free, objects = self.corners, []
        while len(free):
            views = np.lib.stride_tricks.sliding_window_view(left, (TIDY_SIZE, TIDY_SIZE), (1, 2))
            windows = views[:, free[:, 1], free[:, 0]].reshape(3, len(free), -1)  # (3, P, A)
            overlap = windows @ self.flat.T  # (3, P, K)
            gain = 2 * np.tensordot(contrast, overlap, 1) - energy  # (9, P, K): squared error that it removes
            differs = np.square(windows).sum((0, 2))[:, None]
            there = (gain >= PRESENT * energy) & (gain >= EXPLAINED * differs)
            if not there.any():
                break
            # The remainder of a window counts against it: one between two things may explain more than one on a thing.
            best = np.where(there, 2 * gain - differs, -np.inf).argmax()
            color, place, mask = np.unravel_index(best, gain.shape)
            (x, y), thing = free[place].tolist(), self.world.things[mask % len(self.world.things)]
            shape = self.flat[mask].reshape(TIDY_SIZE, TIDY_SIZE)
            left[:, y : y + TIDY_SIZE, x : x + TIDY_SIZE] -= contrast[color][:, None, None] * shape
            objects.append(SceneObject(thing.index, thing.canonical, COLORS[color], x, y, TIDY_SIZE))
            free = free[np.abs(free - (x, y)).max(1) >= TIDY_SIZE]
        return objects, left


def _has_square(off: np.ndarray) -> bool:
    """Returns whether a mask (H, W) contains a square of `STRAY` x `STRAY` pixels."""
    return bool(np.lib.stride_tricks.sliding_window_view(off, (STRAY, STRAY)).all((2, 3)).any())


def faults(world: World, prompt: Prompt, seen: Detection) -> list[str]:
    """Returns the differences of an image from its prompt, in words; nothing for a right one.

    All that the prompt determines is compared: things, their number and colours, the relation of two where the prompt
    states one, and the background.
    """
    wrong = []
    if seen.background != prompt.scene.background:
        wrong.append(f"background {seen.background}, not {prompt.scene.background}")
    wanted, found = prompt.scene.kinds, Counter((item.thing, item.color) for item in seen.objects)
    for thing, color in dict.fromkeys([*wanted, *found]):
        if found[thing, color] != wanted.get((thing, color), 0):
            count = f"{found[thing, color]} of {wanted.get((thing, color), 0)}"
            wrong.append(f"{color} {world.things[thing].name}: {count}")
    if seen.stray:
        wrong.append("something else")
    if not wrong and prompt.kind.startswith("position"):
        first, second = prompt.scene.objects
        objects = {(item.thing, item.color): item for item in seen.objects}
        is_, should = (relation(a, b) for a, b in ((objects[_kind(first)], objects[_kind(second)]), (first, second)))
        if is_ != should:
            wrong.append(f"{is_ or 'no clear relation'}, not {should}")
    return wrong


def _kind(item: SceneObject) -> tuple[int, str]:
    return item.thing, item.color


def contradict(prompt: Prompt, other: Prompt) -> Prompt:
    """Returns a prompt that an image of `prompt` contradicts: the scene differs in what its task is about.

    Args:
        other: of the same kind; a thing of it replaces one of `prompt`.
    """
    scene, (*rest, last) = prompt.scene, prompt.scene.objects
    if prompt.kind == "counting":
        objects = (last,) * (len(scene.objects) + (1 if len(scene.objects) < 4 else -1))
    elif prompt.kind.startswith("position"):
        first, second = scene.objects
        objects = (replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y))
    elif prompt.kind == "color_attribution" and last.color != rest[0].color:
        objects = (replace(rest[0], color=last.color), replace(last, color=rest[0].color))
    elif prompt.kind in ("colors", "color_attribution"):
        objects = (*rest, replace(last, color=_another(last.color, scene.background)))
    else:
        shown = {item.thing for item in scene.objects}
        strange = next((item for item in other.scene.objects if item.thing not in shown), None)
        objects = (*rest, replace(last, thing=strange.thing)) if strange else tuple(rest)
    return replace(prompt, scene=Scene(scene.background, tuple(objects)))


def _another(color: str, background: str) -> str:
    """Returns the next colour of the palette that is not the background."""
    following = COLORS[COLORS.index(color) + 1 :] + COLORS
    return next(name for name in following if name not in (color, background))
