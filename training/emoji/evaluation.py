"""Fixed question sets over held-out drawings, and the text that the mini tokenizer is trained on."""

import random
from collections.abc import Iterator
from typing import Any

from .colors import COLORS
from .prompts import (
    NUMBERS,
    PROMPTS,
    PROMPTS_WITHOUT_STYLE,
    SCENE_PROMPTS,
    STYLE_NAMES,
    fill_scene_prompt,
    plural,
    scene_prompt,
    with_article,
)
from .questions import KINDS, QUESTIONS, SCENE_KINDS, answer_of, ask, ask_scene, can_ask
from .scenes import KINDS as LAYOUTS
from .scenes import RELATIONS, sample_scene
from .world import Drawing, EmojiWorld


def evaluation_set(world: EmojiWorld, kind: str, split: str, limit: int, seed: int = 0) -> list[dict[str, Any]]:
    """The same records for the same arguments: canonical questions about drawings of one split.

    Each record has an extra key `answer`. Yes/no answers alternate, counts go round 1..4. yes_no and count keep to
    familiar concepts where the split has any; name and position always do.

    Args:
        kind: name, group, style, yes_no, color, count or position.
        split: new_pair, new_concept or new_style to measure generalisation, train to measure learning by heart.
        limit: most records wanted; name, group, style and color give each drawing at most once.

    Raises:
        ValueError: unknown kind or split, or nothing in that split can be asked.
    """
    if kind not in (*KINDS, *SCENE_KINDS):
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(dict.fromkeys((*KINDS, *SCENE_KINDS)))}")
    rng = random.Random(f"{seed}/{kind}/{split}")
    pool = world.drawings(split)
    if kind in ("name", "yes_no", "count", "position"):
        known = world.drawings(split, familiar=True)
        pool = known or (pool if kind in ("yes_no", "count") else [])
    rng.shuffle(pool)
    if kind in ("count", "position"):
        records = _scene_questions(rng, world, pool, kind, limit)
    elif kind == "yes_no":
        turns = range(limit if pool else 0)
        records = [ask(rng, world, pool[i % len(pool)], kind, canonical=True, truth=i % 2 == 0) for i in turns]
    else:
        askable = (drawing for drawing in pool if can_ask(world, drawing, kind))
        records = [
            ask(rng, world, drawing, kind, canonical=True) for drawing, _ in zip(askable, range(limit), strict=False)
        ]
    if not records:
        raise ValueError(f"no question of kind {kind!r} can be asked about split {split!r}: choose another split")
    return [{**entry, "answer": answer_of(entry)} for entry in records]


def _scene_questions(
    rng: random.Random, world: EmojiWorld, pool: list[Drawing], kind: str, limit: int
) -> list[dict[str, Any]]:
    records = []
    for i in range(limit if pool else 0):
        if kind == "position":
            scene = sample_scene(rng, world, pool, kind="pair")
        else:
            scene = sample_scene(rng, world, pool, count=1 + i % 4, kind=("mixed", "same")[i // 4 % 2])
        records.append(ask_scene(rng, world, scene, kind, canonical=True))
    return records


def corpus(world: EmojiWorld) -> Iterator[str]:
    """Every kind of text that the mini model reads or writes, for training its BPE tokenizer; finite and fixed."""
    for answers in (world.groups, STYLE_NAMES.values(), COLORS, RELATIONS, ("yes", "no")):
        yield from answers
    yield from (str(number) for number in range(1, len(NUMBERS)))
    for concept in world.concepts:
        yield concept.name
        yield ", ".join(concept.tags)
    for concept in world.familiar:
        a, name = with_article(concept.name), concept.name
        for style in STYLE_NAMES.values():
            yield from (template.format(a=a, style=style) for template in PROMPTS)
        yield from (template.format(a=a) for template in PROMPTS_WITHOUT_STYLE)
        yield from (f"{number} {plural(name)}" for number in NUMBERS[2:])
        for key in ("name", "group", "style", "color", "count", "background"):
            yield from QUESTIONS[key]
        yield from (template.format(a=a) for template in QUESTIONS["yes_no name"])
        for key in ("position", "position left right", "position above below"):
            yield from (template.format(first=name, second=name) for template in QUESTIONS[key])
    for group in world.groups:
        yield from (template.format(group=group) for template in QUESTIONS["yes_no group"])
    for color in COLORS:
        yield from (template.format(color=color) for template in QUESTIONS["yes_no color"])
        yield from (fill_scene_prompt(template, "a cat", color) for template in SCENE_PROMPTS)
    rng, drawings = random.Random(0), world.drawings("train", familiar=True)
    for layout in LAYOUTS:
        for _ in range(500):
            yield scene_prompt(rng, sample_scene(rng, world, drawings, kind=layout, same_style=True))
