"""Conversations about the world, as rows for the chat template."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from .icons import TRAIN_EMOJI_STYLES, World
from .images import check_mixture, place_emoji
from .phrases import describe
from .prompts import KINDS as PROMPT_KINDS
from .prompts import PromptSampler, emoji_prompt
from .questions import KEYWORDS, KINDS, YES_NO, Question, QuestionSampler, scene_as_text
from .scenes import Scene, SceneSampler, render


GENERATING = ("t2i", "t2i_single", "t2i_emoji")
_FORMS = (GENERATING, ("keywords", "text_keywords"), ("caption", "scene", "emoji", "text", "text_t2i"))
"""Kinds whose rows are of similar length."""
MIXTURE_KINDS = tuple(kind for form in _FORMS for kind in form)
_NUM_QUESTIONS = (9, 12)  # fewest and most about one image, repeated ones included: many answers for few image tokens
_MIN_QUESTIONS = 6  # fewest different questions of a row
_NUM_KEYWORDS = 14  # questions in keywords about one image, repeated ones included
_QUESTION_WEIGHTS = dict.fromkeys(KINDS, 1.0) | {
    "place": 3.0,
    "relation": 4.0,
    "yes_no_relation": 2.0,
    "count": 2.0,
    "count_kind": 6.0,
    "background": 0.5,
    "yes_no_background": 0.5,
}
"""Relative frequency of each kind: those that are learned last are the most frequent."""
_PROMPT_WEIGHTS = dict.fromkeys(PROMPT_KINDS, 1.0) | {"single_object": 0.6, "three": 1.5, "four": 1.5}
_SINGLE_PROMPT_WEIGHTS = {"single_object": 1.0, "colors": 1.0, "counting": 0.5}


def text_row(pairs: list[tuple[str, str]], kind: str) -> dict[str, Any]:
    """Builds the row of pairs of texts: of the user, of the assistant."""
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return {"messages": messages, "images": [], "kind": kind}


def question_row(image: np.ndarray | Image.Image, questions: list[Question], kind: str) -> dict[str, Any]:
    """Builds the row of questions about an input image, which is put before the first one."""
    row = text_row([(question.text, question.answer) for question in questions], kind)
    row["messages"][0]["content"].insert(0, {"type": "image"})
    return row | {"images": [_to_pil(image)]}


def prompt_row(prompt: str, image: np.ndarray | Image.Image, kind: str) -> dict[str, Any]:
    """Builds the row of a prompt and the image to be generated."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": prompt}]},
        {"role": "assistant", "content": [{"type": "image"}]},
    ]
    return {"messages": messages, "images": [_to_pil(image)], "kind": kind}


def keyword_row(subject: dict[str, Any], completions: list[tuple[str, str]], kind: str) -> dict[str, Any]:
    """Builds the row of questions in keywords about `subject`, a part of a message without its image."""
    messages = [{"role": "user", "content": [subject]}]
    return {"messages": messages, "images": [], "completions": completions, "kind": kind}


