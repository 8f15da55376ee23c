"""Captions and text-to-image prompts: for a single emoji, and for scenes (counting, two objects, position, colour)."""

import random
from typing import Any

from PIL import Image

from .scenes import Scene, render
from .world import Drawing, EmojiWorld


STYLE_NAMES = {
    "noto": "noto",
    "twemoji": "twemoji",
    "fluent_flat": "fluent flat",
    "fluent_3d": "fluent 3d",
    "openmoji": "openmoji",
}
NUMBERS = ("zero", "one", "two", "three", "four")

# {a}: name with its article, {name}: without, {style}: name of the style. The first one is the canonical one.
PROMPTS = (
    "{a}, {style} style",
    "draw {a} in {style} style",
    "{style} emoji of {a}",
    "a picture of {a}, {style} style",
)
PROMPTS_WITHOUT_STYLE = ("{a}", "draw {a}", "an emoji of {a}")
SCENE_PROMPTS = ("{things} on {a_background} background{style}", "{background} background with {things}{style}")

_IRREGULAR = {
    "wolf": "wolves", "foot": "feet", "child": "children", "person": "people", "man": "men", "woman": "women",
    "goose": "geese", "mouse": "mice", "tooth": "teeth", "ox": "oxen", "leaf": "leaves", "knife": "knives",
    "fish": "fish", "deer": "deer", "bison": "bison", "moose": "moose", "selfie": "selfies",
}  # fmt: skip


def is_plural(name: str) -> bool:
    """Whether a label is a plural already ("books", "thumbs down" is not)."""
    return name.endswith("s") and not name.endswith(("ss", "us", "is"))


def with_article(name: str) -> str:
    """`a cat`, `an owl`, `books`."""
    if is_plural(name):
        return name
    return ("an " if name[0] in "aeiou" and not name.startswith(("uni", "euro")) else "a ") + name


def plural(name: str) -> str:
    """`cats`, `foxes`, `wolves`, `books`: the last word in the plural."""
    head, space, last = name.rpartition(" ")
    if is_plural(name):
        return name
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in tuple("aeiou"):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return head + space + last


def caption(drawing: Drawing) -> str:
    """The canonical text-to-image prompt of a drawing: `a cat, noto style`."""
    return PROMPTS[0].format(a=with_article(drawing.concept.name), style=STYLE_NAMES[drawing.style])


def prompt(rng: random.Random, drawing: Drawing, canonical: bool = False) -> str:
    """A text-to-image prompt; in one of five cases (never when `canonical`) it names no style."""
    if canonical:
        return caption(drawing)
    template = rng.choice(PROMPTS_WITHOUT_STYLE if rng.random() < 0.2 else PROMPTS)
    return template.format(a=with_article(drawing.concept.name), style=STYLE_NAMES[drawing.style])


def describe(scene: Scene) -> str:
    """What a scene shows: `three cats`, `a cat left of a dog`, `two cats and a dog`."""
    names = [item.drawing.concept.name for item in scene.items]
    relation = scene.relation()
    if relation and names[0] != names[1]:
        between = f"{relation} of" if relation in ("left", "right") else relation
        return f"{with_article(names[0])} {between} {with_article(names[1])}"
    counts = {name: names.count(name) for name in names}
    parts = [with_article(name) if n == 1 else f"{NUMBERS[n]} {plural(name)}" for name, n in counts.items()]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def fill_scene_prompt(template: str, things: str, background: str, style: str = "") -> str:
    """A prompt of `SCENE_PROMPTS`, filled in; `style` begins with a comma."""
    return template.format(things=things, background=background, a_background=with_article(background), style=style)


def scene_prompt(rng: random.Random, scene: Scene, canonical: bool = False) -> str:
    """A text-to-image prompt of a scene; names the style where all emoji share one (always when `canonical`)."""
    styles = {item.drawing.style for item in scene.items}
    named = len(styles) == 1 and (canonical or rng.random() < 0.8)
    style = f", {STYLE_NAMES[next(iter(styles))]} style" if named else ""
    template = SCENE_PROMPTS[0] if canonical else rng.choice(SCENE_PROMPTS)
    return fill_scene_prompt(template, describe(scene), scene.background, style)


def t2i_record(
    rng: random.Random,
    world: EmojiWorld,
    subject: Drawing | Scene,
    canonical: bool = False,
    image: Image.Image | None = None,
) -> dict[str, Any]:
    """Chat record whose answer is the picture of a drawing (kind "t2i") or of a scene (kind "t2i_scene").

    Args:
        image: another picture of the subject, RGB; rendered as it is when None.
    """
    if isinstance(subject, Scene):
        kind, text, picture = "t2i_scene", scene_prompt(rng, subject, canonical), image or render(subject, world)
    else:
        kind, text, picture = "t2i", prompt(rng, subject, canonical), image or world.image(subject)
    messages = [
        {"role": "user", "content": [{"type": "text", "text": text}]},
        {"role": "assistant", "content": [{"type": "image"}]},
    ]
    return {"messages": messages, "images": [picture], "kind": kind}
