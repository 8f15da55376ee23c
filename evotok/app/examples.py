"""Examples of prompts, questions and images, and what the model that they are for knows.

The page, the help of the commands and the documents take their examples from here, and a test generates an image from
each prompt and judges it: what a visitor tries first must be something that the model does well.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    from PIL import Image

EMOJI_PROMPTS = (
    "a frog, noto style",
    "a pizza, twemoji style",
    "a rocket, fluent flat style",
    "a robot, noto style",
    "a sparkling heart, fluent flat style",
    "two frogs on a blue background, noto style",
)
EMOJI_QUESTIONS = ("What is this?", "Which group is this?", "What color is the emoji?", "Which style is this?")
EMOJI_PICTURES = (("frog", "noto"), ("pizza", "twemoji"), ("rocket", "fluent_flat"), ("robot", "noto"))
PROMPTS = ("a red bicycle leaning on a white wall", "two cats on a sofa", "a bowl of ramen, top view")
QUESTIONS = ("What is in this image?", "Describe the image in one sentence.", "How many people are there?")

UNKNOWN_SHARE = 1 / 3
"""A question with more than this share of words that the model has not learned is outside its scope."""
PLAIN_SHARE = 0.6
"""Share of the pixels at the border of a plain background that have one colour."""
PLAIN_TOLERANCE = 24
"""How far a channel of such a pixel may be from the median, of 255."""


class Scope(NamedTuple):
    """What a model knows: a line for each tab, and what it cannot answer.

    Args:
        chat, draw, inside: one line for each tab.
        words: the words that it has learned; None for a model of ordinary language.
        images_only: whether it answers questions about images only, on plain backgrounds.
    """

    chat: str
    draw: str
    inside: str
    words: frozenset[str] | None = None
    images_only: bool = False

    def unknown_words(self, text: str) -> list[str]:
        """Lists the words of a text that the model has not learned."""
        words = dict.fromkeys(words_of(text))
        return [] if self.words is None else [word for word in words if word not in self.words]

    def objection(self, question: str, images: Sequence["Image.Image"]) -> str | None:
        """Says why the model cannot answer a question about these images; None if it can."""
        if not self.images_only:
            return None
        if not images:
            return "This model answers questions about images only: attach one, or pick an example."
        unknown = self.unknown_words(question)
        if len(unknown) > UNKNOWN_SHARE * len(words_of(question)):
            return f"This model has not learned {_listed(unknown)}, so it cannot answer this. {self.chat}"
        if not has_plain_background(images[-1]):
            return (
                "This looks like a photograph. The model has seen only emoji on plain backgrounds, so it cannot say "
                "what this image shows."
            )
        return None

    def warning(self, prompt: str) -> str | None:
        """Says which words of a prompt an image cannot show; None if there are none."""
        if unknown := self.unknown_words(prompt):
            return f"This model has not learned {_listed(unknown)}: the image will not show it."
        return None


ANYTHING = Scope(
    chat="Ask about images in your own words, or write /draw and a prompt to have an image generated.",
    draw="Describe an image in a sentence.",
    inside="Any image: see what each level of its codes holds.",
)


def words_of(text: str) -> list[str]:
    """Splits a text into lower-case words."""
    return re.findall(r"[^\W_]+", text.lower())


def _listed(words: list[str]) -> str:
    return ", ".join(f"“{word[:30]}”" for word in words[:4]) + (" ..." if len(words) > 4 else "")


class Examples(NamedTuple):
    """Prompts to generate from, questions about an image, paths of images to ask about, and what the model knows."""

    prompts: tuple[str, ...]
    questions: tuple[str, ...]
    pictures: list[str]
    scope: Scope = ANYTHING


def find_examples(image_size: int, folder: Path) -> Examples:
    """Finds examples for a model of images of that size; those of the emoji world have images, written to `folder`."""
    from evotok.training.emoji.world import Drawing, EmojiWorld

    try:
        world = EmojiWorld()
    except FileNotFoundError:
        return Examples(PROMPTS, QUESTIONS, [])
    if image_size != world.size:
        return Examples(PROMPTS, QUESTIONS, [])
    concepts = {concept.name: concept for concept in world.concepts}
    pictures = []
    for name, style in EMOJI_PICTURES:
        path = folder / f"{name} {style.replace('_', ' ')}.png"
        world.image(Drawing(concepts[name], style)).save(path)
        pictures.append(str(path))
    return Examples(EMOJI_PROMPTS, EMOJI_QUESTIONS, pictures, emoji_scope(world))


def emoji_scope(world) -> Scope:
    """Describes what a model trained on the emoji world knows.

    Args:
        world: an `EmojiWorld`.
    """
    from evotok.training.emoji import prompts, questions
    from evotok.training.emoji.colors import COLORS

    names = [concept.name for concept in world.concepts]
    texts = [
        *names,
        *map(prompts.plural, names),
        *world.groups,
        *COLORS,
        *prompts.NUMBERS,
        *prompts.STYLE_NAMES.values(),
        *(text for texts in questions.QUESTIONS.values() for text in texts),
        *prompts.PROMPTS,
        *prompts.PROMPTS_WITHOUT_STYLE,
        *prompts.SCENE_PROMPTS,
        "a an and draw left right above below of",
    ]
    return Scope(
        chat=f"It knows emoji: their names, groups, colours, numbers and styles. Ask “{EMOJI_QUESTIONS[0]}”, "
        f"or write “/draw {EMOJI_PROMPTS[0]}”.",
        draw=f"It knows {len(names):,} emoji in four styles, alone or several on a coloured background. A prompt is "
        f"such as “{EMOJI_PROMPTS[0]}”.",
        inside="It has learned emoji on plain backgrounds; other images are decoded with less detail.",
        words=frozenset(words_of(" ".join(texts))),
        images_only=True,
    )


def has_plain_background(image: "Image.Image") -> bool:
    """Whether most pixels at the border of an image have one colour, as those of an emoji and unlike a photograph's.

    Args:
        image: RGB.
    """
    import numpy as np

    pixels = np.asarray(image.convert("RGB").resize((64, 64)), dtype=np.int16)
    border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3)])
    border = np.concatenate([border, pixels[3:-3, :3].reshape(-1, 3), pixels[3:-3, -3:].reshape(-1, 3)])
    near = np.abs(border - np.median(border, axis=0)).max(axis=1) <= PLAIN_TOLERANCE
    return bool(near.mean() >= PLAIN_SHARE)
