"""Conversations about the world, as records for a chat template: record `i` is a function of (seed, i) alone."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from .drawings import World
from .images import place_emoji
from .phrases import describe
from .prompts import KINDS as PROMPT_KINDS
from .prompts import TRAIN_EMOJI_STYLES, Prompter, emoji_prompt
from .questions import YES_NO, Asker, Question, scene_in_words
from .scenes import Scene, SceneSampler, render


GENERATING = ("t2i", "t2i_emoji")
MIXTURE_KINDS = ("caption", "scene", "emoji", *GENERATING, "text", "text_t2i")
_TURNS = (3, 7)  # fewest and most questions about one image
_PROMPT_WEIGHTS = dict.fromkeys(PROMPT_KINDS, 1.0) | {"single_object": 0.6, "three": 1.5, "four": 1.5}


def image_record(image: np.ndarray | Image.Image, turns: list[tuple[str, str]], kind: str) -> dict[str, Any]:
    """Record of (question, answer) turns about an input image, which stands before the first question."""
    messages = turn_messages(turns)
    messages[0]["content"].insert(0, {"type": "image"})
    return {"messages": messages, "images": [_to_pil(image)], "kind": kind}


def turn_messages(turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Messages of (user, assistant) turns of text."""
    return [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def generation_record(prompt: str, image: np.ndarray | Image.Image, kind: str) -> dict[str, Any]:
    """Record of a prompt whose answer is an image."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": prompt}]},
        {"role": "assistant", "content": [{"type": "image"}]},
    ]
    return {"messages": messages, "images": [_to_pil(image)], "kind": kind}


def _to_pil(image: np.ndarray | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


class WorldRecords(Dataset):
    """Conversations of the train split; no held-out style or pair occurs.

    Args:
        world: the drawings.
        length: number of records; index any of 0 .. length - 1.
        mixture: weight of each kind, which need not sum to 1: `caption` (a description of a scene), `scene` (several
            questions about a scene), `emoji` (the name of an emoji), `t2i` and `t2i_emoji` (text to image), `text` (the
            questions of `scene` about a scene in words) and `text_t2i` (a prompt answered with its scene in words).
        seed: another seed gives another sequence.
        block: so many records in a row all generate images, or none does: batches of one form need little padding.

    Raises:
        ValueError: unknown kind, weights that are negative or all zero, or a block below 1.
    """

    def __init__(
        self, world: World, length: int, mixture: Mapping[str, float] | None = None, seed: int = 0, block: int = 1
    ):
        mixture = dict(mixture or {"scene": 0.9, "emoji": 0.1})
        unknown = sorted(set(mixture) - set(MIXTURE_KINDS))
        if unknown:
            raise ValueError(f"unknown kind {unknown[0]!r} in the mixture: choose among {', '.join(MIXTURE_KINDS)}.")
        if min(mixture.values()) < 0 or sum(mixture.values()) <= 0:
            raise ValueError("weights of the mixture must be 0 or more, and one of them above 0.")
        if block < 1:
            raise ValueError(f"block={block} must be at least 1 record.")
        self.world, self.length, self.seed, self.block = world, length, seed, block
        self.sampler = SceneSampler(world, world.select("train"))
        self.asker, self.prompter = Asker(world), Prompter(world)
        self.with_emoji = [thing for thing in world.things if thing.emoji is not None]
        generating = {kind: weight for kind, weight in mixture.items() if kind in GENERATING}
        answering = {kind: weight for kind, weight in mixture.items() if kind not in GENERATING}
        self.forms = [form for form in (generating, answering) if sum(form.values())]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`messages`, `images` (PIL, 64x64) and `kind` of record `index`."""
        if not 0 <= index < self.length:
            raise IndexError(f"record {index} of {self.length}")
        turn = random.Random(f"{self.seed}/block {index // self.block}")
        form = turn.choices(self.forms, [sum(form.values()) for form in self.forms])[0]
        rng = random.Random(f"{self.seed}/{index}")
        kind = rng.choices(list(form), list(form.values()))[0]
        make: Callable[[random.Random], dict[str, Any]] = getattr(self, f"_{kind}")
        return make(rng)

    def sample_scene(self, rng: random.Random) -> Scene:
        """A scene that questions are asked about: placed freely, or one that a prompt determines."""
        chance = rng.random()
        if chance < 0.3:
            return self.sampler.free(rng, 1)
        if chance < 0.5:
            return self.sampler.pair(rng)
        if chance < 0.85:
            return self.sampler.free(rng, rng.randint(2, 4))
        return self.prompter.sample(rng, rng.choice(PROMPT_KINDS)).scene

    def _questions(self, rng: random.Random, scene: Scene) -> list[Question]:
        """Several questions; those with yes or no first in half of the records, when no answer gives them away."""
        kinds = self.asker.kinds(scene)
        chosen = rng.sample(kinds, min(len(kinds), rng.randint(*_TURNS)))
        if rng.random() < 0.5:
            chosen.sort(key=lambda kind: kind not in YES_NO)
        return [self.asker.ask(rng, scene, kind) for kind in chosen]

    def _scene(self, rng: random.Random) -> dict[str, Any]:
        scene = self.sample_scene(rng)
        turns = [(question.text, question.answer) for question in self._questions(rng, scene)]
        return image_record(render(self.world, scene), turns, "scene")

    def _caption(self, rng: random.Random) -> dict[str, Any]:
        scene = self.sample_scene(rng)
        question = self.asker.ask(rng, scene, "describe")
        return image_record(render(self.world, scene), [(question.text, question.answer)], "caption")

    def _emoji(self, rng: random.Random) -> dict[str, Any]:
        thing, style = rng.choice(self.with_emoji), rng.choice(TRAIN_EMOJI_STYLES)
        image = self.world.emoji_image(thing.emoji, style)
        if rng.random() < 0.5:
            image = place_emoji(self.world, rng, thing.emoji, style)[0]
        question = self.asker.emoji(rng, thing.name)
        return image_record(image, [(question.text, question.answer)], "emoji")

    def _t2i(self, rng: random.Random) -> dict[str, Any]:
        prompt = self.prompter.sample(rng, rng.choices(list(_PROMPT_WEIGHTS), list(_PROMPT_WEIGHTS.values()))[0])
        return generation_record(prompt.text, render(self.world, prompt.scene), "t2i")

    def _t2i_emoji(self, rng: random.Random) -> dict[str, Any]:
        thing, style = rng.choice(self.with_emoji), rng.choice(TRAIN_EMOJI_STYLES)
        text = emoji_prompt(self.world, rng, thing.index, style)
        return generation_record(text, self.world.emoji_image(thing.emoji, style), "t2i_emoji")

    def _text(self, rng: random.Random) -> dict[str, Any]:
        scene = self.sample_scene(rng)
        turns = [(question.text, question.answer) for question in self._questions(rng, scene)]
        turns[0] = (f"{scene_in_words(self.world, scene)}\n{turns[0][0]}", turns[0][1])
        return {"messages": turn_messages(turns), "images": [], "kind": "text"}

    def _text_t2i(self, rng: random.Random) -> dict[str, Any]:
        prompt = self.prompter.sample(rng, rng.choice(PROMPT_KINDS))
        text, answer = prompt.text, scene_in_words(self.world, prompt.scene)
        return {"messages": turn_messages([(text, answer)]), "images": [], "kind": "text_t2i"}


def corpus(world: World, records: int = 4000) -> list[str]:
    """Texts of the world for training a BPE tokenizer: the same list for the same arguments."""
    rng = random.Random("corpus")
    asker, prompter = Asker(world), Prompter(world)
    sampler = SceneSampler(world, world.select("train"))
    texts = [emoji_prompt(world, rng, t.index, style) for t in world.things for style in TRAIN_EMOJI_STYLES]
    for _ in range(records):
        scene = sampler.free(rng)
        question = asker.ask(rng, scene, rng.choice(asker.kinds(scene)))
        texts += [scene_in_words(world, scene), question.text, question.answer, describe(world, scene)]
        texts.append(prompter.sample(rng, rng.choice(PROMPT_KINDS)).text)
    return texts
