"""The training mixture of the language model over the emoji world: record `i` is a function of (seed, i) alone."""

import random
from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from .prompts import t2i_record
from .questions import ask, ask_scene, can_ask, conversation, scene_conversation
from .scenes import Scene, render, sample_scene, varied
from .world import Drawing, EmojiWorld


DEFAULT_MIXTURE = {
    "name": 0.30,
    "group": 0.15,
    "style": 0.05,
    "yes_no": 0.15,
    "color": 0.10,
    "count": 0.15,
    "position": 0.05,
    "conversation": 0.05,
}
DRAWING_KINDS = ("t2i", "t2i_scene")
MIXTURE_KINDS = (*DEFAULT_MIXTURE, "scene_conversation", *DRAWING_KINDS)
_LAYOUTS = ("mixed", "same", "pair")
_AS_DRAWN = 0.3  # share of questions' pictures that are neither moved nor coloured, as evaluation shows them


class EmojiTrainingSet(Dataset):
    """Chat records drawn from the train split; nothing held out is ever shown.

    Being a function of (seed, index), the order is the same after a resume and on any number of workers.

    Args:
        world: the emoji.
        length: number of records; index any of 0 .. length - 1.
        mixture: weight of each kind: name, group, style, yes_no, color, count, position, conversation,
            scene_conversation, t2i, t2i_scene. Weights need not sum to 1.
        seed: another seed gives another sequence.
        augment: show most of the questions' pictures a little moved and scaled, half of those on a coloured background.
        augment_t2i: the same, always on white, for single pictures to draw; off by default, since exact pictures are
            learnt far sooner.
        canonical: probability of the canonical wording for a text-to-image prompt.
        block: this many records in a row all draw, or all answer: conversations are twice as long as prompts, and
            batches of one form need little padding. Read them in order, then.

    Raises:
        ValueError: unknown kind, weights that are negative or all zero, or a block below 1.
    """

    def __init__(
        self,
        world: EmojiWorld,
        length: int,
        mixture: Mapping[str, float] | None = None,
        seed: int = 0,
        augment: bool = True,
        augment_t2i: bool = False,
        canonical: float = 0.5,
        block: int = 1,
    ):
        mixture = dict(DEFAULT_MIXTURE if mixture is None else mixture)
        unknown = sorted(set(mixture) - set(MIXTURE_KINDS))
        if unknown:
            raise ValueError(f"unknown kind {unknown[0]!r} in the mixture: choose among {', '.join(MIXTURE_KINDS)}")
        if min(mixture.values(), default=0) < 0 or sum(mixture.values()) <= 0:
            raise ValueError("weights of the mixture must be 0 or more, and one of them above 0")
        if block < 1:
            raise ValueError(f"block={block} must be at least 1 record.")
        self.world, self.length, self.seed, self.block = world, length, seed, block
        self.augment, self.augment_t2i, self.canonical = augment, augment_t2i, canonical
        drawing = {kind: weight for kind, weight in mixture.items() if kind in DRAWING_KINDS}
        answering = {kind: weight for kind, weight in mixture.items() if kind not in DRAWING_KINDS}
        self.forms = [form for form in (drawing, answering) if sum(form.values())]
        self.seen = world.drawings("train")
        self.familiar = world.drawings("train", familiar=True)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index` (see `questions`), with PIL images of 64x64 pixels."""
        if not 0 <= index < self.length:
            raise IndexError(f"record {index} of a training set of {self.length}")
        rng = random.Random(f"{self.seed}/{index}")
        form = self._form(index // self.block)
        kind = rng.choices(list(form), list(form.values()))[0]
        if kind in DRAWING_KINDS:
            return self._text_to_image(rng, kind)
        if kind == "scene_conversation":
            return scene_conversation(rng, self.world, self._scene(rng, rng.choice(("count", "position"))))
        if kind in ("count", "position") or (kind == "color" and rng.random() < 0.3):
            return ask_scene(rng, self.world, self._scene(rng, kind), kind)
        return self._question(rng, kind)

    def _form(self, block: int) -> dict[str, float]:
        """Weights of the kinds that a block of records is of: those that draw, or those that answer."""
        rng = random.Random(f"{self.seed}/block {block}")
        return rng.choices(self.forms, [sum(form.values()) for form in self.forms])[0]

    def _question(self, rng: random.Random, kind: str) -> dict[str, Any]:
        drawing = self._drawing(rng, kind)
        vary = self.augment and rng.random() >= _AS_DRAWN
        image = render(varied(rng, self.world, drawing), self.world) if vary else None
        if kind == "conversation":
            return conversation(rng, self.world, drawing, image)
        return ask(rng, self.world, drawing, kind, image)

    def _drawing(self, rng: random.Random, kind: str) -> Drawing:
        # Familiar things are what names are asked of; the rest of the world widens the other questions.
        known = kind == "name" or (kind in ("yes_no", "conversation") and rng.random() < 0.7)
        while True:
            drawing = rng.choice(self.familiar if known else self.seen)
            if kind == "conversation" or can_ask(self.world, drawing, kind):
                return drawing

    def _scene(self, rng: random.Random, kind: str) -> Scene:
        if kind == "position":
            return sample_scene(rng, self.world, self.familiar, kind="pair")
        return sample_scene(rng, self.world, self.seen, kind=rng.choice(_LAYOUTS[:2]))

    def _text_to_image(self, rng: random.Random, kind: str) -> dict[str, Any]:
        canonical = rng.random() < self.canonical
        if kind == "t2i_scene":
            scene = sample_scene(rng, self.world, self.familiar, kind=rng.choice(_LAYOUTS), same_style=True, tidy=True)
            return t2i_record(rng, self.world, scene, canonical)
        drawing = rng.choice(self.familiar)
        # On white: a prompt that names no background must not be answered with a random one.
        image = render(varied(rng, self.world, drawing, colored=0), self.world) if self.augment_t2i else None
        return t2i_record(rng, self.world, drawing, canonical, image)
