"""Preferences about the world: questions about scenes with a right answer and a wrong one that is a likely mistake."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from .conversations import question_row, sample_scene
from .icons import World
from .images import check_mixture
from .palette import COLORS
from .phrases import describe
from .prompts import PromptSampler
from .questions import KINDS, Question, QuestionSampler
from .scenes import RELATIONS, Scene, SceneSampler, has_held_out_pair, is_held_out_color, relation, render


_NEAR = 0.5  # share of wrong answers that are correct for another object of the scene, where there is one
_OPPOSITES = {"top": "bottom", "left": "right"} | {"bottom": "top", "right": "left"}


class WorldPreferences(Dataset):
    """Rows of one question each, with `rejected`, a wrong answer; each a function of the seed and its index alone.

    Args:
        world: the icons.
        length: number of rows.
        mixture: weight of each kind of question; equal weights when None.
        seed: of everything random.

    Raises:
        ValueError: as [`check_mixture`].
    """

    def __init__(self, world: World, length: int, mixture: Mapping[str, float] | None = None, seed: int = 0):
        mixture = check_mixture(mixture or dict.fromkeys(KINDS, 1.0), KINDS)
        self.world, self.length, self.seed = world, length, seed
        self.kinds, self.weights = list(mixture), list(mixture.values())
        self.scenes = SceneSampler(world, world.select("train"))
        self.questions, self.prompts = QuestionSampler(world), PromptSampler(world)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `messages` of one question and its right answer, `images` (PIL, 64x64 pixels), `kind`, `rejected`."""
        if not 0 <= index < self.length:
            raise IndexError(f"row {index} of {self.length}")
        rng = random.Random(f"{self.seed}/{index}")
        kind = rng.choices(self.kinds, self.weights)[0]
        scene = sample_scene(rng, self.scenes, self.prompts)
        while kind not in self.questions.kinds(scene):
            scene = sample_scene(rng, self.scenes, self.prompts)
        question = self.questions.sample(rng, scene, kind)
        row = question_row(render(self.world, scene), [question], kind)
        return row | {"rejected": wrong_answer(rng, self.world, scene, question)}


def wrong_answer(rng: random.Random, world: World, scene: Scene, question: Question) -> str:
    """Samples a wrong answer to a question about a scene, if possible one that is a likely mistake."""
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
        return _other(rng, answer, COLORS, [obj.color for obj in scene.objects])
    names = [thing.name for thing in world.things]
    if kind == "color":
        thing = next(thing for thing, name in enumerate(names) if question.text.endswith(f" {name}?"))
        colors = [color for color in COLORS if not is_held_out_color(thing, color)]
        return _other(rng, answer, colors, [*(obj.color for obj in scene.objects), scene.background])
    if kind == "which":
        color = next(obj.color for obj in scene.objects if names[obj.thing] == answer)
        names = [name for thing, name in enumerate(names) if not is_held_out_color(thing, color)]
    return _other(rng, answer, names, [world.things[obj.thing].name for obj in scene.objects])


def _other(rng: random.Random, answer: str, answers: list[str] | tuple[str, ...], shown: list[str]) -> str:
    """Samples another answer, in `_NEAR` of the cases one that is correct for another object of the scene."""
    near = [other for other in shown if other != answer and other in answers]
    if near and rng.random() < _NEAR:
        return rng.choice(near)
    return rng.choice([other for other in answers if other != answer])


def _wrong_place(rng: random.Random, answer: str) -> str:
    """Samples a neighbouring part of the canvas: `top right` for `top left`."""
    if answer == "center":
        return rng.choice(("top", "bottom", "left", "right"))
    words = answer.split()
    if len(words) == 1:
        return rng.choice((_OPPOSITES[words[0]], "center"))
    changed = rng.randrange(2)
    words[changed] = _OPPOSITES[words[changed]]
    return " ".join(words)


def _wrong_description(rng: random.Random, world: World, scene: Scene) -> str:
    """Describes the scene with another thing, colour, number of objects, place or background."""
    right = describe(world, scene)
    while True:
        altered = _altered(rng, world, scene)
        wrong = describe(world, altered)
        if wrong != right and not has_held_out_pair(altered):  # held-out pairs do not occur as wrong ones either
            return wrong


def _altered(rng: random.Random, world: World, scene: Scene) -> Scene:
    objects, place = list(scene.objects), rng.randrange(len(scene.objects))
    obj, change = objects[place], rng.choice(("thing", "color", "number", "place", "background"))
    if change == "background":
        return replace(scene, background=rng.choice([color for color in COLORS if color != scene.background]))
    if change == "number" and len(objects) > 1:
        return replace(scene, objects=tuple(objects[:place] + objects[place + 1 :]))
    if change == "place" and len(objects) == 2 and relation(*objects):
        first, second = objects
        swapped = replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)
        return replace(scene, objects=swapped)
    if change == "color":
        objects[place] = replace(obj, color=rng.choice([color for color in COLORS if color != obj.color]))
    else:
        objects[place] = replace(obj, thing=rng.choice([t for t in range(len(world.things)) if t != obj.thing]))
    return replace(scene, objects=tuple(objects))
