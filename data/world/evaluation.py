"""Fixed sets to evaluate on: scenes, questions and prompts, each a function of its arguments alone.

Sample `i` of a set does not depend on how many are asked for. Wordings are the canonical ones.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .drawings import World
from .images import GRID, held_out_scenes, patch_labels, to_pixels
from .prompts import TRAIN_EMOJI_STYLES, Prompt, Prompter, emoji_prompt
from .questions import YES_NO, Asker
from .records import image_record
from .scenes import MAX_THINGS, Scene, SceneSampler, render, render_with_masks


SMALLEST_NAMED = 32  # side in pixels of a thing whose name is asked for


@dataclass(frozen=True)
class QuestionSet:
    """Questions about scenes of solid drawings."""

    kinds: tuple[str, ...]
    """Of [`Asker`]; they take turns."""
    split: str = "test"
    """Of the drawings."""
    asks: str = ""
    """What is asked, for reports."""


QUESTION_SETS = {  # figure -> questions
    "qa_name_new_style": QuestionSet(("name",), asks="name of one thing, held-out styles"),
    "qa_name_seen_style": QuestionSet(("name",), "train", "name of one thing, styles of the training set"),
    "qa_which": QuestionSet(("which",), asks="which thing has a given color"),
    "qa_color": QuestionSet(("color",), asks="color of a thing"),
    "qa_background": QuestionSet(("background",), asks="color of the background"),
    "qa_count": QuestionSet(("count", "count_kind"), asks="number of all things, and of one kind"),
    "qa_position": QuestionSet(("relation", "place"), asks="where a thing is, relative to another and in the image"),
    "qa_yes_no": QuestionSet(YES_NO, asks="yes or no: name, color, background, relation, number"),
}


def question_set(world: World, figure: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records of questions with an extra key `answer`, as many for each kind as for the others.

    Half of the answers of every yes/no kind are yes; numbers of things go round 1 to 4.

    Args:
        figure: one of `QUESTION_SETS`.
        count: number of records.

    Raises:
        ValueError: unknown figure.
    """
    if figure not in QUESTION_SETS:
        raise ValueError(f"unknown set of questions {figure!r}: choose one of {', '.join(QUESTION_SETS)}.")
    asked = QUESTION_SETS[figure]
    sampler, asker = SceneSampler(world, world.select(asked.split)), Asker(world, canonical=True)
    records = []
    for index in range(count):
        rng = random.Random(f"{seed}/{figure}/{index}")
        turn, kind = index // len(asked.kinds), asked.kinds[index % len(asked.kinds)]
        scene = _scene_for(rng, sampler, asker, kind, turn)
        question = asker.ask(rng, scene, kind, truth=turn % 2 == 0)
        record = image_record(render(world, scene), [(question.text, question.answer)], kind)
        records.append(record | {"answer": question.answer})
    return records


def _scene_for(rng: random.Random, sampler: SceneSampler, asker: Asker, kind: str, turn: int) -> Scene:
    """A scene about which a question of this kind can be asked."""
    while True:
        if kind == "name":
            scene = sampler.free(rng, 1)
        elif kind in ("relation", "yes_no_relation"):
            scene = sampler.pair(rng)
        elif kind in ("count", "count_kind"):
            scene = sampler.free(rng, 1 + turn % MAX_THINGS)
        else:
            scene = sampler.free(rng)
        if kind in asker.kinds(scene) and (kind != "name" or scene.items[0].size >= SMALLEST_NAMED):
            return scene


def prompt_set(world: World, task: str, count: int, held_out: bool = False, seed: int = 0) -> list[Prompt]:
    """Prompts of one kind of [`Prompter`] with the scenes that they determine.

    Args:
        task: one of `prompts.KINDS`.
        held_out: with pairs of thing and colour (and of thing and relation) that training holds out.
    """
    prompter = Prompter(world, canonical=True, held_out=held_out)
    return [prompter.sample(random.Random(f"{seed}/{task}/{held_out}/{index}"), task) for index in range(count)]


@dataclass(frozen=True)
class EmojiPrompt:
    """A prompt for the emoji of a thing in a named style."""

    text: str
    emoji: int
    """Index into `World.emoji_names`."""
    style: str
    """One of `EMOJI_STYLES`."""


def emoji_prompt_set(world: World, count: int) -> list[EmojiPrompt]:
    """Prompts for emoji of the styles trained on: another thing each time, each style in turn; after all of them from
    the beginning."""
    things = [thing for thing in world.things if thing.emoji is not None]
    prompts = []
    for index in range(count):
        thing = things[index % len(things)]
        style = TRAIN_EMOJI_STYLES[(index + index // len(things)) % len(TRAIN_EMOJI_STYLES)]
        text = emoji_prompt(world, random.Random(index), thing.index, style, canonical=True)
        prompts.append(EmojiPrompt(text, thing.emoji, style))
    return prompts


@dataclass(frozen=True)
class LabelledPixels:
    """Scenes and what is at every patch of them."""

    pixels: torch.Tensor
    """(I, 3, 64, 64) float32 in [-1, 1]."""
    things: torch.Tensor
    """(I, N) int64, index + 1 of the thing at every patch, 0 on the background."""
    scenes: list[Scene]

    def names(self, world: World) -> dict[str, list[str]]:
        """For each image of one thing its `thing`, `color` and `background`."""
        first = [scene.items[0] for scene in self.scenes]
        return {
            "thing": [world.things[item.thing].name for item in first],
            "color": [item.color for item in first],
            "background": [scene.background for scene in self.scenes],
        }


def labelled_pixels(world: World, split: str, count: int, single: bool = False, seed: int = 0) -> LabelledPixels:
    """Scenes of solid drawings of a split, placed freely, the same for the same arguments.

    Args:
        split: train, val or test.
        single: one thing each, 32 to 56 pixels wide, instead of one to four.
    """
    scenes = held_out_scenes(world, split, count, single, seed)
    pixels, things = torch.empty(count, 3, 64, 64), np.empty((count, GRID * GRID), dtype=np.int64)
    for index, scene in enumerate(scenes):
        image, masks = render_with_masks(world, scene)
        pixels[index], things[index] = to_pixels(image), patch_labels(scene, masks)["things"]
    return LabelledPixels(pixels, torch.from_numpy(things), scenes)
