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

    from evotok.data.world.scenes import Scene


WORLD_PROMPTS = (
    "a red heart left of a blue star on a yellow background",
    "three green keys",
    "a black cloud above a pink car on an orange background",
    "a purple house and a yellow umbrella on a green background",
    "a rocket, noto style",
    "a bell, twemoji style",
)
WORLD_QUESTIONS = (
    "What is this?",
    "What color is the background?",
    "How many things are there?",
    "Describe the picture.",
)
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
                "This looks like a photograph. The model has seen only icons and emoji on plain backgrounds, so it "
                "cannot say what this image shows."
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
    """Finds examples for a model of images of that size; those of the world have images, written to `folder`."""
    from PIL import Image

    from evotok.data.world.icons import load_world
    from evotok.data.world.phrases import describe
    from evotok.data.world.scenes import CANVAS, render

    if image_size != CANVAS:
        return Examples(PROMPTS, QUESTIONS, [])
    try:
        world = load_world()
    except FileNotFoundError:  # of an installation without the embedded data
        return Examples(PROMPTS, QUESTIONS, [])
    pictures = []
    for scene in world_scenes(world):
        path = folder / f"{describe(world, scene)}.png"
        Image.fromarray(render(world, scene)).save(path)
        pictures.append(str(path))
    return Examples(WORLD_PROMPTS, WORLD_QUESTIONS, pictures, world_scope(world))


def world_scenes(world) -> list["Scene"]:
    """A scene for each of `WORLD_QUESTIONS`, of icons in styles that are held out from training; the first shows one
    thing.

    Args:
        world: the embedded `World`.
    """
    from evotok.data.world.images import held_out_scenes

    return held_out_scenes(world, "test", 1, single=True) + held_out_scenes(world, "test", len(WORLD_QUESTIONS) - 1)


def world_scope(world) -> Scope:
    """Describes what a model trained on the embedded world knows.

    Args:
        world: the embedded `World`.
    """
    from evotok.data.world import phrases, prompts, questions
    from evotok.data.world.icons import EMOJI_STYLES
    from evotok.data.world.palette import COLORS

    names = [thing.name for thing in world.things]
    texts = [
        *names,
        *map(phrases.plural, names),
        *COLORS,
        *phrases.NUMBERS,
        *phrases.BETWEEN.values(),
        *EMOJI_STYLES.values(),
        *(text for texts in questions.WORDINGS.values() for text in texts),
        *prompts.WORDINGS,
        *prompts.BACKGROUND_WORDINGS,
        *prompts.EMOJI_WORDINGS,
        "a an and on are draw has have does many number relative top bottom",
    ]
    return Scope(
        chat=f"It knows {len(names)} things in {len(COLORS)} colors: their names, colors, numbers and places. Ask "
        f"“{WORLD_QUESTIONS[0]}”, or write “/draw {WORLD_PROMPTS[0]}”.",
        draw=f"It knows {len(names)} things in {len(COLORS)} colors, one to four on a background, and emoji of them in "
        f"four styles. A prompt is such as “{WORLD_PROMPTS[0]}”.",
        inside="It has learned icons and emoji on plain backgrounds; other images are decoded with less detail.",
        words=frozenset(words_of(" ".join(texts))),
        images_only=True,
    )


def has_plain_background(image: "Image.Image") -> bool:
    """Whether most pixels at the border of an image have one colour, as those of an icon and unlike a photograph's.

    Args:
        image: RGB.
    """
    import numpy as np

    pixels = np.asarray(image.convert("RGB").resize((64, 64)), dtype=np.int16)
    border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3)])
    border = np.concatenate([border, pixels[3:-3, :3].reshape(-1, 3), pixels[3:-3, -3:].reshape(-1, 3)])
    near = np.abs(border - np.median(border, axis=0)).max(axis=1) <= PLAIN_TOLERANCE
    return bool(near.mean() >= PLAIN_SHARE)
