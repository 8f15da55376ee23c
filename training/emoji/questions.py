"""Questions and answers about one emoji or a scene, as chat records ready for a chat template and TRL.

A record is `{"messages": [user turn with image and text, assistant turn], "images": [PIL RGB 64x64], "kind": str}`.
Answers are short lower-case strings. The first paraphrase of each question is the canonical one, used in evaluation.
"""

import random
from typing import Any

from PIL import Image

from .colors import COLORS, color_shares
from .prompts import STYLE_NAMES, with_article
from .scenes import Scene, render
from .world import Drawing, EmojiWorld


KINDS = ("name", "group", "style", "yes_no", "color")
SCENE_KINDS = ("count", "position", "color")

QUESTIONS = {
    "name": ("What is this?", "Name this emoji.", "What does the picture show?", "Which emoji is this?"),
    "group": ("Which group is this?", "What group does this emoji belong to?", "Name the group of this emoji."),
    "style": ("Which style is this?", "In what style is this drawn?", "Name the drawing style."),
    "color": ("What color is the emoji?", "Name the main color of the emoji.", "Which color has the emoji mostly?"),
    "yes_no name": ("Is this {a}?", "Does the picture show {a}?", "Can you see {a} here?"),
    "yes_no group": ("Is its group {group}?", "Does this emoji belong to {group}?", "Is this from the group {group}?"),
    "yes_no color": ("Is the emoji {color}?", "Is the emoji mainly {color}?", "Would you call the emoji {color}?"),
    "count": ("How many emoji are there?", "Count the emoji.", "How many emoji can you see?"),
    "background": ("What color is the background?", "Name the color of the background.", "Which color is behind?"),
    "position": ("Where is the {first}, relative to the {second}?", "On which side of the {second} is the {first}?"),
    "position left right": ("Is the {first} left or right of the {second}?",),
    "position above below": ("Is the {first} above or below the {second}?",),
}


