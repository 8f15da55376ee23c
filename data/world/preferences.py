"""Questions about scenes with a right answer and a wrong one, a likely mistake: for learning from preferences."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from .drawings import World
from .palette import COLORS
from .phrases import describe
from .questions import KINDS, Asker, Question
from .records import WorldRecords, image_record
from .scenes import Scene, new_pairs, relation, render
from .splits import RELATIONS, is_new_color_pair


_NEAR = 0.5  # share of wrong things and colours that occur elsewhere in the scene, where there are such
_OPPOSITES = {"top": "bottom", "left": "right"} | {"bottom": "top", "right": "left"}


class WorldPreferences(Dataset):
    """Records of one question each, with `rejected`, a wrong answer: record `i` is a function of (seed, i) alone.

    Args:
        world: the drawings.
        length: number of records.
        mixture: weight of each kind of question; all kinds alike when None.
        seed: another seed gives another sequence.

    Raises:
        ValueError: unknown kind, or weights that are negative or all zero.
    """

    def __init__(self, world: World, length: int, mixture: Mapping[str, float] | None = None, seed: int = 0):
        mixture = dict(mixture or dict.fromkeys(KINDS, 1.0))
        unknown = sorted(set(mixture) - set(KINDS))
        if unknown:
            raise ValueError(f"unknown kind {unknown[0]!r} in the mixture: choose among {', '.join(KINDS)}.")
        if min(mixture.values()) < 0 or sum(mixture.values()) <= 0:
            raise ValueError("weights of the mixture must be 0 or more, and one of them above 0.")
        self.world, self.length, self.seed = world, length, seed
        self.kinds, self.weights = list(mixture), list(mixture.values())
        self.records, self.asker = WorldRecords(world, 1), Asker(world)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`messages` of one question and its right answer, `images` (PIL, 64x64), `kind` and `rejected`."""
        if not 0 <= index < self.length:
            raise IndexError(f"record {index} of {self.length}")
        rng = random.Random(f"{self.seed}/{index}")
        kind = rng.choices(self.kinds, self.weights)[0]
        scene = self.records.sample_scene(rng)
        while kind not in self.asker.kinds(scene):
            scene = self.records.sample_scene(rng)
        question = self.asker.ask(rng, scene, kind)
        record = image_record(render(self.world, scene), [(question.text, question.answer)], kind)
        return record | {"rejected": wrong_answer(rng, self.world, scene, question)}


def wrong_answer(rng: random.Random, world: World, scene: Scene, question: Question) -> str:
    """A wrong answer to a question about a scene, as likely as may be to be given by mistake."""
    kind, answer = question.kind, question.answer
    if kind.startswith("yes_no"):
        return "no" if answer == "yes" else "yes"
    if kind == "describe":
        return _wrong_description(rng, world, scene)
    if kind in ("count", "count_kind"):
        numbers = range(1 if kind == "count" else 0, 5)
        return str(rng.choice([n for n in numbers if abs(n - int(answer)) == 1]))
    if kind == "place":
        return _wrong_place(rng, answer)
    if kind == "relation":
        return rng.choice([name for name in RELATIONS if name != answer])
    if kind == "background":
        return _other(rng, answer, COLORS, [item.color for item in scene.items])
    names = [thing.name for thing in world.things]
    if kind == "color":
        thing = next(thing for thing, name in enumerate(names) if question.text.endswith(f" {name}?"))
        colors = [color for color in COLORS if not is_new_color_pair(thing, color)]
        return _other(rng, answer, colors, [*(item.color for item in scene.items), scene.background])
    if kind == "which":
        color = next(item.color for item in scene.items if names[item.thing] == answer)
        names = [name for thing, name in enumerate(names) if not is_new_color_pair(thing, color)]
    return _other(rng, answer, names, [world.things[item.thing].name for item in scene.items])


def _other(rng: random.Random, answer: str, answers: list[str] | tuple[str, ...], shown: list[str]) -> str:
    """Another answer, in `_NEAR` of the cases one that is true of something else in the scene."""
    near = [other for other in shown if other != answer and other in answers]
    if near and rng.random() < _NEAR:
        return rng.choice(near)
    return rng.choice([other for other in answers if other != answer])


def _wrong_place(rng: random.Random, answer: str) -> str:
    """Another part of the canvas: `top right` for `top left`."""
    if answer == "center":
        return rng.choice(("top", "bottom", "left", "right"))
    words = answer.split()
    if len(words) == 1:
        return rng.choice((_OPPOSITES[words[0]], "center"))
    changed = rng.randrange(2)
    words[changed] = _OPPOSITES[words[changed]]
    return " ".join(words)


def _wrong_description(rng: random.Random, world: World, scene: Scene) -> str:
    """The description of a scene that differs in a thing, a colour, the number of things, a place or the background."""
    true = describe(world, scene)
    while True:
        altered = _altered(rng, world, scene)
        wrong = describe(world, altered)
        if wrong != true and not new_pairs(altered):  # pairs that are held out are not even learnt to be wrong
            return wrong


def _altered(rng: random.Random, world: World, scene: Scene) -> Scene:
    items, place = list(scene.items), rng.randrange(len(scene.items))
    item, change = items[place], rng.choice(("thing", "color", "number", "place", "background"))
    if change == "background":
        return replace(scene, background=rng.choice([color for color in COLORS if color != scene.background]))
    if change == "number" and len(items) > 1:
        return replace(scene, items=tuple(items[:place] + items[place + 1 :]))
    if change == "place" and len(items) == 2 and relation(*items):
        first, second = items
        swapped = replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)
        return replace(scene, items=swapped)
    if change == "color":
        items[place] = replace(item, color=rng.choice([color for color in COLORS if color != item.color]))
    else:
        items[place] = replace(item, thing=rng.choice([t for t in range(len(world.things)) if t != item.thing]))
    return replace(scene, items=tuple(items))
