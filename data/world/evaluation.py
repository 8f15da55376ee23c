"""Fixed sets of scenes, questions and prompts to evaluate on, in their canonical wordings.

Each is a function of its arguments alone, and a larger set begins with the smaller one.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..image_files import to_pixels
from .conversations import question_row
from .icons import TRAIN_EMOJI_STYLES, World
from .images import GRID, held_out_scenes, patch_labels
from .prompts import Prompt, PromptSampler, emoji_prompt
from .questions import YES_NO, QuestionSampler
from .scenes import MAX_THINGS, Scene, SceneSampler, render, render_with_masks


_SMALLEST_NAMED = 32  # side in pixels of an object whose name is asked for


@dataclass(frozen=True)
class QuestionSet:
    """Questions about scenes of filled icons."""

    kinds: tuple[str, ...]
    """Kinds of [`QuestionSampler`], in turn."""
    split: str = "test"
    """Of the icons."""
    description: str = ""
    """Description for reports."""


QUESTION_SETS = {  # figure -> questions
    "qa_name_new_style": QuestionSet(("name",), description="name of one thing, held-out styles"),
    "qa_name_seen_style": QuestionSet(("name",), "train", "name of one thing, styles of the training set"),
    "qa_which": QuestionSet(("which",), description="which thing has a given color"),
    "qa_color": QuestionSet(("color",), description="color of a thing"),
    "qa_background": QuestionSet(("background",), description="color of the background"),
    "qa_count": QuestionSet(("count", "count_kind"), description="number of all things, and of one kind"),
    "qa_position": QuestionSet(
        ("relation", "place"), description="where a thing is, relative to another and in the image"
    ),
    "qa_yes_no": QuestionSet(YES_NO, description="yes or no: name, color, background, relation, number"),
}


def question_set(world: World, figure: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Samples rows of one question each with an extra key `answer`, the same number of each kind.

    Half of the answers of every yes/no kind are yes; the number of objects cycles through 1 to 4.

    Args:
        world: the icons.
        figure: one of `QUESTION_SETS`.
        count: number of rows.
        seed: of everything random.

    Raises:
        ValueError: unknown figure.
    """
    if figure not in QUESTION_SETS:
        raise ValueError(f"unknown set of questions {figure!r}: choose one of {', '.join(QUESTION_SETS)}.")
    chosen = QUESTION_SETS[figure]
    scenes, questions = SceneSampler(world, world.select(chosen.split)), QuestionSampler(world, canonical=True)
    rows = []
    for index in range(count):
        rng = random.Random(f"{seed}/{figure}/{index}")
        turn, kind = index // len(chosen.kinds), chosen.kinds[index % len(chosen.kinds)]
        scene = _scene_for(rng, scenes, questions, kind, turn)
        question = questions.sample(rng, scene, kind, truth=turn % 2 == 0)
        rows.append(question_row(render(world, scene), [question], kind) | {"answer": question.answer})
    return rows


def _scene_for(rng: random.Random, scenes: SceneSampler, questions: QuestionSampler, kind: str, turn: int) -> Scene:
    """Samples a scene that allows a question of this kind."""
    while True:
        if kind == "name":
            scene = scenes.free(rng, 1)
        elif kind in ("relation", "yes_no_relation"):
            scene = scenes.pair(rng)
        elif kind in ("count", "count_kind"):
            scene = scenes.free(rng, 1 + turn % MAX_THINGS)
        else:
            scene = scenes.free(rng)
        if kind in questions.kinds(scene) and (kind != "name" or scene.objects[0].size >= _SMALLEST_NAMED):
            return scene


def prompt_set(world: World, task: str, count: int, held_out: bool = False, seed: int = 0) -> list[Prompt]:
    """Samples prompts of one kind, with the scenes that they determine.

    Args:
        world: the icons.
        task: one of `prompts.KINDS`.
        count: number of prompts.
        held_out: whether their pairs are held out; see [`PromptSampler`].
        seed: of everything random.
    """
    prompts = PromptSampler(world, canonical=True, held_out=held_out)
    return [prompts.sample(random.Random(f"{seed}/{task}/{held_out}/{index}"), task) for index in range(count)]


@dataclass(frozen=True)
class EmojiPrompt:
    """A prompt for the emoji image of a thing in a named style."""

    text: str
    emoji: int
    """Index into `World.emoji_names`."""
    style: str
    """One of `EMOJI_STYLES`."""


def emoji_prompt_set(world: World, count: int) -> list[EmojiPrompt]:
    """Builds prompts for emoji images of the styles trained on, cycling through all things and styles."""
    things = [(thing.index, thing.emoji) for thing in world.things if thing.emoji is not None]
    prompts = []
    for index in range(count):
        thing, emoji = things[index % len(things)]
        style = TRAIN_EMOJI_STYLES[(index + index // len(things)) % len(TRAIN_EMOJI_STYLES)]
        text = emoji_prompt(world, random.Random(index), thing, style, canonical=True)
        prompts.append(EmojiPrompt(text, emoji, style))
    return prompts


@dataclass(frozen=True)
class LabelledPixels:
    """Scenes with the thing at every patch."""

    pixels: torch.Tensor
    """(I, 3, 64, 64) float32 in [-1, 1]."""
    things: torch.Tensor
    """(I, N) int64, index + 1 of the thing, 0 on the background."""
    scenes: list[Scene]

    def names(self, world: World) -> dict[str, list[str]]:
        """Returns `thing`, `color` and `background` of each image of one object."""
        first = [scene.objects[0] for scene in self.scenes]
        return {
            "thing": [world.things[obj.thing].name for obj in first],
            "color": [obj.color for obj in first],
            "background": [scene.background for scene in self.scenes],
        }


def labelled_pixels(world: World, split: str, count: int, single: bool = False, seed: int = 0) -> LabelledPixels:
    """Renders the scenes of [`held_out_scenes`] with the thing at every patch."""
    scenes = held_out_scenes(world, split, count, single, seed)
    pixels, things = torch.empty(count, 3, 64, 64), np.empty((count, GRID * GRID), dtype=np.int64)
    for index, scene in enumerate(scenes):
        image, masks = render_with_masks(world, scene)
        pixels[index], things[index] = to_pixels(image), patch_labels(scene, masks)["things"]
    return LabelledPixels(pixels, torch.from_numpy(things), scenes)