def record(image: Image.Image, turns: list[tuple[str, str]], kind: str) -> dict[str, Any]:
    """Chat record of (question, answer) turns about one image, which stands before the first question."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        opening = [] if messages else [{"type": "image"}]
        messages.append({"role": "user", "content": [*opening, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return {"messages": messages, "images": [image], "kind": kind}


def can_ask(world: EmojiWorld, drawing: Drawing, kind: str) -> bool:
    """Names are asked for familiar concepts only, colours only where the pixels give a clear one."""
    if kind == "name":
        return drawing.concept.familiar
    return world.color(drawing) is not None if kind == "color" else kind in KINDS


def ask(
    rng: random.Random,
    world: EmojiWorld,
    drawing: Drawing,
    kind: str,
    image: Image.Image | None = None,
    canonical: bool = False,
    truth: bool | None = None,
) -> dict[str, Any]:
    """A question about one drawing.

    Args:
        kind: name, group, style, yes_no or color.
        image: the picture to show, RGB; the drawing on white when None.
        canonical: always the first paraphrase.
        truth: for yes_no, the answer wanted; a fair coin when None.

    Raises:
        ValueError: unknown kind, or a question that cannot be asked about this drawing (`can_ask`).
    """
    turn = _turn(rng, world, drawing, kind, canonical, truth)
    return record(image or world.image(drawing), [turn], kind)


def conversation(
    rng: random.Random, world: EmojiWorld, drawing: Drawing, image: Image.Image | None = None
) -> dict[str, Any]:
    """Three to seven questions about one image in any order, in one record of several turns (kind "conversation").

    An image costs a model far more than a question about it: many turns an image are the cheapest lessons.
    """
    kinds = [kind for kind in KINDS if can_ask(world, drawing, kind)] + ["yes_no", "yes_no"]
    chosen = rng.sample(kinds, rng.randint(3, len(kinds)))
    if rng.random() < 0.5:  # while nothing has been said that gives the answer away
        chosen.sort(key=lambda kind: kind != "yes_no")
    turns = [_turn(rng, world, drawing, kind, canonical=False) for kind in chosen]
    return record(image or world.image(drawing), turns, "conversation")


def scene_conversation(rng: random.Random, world: EmojiWorld, scene: Scene) -> dict[str, Any]:
    """Every question that a scene allows, in any order, in one record (kind "scene_conversation")."""
    kinds = ["count", "color"] + ["position"] * _has_position(scene)
    turns = [_scene_turn(rng, scene, kind, canonical=False) for kind in rng.sample(kinds, len(kinds))]
    return record(render(scene, world), turns, "scene_conversation")


def ask_scene(
    rng: random.Random, world: EmojiWorld, scene: Scene, kind: str, canonical: bool = False
) -> dict[str, Any]:
    """A question about a scene: count ("3"), position of the first of two objects ("left"), color of the background.

    Raises:
        ValueError: unknown kind, or position of a scene that is not two different familiar things clearly apart.
    """
    return record(render(scene, world), [_scene_turn(rng, scene, kind, canonical)], kind)


def answer_of(entry: dict[str, Any]) -> str:
    """The last answer of a record."""
    return entry["messages"][-1]["content"][0]["text"]


def _pick(rng: random.Random, key: str, canonical: bool) -> str:
    return QUESTIONS[key][0] if canonical else rng.choice(QUESTIONS[key])


def _turn(
    rng: random.Random, world: EmojiWorld, drawing: Drawing, kind: str, canonical: bool, truth: bool | None = None
) -> tuple[str, str]:
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r} of a question: choose one of {', '.join(KINDS)}")
    if not can_ask(world, drawing, kind):
        why = "it is not in the familiar vocabulary" if kind == "name" else "its color is not clear"
        raise ValueError(f"cannot ask the {kind} of {drawing.concept.name!r} in {drawing.style}: {why}")
    if kind == "yes_no":
        return _yes_no(rng, world, drawing, canonical, rng.random() < 0.5 if truth is None else truth)
    concept = drawing.concept
    answers = {"name": concept.name, "group": concept.group, "style": STYLE_NAMES[drawing.style]}
    answer = world.color(drawing) if kind == "color" else answers[kind]
    return _pick(rng, kind, canonical), str(answer)


def _yes_no(rng: random.Random, world: EmojiWorld, drawing: Drawing, canonical: bool, truth: bool) -> tuple[str, str]:
    """A yes/no question; the topic is drawn before the answer is looked at, so that it gives nothing away."""
    concept, color = drawing.concept, world.color(drawing)
    topics = ["name"] * 2 * concept.familiar + ["group"] + ["color"] * (color is not None)
    topic = rng.choice(topics)
    if topic == "name":
        others = [c for c in world.familiar if c != concept]
        near = [c for c in others if c.group == concept.group]  # one distractor in four is a look-alike
        subject = concept if truth else rng.choice(near if rng.random() < 0.25 else others)
        words = {"a": with_article(subject.name)}
    elif topic == "group":
        words = {"group": concept.group if truth else rng.choice([g for g in world.groups if g != concept.group])}
    else:
        shares = color_shares(world.rgba(drawing))
        words = {"color": color if truth else rng.choice([c for c in COLORS if c != color and shares[c] < 0.15])}
    return _pick(rng, f"yes_no {topic}", canonical).format(**words), "yes" if truth else "no"


def _scene_turn(rng: random.Random, scene: Scene, kind: str, canonical: bool) -> tuple[str, str]:
    if kind == "count":
        return _pick(rng, "count", canonical), str(len(scene.items))
    if kind == "color":
        return _pick(rng, "background", canonical), scene.background
    if kind == "position":
        return _position(rng, scene, canonical)
    raise ValueError(f"unknown kind {kind!r} of a question about a scene: choose one of {', '.join(SCENE_KINDS)}")


def _has_position(scene: Scene) -> bool:
    concepts = [item.drawing.concept for item in scene.items]
    return scene.relation() is not None and concepts[0] != concepts[1] and all(c.familiar for c in concepts)


def _position(rng: random.Random, scene: Scene, canonical: bool) -> tuple[str, str]:
    if not _has_position(scene):
        raise ValueError("position needs a scene of two different familiar things: sample_scene(..., kind='pair')")
    relation, concepts = scene.relation(), [item.drawing.concept for item in scene.items]
    axis = "position left right" if relation in ("left", "right") else "position above below"
    template = QUESTIONS["position"][0] if canonical else rng.choice(QUESTIONS["position"] + QUESTIONS[axis])
    return template.format(first=concepts[0].name, second=concepts[1].name), relation
