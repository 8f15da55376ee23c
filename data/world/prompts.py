"""Text-to-image prompts and the scenes that they determine: canonical icons in fixed places.

The first six kinds are the tasks of GenEval. A prompt without a background means a white one.
"""

import random
from dataclasses import dataclass

from .icons import EMOJI_STYLES, World
from .palette import COLORS
from .phrases import BETWEEN, join_words, with_article, with_count
from .scenes import RELATIONS, Scene, is_held_out_color, is_held_out_placement, sample_background, tidy_scene


TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attribution")
KINDS = (*TASKS, "position_background", "three", "four")
WORDINGS = ("{things}", "draw {things}", "a picture of {things}")
BACKGROUND_WORDINGS = ("{things} on {a_background} background", "{a_background} background with {things}")
EMOJI_WORDINGS = ("{a}, {style} style", "draw {a} in {style} style", "{style} emoji of {a}")


@dataclass(frozen=True)
class Prompt:
    """A prompt and the scene that it determines."""

    kind: str
    text: str
    scene: Scene


class PromptSampler:
    """Sampler of prompts.

    Args:
        world: with the names of things.
        canonical: whether all prompts have the first wording.
        held_out: whether all things have held-out colours and all named relations are held out; otherwise none is.
    """

    def __init__(self, world: World, canonical: bool = False, held_out: bool = False):
        self.world, self.canonical, self.held_out = world, canonical, held_out

    def sample(self, rng: random.Random, kind: str) -> Prompt:
        """Samples a prompt of one of `KINDS`.

        Raises:
            ValueError: unknown kind.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r} of a prompt: choose among {', '.join(KINDS)}.")
        on_white = kind in ("single_object", "two_object", "counting", "position")
        if kind in ("position", "position_background"):
            subjects, seen = self._pair(rng, on_white)
            names = [with_article(f"{color} {self.world.things[thing].name}") for thing, color in subjects]
            things = f"{names[0]} {BETWEEN[seen]} {names[1]}"
            placed = subjects if seen in ("left", "above") else subjects[::-1]
            return self._finish(rng, kind, things, placed, on_white, upright=seen in ("above", "below"))
        subjects, count = self._subjects(rng, kind, on_white)
        grouped = {subject: subjects.count(subject) * count for subject in subjects}
        words = [with_count(n, color, self.world.things[thing].name) for (thing, color), n in grouped.items()]
        return self._finish(rng, kind, join_words(words), subjects * count, on_white)

    def _subjects(self, rng: random.Random, kind: str, on_white: bool) -> tuple[list[tuple[int, str]], int]:
        """Samples (thing, colour) and their number, the same for all, for a kind without a relation."""
        number = {"two_object": 2, "color_attribution": 2, "three": 3, "four": 4}.get(kind, 1)
        while True:
            subjects = [self._subject(rng, thing, on_white) for thing in self._things(rng, number)]
            # Two things are side by side: a relation that is seen, though not named.
            if number != 2 or self.held_out or not is_held_out_placement(subjects[0][0], subjects[1][0], "left"):
                break
        if kind in ("three", "four") and not self.held_out and rng.random() < 0.3:
            subjects[-1] = subjects[-2]
        return subjects, rng.randint(2, 4) if kind == "counting" else 1

    def _finish(
        self, rng: random.Random, kind: str, things: str, subjects: list, on_white: bool, upright: bool = False
    ) -> Prompt:
        background = "white" if on_white else sample_background(rng, [color for _, color in subjects])
        wording = BACKGROUND_WORDINGS[0] if self.canonical else rng.choice(BACKGROUND_WORDINGS)
        if not on_white:
            things = wording.format(things=things, a_background=with_article(background))
        wording = WORDINGS[0] if self.canonical else rng.choice(WORDINGS)
        scene = tidy_scene(self.world, subjects, background, upright)
        return Prompt(kind, wording.format(things=things), scene)

    def _things(self, rng: random.Random, number: int) -> list[int]:
        return rng.sample(range(len(self.world.things)), number)

    def _subject(self, rng: random.Random, thing: int, on_white: bool) -> tuple[int, str]:
        """Samples a colour for a thing; for another thing where only white is left and the background is white."""
        while True:
            colors = [
                c for c in COLORS if is_held_out_color(thing, c) == self.held_out and not (on_white and c == "white")
            ]
            if colors:
                return thing, rng.choice(colors)
            thing = rng.randrange(len(self.world.things))

    def _pair(self, rng: random.Random, on_white: bool) -> tuple[list[tuple[int, str]], str]:
        while True:
            subjects = [self._subject(rng, thing, on_white) for thing in self._things(rng, 2)]
            seen = rng.choice(RELATIONS)
            first, second = (thing for thing, _ in subjects)
            if first != second and is_held_out_placement(first, second, seen) == self.held_out:
                return subjects, seen


def emoji_prompt(world: World, rng: random.Random, thing: int, style: str, canonical: bool = False) -> str:
    """Samples a prompt for the emoji image of a thing: `a heart, noto style`."""
    wording = EMOJI_WORDINGS[0] if canonical else rng.choice(EMOJI_WORDINGS)
    return wording.format(a=with_article(world.things[thing].name), style=EMOJI_STYLES[style])
