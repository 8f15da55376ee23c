"""Pairs of answers about the emoji world, the right one and a wrong one of its kind: what the dpo stage learns from."""

import random
from typing import Any

from torch.utils.data import Dataset

from .emoji.colors import COLORS
from .emoji.prompts import NUMBERS, STYLE_NAMES
from .emoji.questions import answer_of
from .emoji.world import EmojiWorld


PREFERENCE_KINDS = ("name", "group", "style", "yes_no", "color", "count", "position")
_OPPOSITES = {"yes": "no", "left": "right", "above": "below"}
_OPPOSITES |= {other: answer for answer, other in _OPPOSITES.items()}
_LOOK_ALIKES = 0.5  # share of wrong names that are of the same group as the right one


class WithRejected(Dataset):
    """Records of single questions about the emoji world, each with `rejected`, a wrong answer.

    Being a function of (seed, index), it is the same after a resume and on any number of processes.

    Args:
        records: of the kinds in `PREFERENCE_KINDS`.
        world: that they are about.
        seed: another seed gives other wrong answers.
    """

    def __init__(self, records, world: EmojiWorld, seed: int = 0):
        self.records, self.world, self.seed = records, world, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        rng = random.Random(f"{self.seed}/{index}/rejected")
        return record | {"rejected": wrong_answer(rng, self.world, record["kind"], answer_of(record))}


def wrong_answer(rng: random.Random, world: EmojiWorld, kind: str, answer: str) -> str:
    """Another answer to a question of this kind, as likely as may be to be given by mistake.

    Raises:
        ValueError: a kind that has no single answer.
    """
    if kind not in PREFERENCE_KINDS:
        raise ValueError(f"no wrong answer is known for the kind {kind!r}: choose of {', '.join(PREFERENCE_KINDS)}.")
    if answer in _OPPOSITES:
        return _OPPOSITES[answer]
    if kind == "name":
        [group] = {concept.group for concept in world.familiar if concept.name == answer}
        near = [concept.name for concept in world.familiar if concept.group == group and concept.name != answer]
        if near and rng.random() < _LOOK_ALIKES:
            return rng.choice(near)
    answers = {
        "name": [concept.name for concept in world.familiar],
        "group": world.groups,
        "style": STYLE_NAMES.values(),
        "color": COLORS,
        "count": [str(number) for number in range(1, len(NUMBERS))],
    }
    return rng.choice([other for other in answers[kind] if other != answer])