def _to_pil(image: np.ndarray | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def sample_scene(rng: random.Random, scenes: SceneSampler, prompts: PromptSampler) -> Scene:
    """Samples a scene to ask questions about: placed freely, or one that a prompt determines."""
    chance = rng.random()
    if chance < 0.2:
        return scenes.free(rng, 1)
    if chance < 0.45:
        return scenes.pair(rng)
    if chance < 0.85:
        return scenes.free(rng, rng.randint(2, 4), same=0.5)
    return prompts.sample(rng, rng.choice(PROMPT_KINDS)).scene


class WorldConversations(Dataset):
    """Conversations of the train split without held-out styles and pairs, each a function of the seed and its index
    alone.

    Args:
        world: the icons.
        length: number of rows.
        mixture: weight of each kind, which need not sum to 1: `caption` (a description of a scene), `scene` (several
            questions about a scene), `keywords` (the same questions in keywords, each answered at once), `emoji` (the
            name of an emoji), `t2i`, `t2i_single` and `t2i_emoji` (text to image: any prompt, one kind of thing, one
            emoji), `text` and `text_keywords` (as `scene` and `keywords`, about a scene as text) and `text_t2i` (a
            prompt answered with its scene as text).
        seed: of everything random.
        block: number of consecutive rows of one form (images to generate, questions in keywords, or other texts): such
            batches need little padding.

    Raises:
        ValueError: as [`check_mixture`], or a block below 1.
    """

    def __init__(
        self, world: World, length: int, mixture: Mapping[str, float] | None = None, seed: int = 0, block: int = 1
    ):
        mixture = check_mixture(mixture or {"scene": 0.9, "emoji": 0.1}, MIXTURE_KINDS)
        if block < 1:
            raise ValueError(f"block={block} must be at least 1 row.")
        self.world, self.length, self.seed, self.block = world, length, seed, block
        self.scenes = SceneSampler(world, world.select("train"))
        self.questions, self.prompts = QuestionSampler(world), PromptSampler(world)
        self.with_emoji = [(thing, thing.emoji) for thing in world.things if thing.emoji is not None]
        forms = [{kind: weight for kind, weight in mixture.items() if kind in form} for form in _FORMS]
        self.forms = [form for form in forms if sum(form.values())]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `messages`, `images` (PIL, 64x64 pixels) and `kind`."""
        if not 0 <= index < self.length:
            raise IndexError(f"row {index} of {self.length}")
        block_rng = random.Random(f"{self.seed}/block {index // self.block}")
        form = block_rng.choices(self.forms, [sum(form.values()) for form in self.forms])[0]
        rng = random.Random(f"{self.seed}/{index}")
        kind = rng.choices(list(form), list(form.values()))[0]
        make: Callable[[random.Random], dict[str, Any]] = getattr(self, f"_{kind}")
        return make(rng)

    def _sample_scene(self, rng: random.Random) -> Scene:
        return sample_scene(rng, self.scenes, self.prompts)

    def _sample_questions(
        self, rng: random.Random, scene: Scene, kinds: list[str], count: int, keywords: bool = False
    ) -> list[Question]:
        """Samples `count` questions and leaves out repeated ones; where fewer than `_MIN_QUESTIONS` differ, more are
        sampled, of all kinds equally often."""
        chosen = rng.choices(kinds, [_QUESTION_WEIGHTS[kind] for kind in kinds], k=count)
        questions: dict[str, Question] = {}
        while chosen or len(questions) < _MIN_QUESTIONS:
            kind = chosen.pop(0) if chosen else rng.choice(kinds)
            question = self.questions.sample(rng, scene, kind, keywords=keywords)
            questions[question.text] = question
        return list(questions.values())

    def _sample_sentences(self, rng: random.Random, scene: Scene) -> list[Question]:
        """Samples questions; in half of the rows those with yes or no are first, so that no earlier answer determines
        theirs."""
        questions = self._sample_questions(rng, scene, self.questions.kinds(scene), rng.randint(*_NUM_QUESTIONS))
        if rng.random() < 0.5:
            questions.sort(key=lambda question: question.kind not in YES_NO)
        return questions

    def _scene(self, rng: random.Random) -> dict[str, Any]:
        scene = self._sample_scene(rng)
        questions = self._sample_sentences(rng, scene)
        return question_row(render(self.world, scene), questions, "scene")

    def _sample_keywords(self, rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
        """Samples (question, answer) pairs in keywords, each a line."""
        kinds = [kind for kind in self.questions.kinds(scene) if kind in KEYWORDS]
        questions = self._sample_questions(rng, scene, kinds, _NUM_KEYWORDS, keywords=True)
        return [(f" {question.text}", f"{question.answer}\n") for question in questions]

    def _keywords(self, rng: random.Random) -> dict[str, Any]:
        scene = self._sample_scene(rng)
        row = keyword_row({"type": "image"}, self._sample_keywords(rng, scene), "keywords")
        return row | {"images": [_to_pil(render(self.world, scene))]}

    def _text_keywords(self, rng: random.Random) -> dict[str, Any]:
        scene = self._sample_scene(rng)
        subject = {"type": "text", "text": scene_as_text(self.world, scene)}
        return keyword_row(subject, self._sample_keywords(rng, scene), "text_keywords")

    def _caption(self, rng: random.Random) -> dict[str, Any]:
        scene = self._sample_scene(rng)
        question = self.questions.sample(rng, scene, "describe")
        return question_row(render(self.world, scene), [question], "caption")

    def _emoji(self, rng: random.Random) -> dict[str, Any]:
        (thing, emoji), style = rng.choice(self.with_emoji), rng.choice(TRAIN_EMOJI_STYLES)
        image = self.world.emoji_image(emoji, style)
        if rng.random() < 0.5:
            image = place_emoji(self.world, rng, emoji, style).image
        return question_row(image, [self.questions.sample_emoji(rng, thing.name)], "emoji")

    def _t2i(self, rng: random.Random) -> dict[str, Any]:
        return self._prompt_row(rng, _PROMPT_WEIGHTS, "t2i")

    def _t2i_single(self, rng: random.Random) -> dict[str, Any]:
        return self._prompt_row(rng, _SINGLE_PROMPT_WEIGHTS, "t2i_single")

    def _prompt_row(self, rng: random.Random, weights: Mapping[str, float], kind: str) -> dict[str, Any]:
        prompt = self.prompts.sample(rng, rng.choices(list(weights), list(weights.values()))[0])
        return prompt_row(prompt.text, render(self.world, prompt.scene), kind)

    def _t2i_emoji(self, rng: random.Random) -> dict[str, Any]:
        (thing, emoji), style = rng.choice(self.with_emoji), rng.choice(TRAIN_EMOJI_STYLES)
        text = emoji_prompt(self.world, rng, thing.index, style)
        return prompt_row(text, self.world.emoji_image(emoji, style), "t2i_emoji")

    def _text(self, rng: random.Random) -> dict[str, Any]:
        scene = self._sample_scene(rng)
        pairs = [(question.text, question.answer) for question in self._sample_sentences(rng, scene)]
        pairs[0] = (f"{scene_as_text(self.world, scene)}\n{pairs[0][0]}", pairs[0][1])
        return text_row(pairs, "text")

    def _text_t2i(self, rng: random.Random) -> dict[str, Any]:
        prompt = self.prompts.sample(rng, rng.choice(PROMPT_KINDS))
        return text_row([(prompt.text, scene_as_text(self.world, prompt.scene))], "text_t2i")


def corpus(world: World, scenes: int = 4000) -> list[str]:
    """Returns texts of the world to train a BPE tokenizer on, the same list for the same number of scenes."""
    rng = random.Random("corpus")
    questions, prompts = QuestionSampler(world), PromptSampler(world)
    sampler = SceneSampler(world, world.select("train"))
    texts = [emoji_prompt(world, rng, t.index, style) for t in world.things for style in TRAIN_EMOJI_STYLES]
    for _ in range(scenes):
        scene = sampler.free(rng)
        question = questions.sample(rng, scene, rng.choice(questions.kinds(scene)))
        texts += [scene_as_text(world, scene), question.text, question.answer, describe(world, scene)]
        texts.append(f" {KEYWORDS[rng.choice(list(KEYWORDS))].partition(' {')[0]}")
        texts.append(prompts.sample(rng, rng.choice(PROMPT_KINDS)).text)
    return texts
