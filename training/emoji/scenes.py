"""Scenes: one to four emoji at random places and sizes on a canvas of a named colour.

They give counting, position, colour and two-object tasks, as GenEval has them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from .colors import COLORS, PALETTE, color_shares
from .world import Drawing, EmojiWorld


CANVAS = 64
RELATIONS = ("left", "right", "above", "below")
KINDS = ("mixed", "same", "pair")
_SLOTS = {  # upper left corners in a tidy scene, by number of emoji; sides are 32, multiples of a position's 8
    1: ((16, 16),),
    2: ((0, 16), (32, 16)),
    3: ((16, 0), (0, 32), (32, 32)),
    4: ((0, 0), (32, 0), (0, 32), (32, 32)),
}
_SIZES = {1: (32, 52), 2: (20, 32), 3: (18, 28), 4: (16, 26)}  # smallest and largest side, by number of emoji


@dataclass(frozen=True)
class Item:
    """A drawing in the square with upper left corner (x, y) and side `size`, in pixels of the canvas."""

    drawing: Drawing
    x: int
    y: int
    size: int

    def overlaps(self, other: "Item") -> bool:
        """Whether the two squares share a pixel."""
        return (
            self.x < other.x + other.size
            and other.x < self.x + self.size
            and self.y < other.y + other.size
            and other.y < self.y + self.size
        )


@dataclass(frozen=True)
class Scene:
    """Emoji on a canvas of 64x64 pixels; `background` is a name of `colors.PALETTE`."""

    background: str
    items: tuple[Item, ...]

    def relation(self) -> str | None:
        """Where the first of two items is, seen from the second: left, right, above, below; None when not clear."""
        if len(self.items) != 2:
            return None
        first, second = self.items
        dx = (first.x + first.size / 2) - (second.x + second.size / 2)
        dy = (first.y + first.size / 2) - (second.y + second.size / 2)
        if max(abs(dx), abs(dy)) < 1.5 * min(abs(dx), abs(dy)):
            return None
        return ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")


def background_for(rng: random.Random, world: EmojiWorld, drawings: Sequence[Drawing]) -> str:
    """A colour that none of the drawings has much of, so that none of them vanishes in it."""
    crowded = {c for d in drawings for c, share in color_shares(world.rgba(d)).items() if share > 0.25}
    return rng.choice([c for c in COLORS if c not in crowded] or ["white"])


def sample_scene(
    rng: random.Random,
    world: EmojiWorld,
    drawings: Sequence[Drawing],
    count: int | None = None,
    kind: str = "mixed",
    same_style: bool = False,
    tidy: bool = False,
) -> Scene:
    """A random scene of the given drawings.

    Args:
        drawings: what may occur, e.g. `world.drawings("train")`.
        count: number of emoji, 1 to 4; random when None; always 2 for kind "pair".
        kind: "mixed" (each drawing chosen freely), "same" (one drawing `count` times) or "pair" (two different
            concepts, one clearly left of, right of, above or below the other).
        same_style: all emoji in one style, so that a prompt can name it.
        tidy: the same size in the same places always, as far as the prompt tells; a picture to be drawn from its prompt
            should hold nothing that the prompt cannot tell.

    Raises:
        ValueError: unknown kind, a count outside 1..4, or too few drawings.
    """
    count = 2 if kind == "pair" else rng.randint(1, 4) if count is None else count
    if kind not in KINDS or count not in _SIZES:
        raise ValueError(f"kind {kind!r} with count {count}: kind is one of {', '.join(KINDS)}, count 1 to 4")
    if not drawings:
        raise ValueError("no drawings to make a scene of: pass e.g. world.drawings('train')")
    chosen = _choose(rng, drawings, count, kind, same_style)
    background = background_for(rng, world, chosen)
    if tidy:
        return Scene(background, _place_tidily(rng, chosen))
    place = _place_pair if kind == "pair" else _place_freely
    return Scene(background, place(rng, chosen))


def render(scene: Scene, world: EmojiWorld) -> Image.Image:
    """RGB picture 64x64 of a scene."""
    canvas = Image.new("RGBA", (CANVAS, CANVAS), (*PALETTE[scene.background], 255))
    for item in scene.items:
        icon = Image.fromarray(world.rgba(item.drawing))
        if item.size != icon.width:
            icon = icon.convert("RGBa").resize((item.size, item.size), Image.Resampling.LANCZOS).convert("RGBA")
        canvas.alpha_composite(icon, (item.x, item.y))
    return canvas.convert("RGB")


def varied(rng: random.Random, world: EmojiWorld, drawing: Drawing, colored: float = 0.5) -> Scene:
    """One drawing nearly as large as the canvas, a little moved and scaled; not on white with probability `colored`."""
    size = rng.randint(46, CANVAS)
    background = background_for(rng, world, [drawing]) if rng.random() < colored else "white"
    return Scene(background, (Item(drawing, rng.randint(0, CANVAS - size), rng.randint(0, CANVAS - size), size),))


def _choose(rng: random.Random, drawings: Sequence[Drawing], count: int, kind: str, same_style: bool) -> list[Drawing]:
    first = rng.choice(drawings)
    if kind == "same":
        return [first] * count
    chosen = [first]
    for _ in range(200):
        if len(chosen) == count:
            return chosen
        drawing = rng.choice(drawings)
        if (same_style and drawing.style != first.style) or (kind == "pair" and drawing.concept == first.concept):
            continue
        chosen.append(drawing)
    raise ValueError(f"the drawings given do not hold {count} that go together: pass more of them")


def _place_tidily(rng: random.Random, drawings: list[Drawing]) -> tuple[Item, ...]:
    slots = list(_SLOTS[len(drawings)])
    if len(drawings) == 2 and drawings[0] != drawings[1]:  # the prompt says which is where
        slots = rng.choice((slots, [(y, x) for x, y in slots]))  # side by side, or one above the other
        slots = rng.choice((slots, slots[::-1]))
    return tuple(Item(d, x, y, CANVAS // 2) for d, (x, y) in zip(drawings, slots, strict=True))


def _place_pair(rng: random.Random, drawings: list[Drawing]) -> tuple[Item, ...]:
    half = CANVAS // 2
    sizes = [rng.randint(*_SIZES[2]) for _ in drawings]
    relation = rng.choice(RELATIONS)
    along = [rng.randint(0, half - sizes[0]), rng.randint(half, CANVAS - sizes[1])]
    if relation in ("right", "below"):
        along = [rng.randint(half, CANVAS - sizes[0]), rng.randint(0, half - sizes[1])]
    distance = abs((along[0] + sizes[0] / 2) - (along[1] + sizes[1] / 2))
    while True:
        across = [rng.randint(0, CANVAS - size) for size in sizes]
        if abs((across[0] + sizes[0] / 2) - (across[1] + sizes[1] / 2)) <= distance / 2:
            break
    flat = relation in ("left", "right")
    corners = zip(along, across, strict=True) if flat else zip(across, along, strict=True)
    return tuple(Item(d, x, y, size) for d, (x, y), size in zip(drawings, corners, sizes, strict=True))


def _place_freely(rng: random.Random, drawings: list[Drawing]) -> tuple[Item, ...]:
    while True:
        items: list[Item] = []
        for drawing in drawings:
            for _ in range(30):
                size = rng.randint(*_SIZES[len(drawings)])
                item = Item(drawing, rng.randint(0, CANVAS - size), rng.randint(0, CANVAS - size), size)
                if not any(item.overlaps(other) for other in items):
                    items.append(item)
                    break
        if len(items) == len(drawings):  # else the first ones left no room: begin again
            return tuple(items)
