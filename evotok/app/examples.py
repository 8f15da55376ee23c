"""Examples of prompts, questions and images, and the scope of their model.

The page, the help of the commands and the documents use these examples; a test generates an image from each
prompt and answers each question.
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
"""Largest share of words of a question that may be missing in the training data; others are outside the scope."""
PLAIN_SHARE = 0.6
"""Share of the pixels at the border of a plain background that have one colour."""
PLAIN_TOLERANCE = 24
"""Largest distance of a channel of such a pixel from the median, of 255."""


class Scope(NamedTuple):
    """Scope of a model.

    Args:
        chat, generate, inside: a description of the scope for each tab, one line.
        words: words of the training data; None for a model of ordinary language.
        images_only: whether it answers only questions about images, on plain backgrounds.
    """

    chat: str
    generate: str
    inside: str
    words: frozenset[str] | None = None
    images_only: bool = False

    def unknown_words(self, text: str) -> list[str]:
        """Lists the words of a text that are not in the training data."""
        words = dict.fromkeys(words_of(text))
        return [] if self.words is None else [word for word in words if word not in self.words]

    def refuse_question(self, question: str, images: Sequence["Image.Image"]) -> str | None:
        """Returns the reason why a question about images is outside the scope; None if it is not."""
        if not self.images_only:
            return None
        if not images:
            return "This model answers questions about images only: attach one, or pick an example."
        unknown = self.unknown_words(question)
        if len(unknown) > UNKNOWN_SHARE * len(words_of(question)):
            return f"This model has not learned {_listed(unknown)}, so it cannot answer this. {self.chat}"
        if not has_plain_background(images[-1]):
            return (
                "This looks like a photograph. The model was trained on icons and emoji on plain backgrounds only, and "
                "cannot answer questions about it."
            )
        return None

    def warn_about_prompt(self, prompt: str) -> str | None:
        """Returns a warning about the words of a prompt that are outside the scope; None if there are none."""
        if unknown := self.unknown_words(prompt):
            return f"This model has not learned {_listed(unknown)}: the image will not show it."
        return None


UNLIMITED = Scope(
    chat="Ask about images in your own words, or type /draw and a prompt to generate an image.",
    generate="Describe an image in a sentence.",
    inside="Any image: see what each level of its codes adds.",
)


def words_of(text: str) -> list[str]:
    """Splits a text into lower-case words."""
    return re.findall(r"[^\W_]+", text.lower())


def _listed(words: list[str]) -> str:
    return ", ".join(f"“{word[:30]}”" for word in words[:4]) + (" ..." if len(words) > 4 else "")


class Examples(NamedTuple):
    """Example prompts, questions about images, the paths of these images, and the scope of the model."""

    prompts: tuple[str, ...]
    questions: tuple[str, ...]
    images: list[str]
    scope: Scope = UNLIMITED


def find_examples(image_size: int, folder: Path) -> Examples:
    """Chooses examples by the size of a model's images; the images of the world's examples are saved to `folder`."""
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
    images = []
    for scene in world_scenes(world):
        path = folder / f"{describe(world, scene)}.png"
        Image.fromarray(render(world, scene)).save(path)
        images.append(str(path))
    return Examples(WORLD_PROMPTS, WORLD_QUESTIONS, images, world_scope(world))


def world_scenes(world) -> list["Scene"]:
    """Returns a scene for each of `WORLD_QUESTIONS`, of icons in held-out styles; the first is of one object.

    EvoTok-mini answers questions about these scenes correctly.

    Args:
        world: the embedded `World`.
    """
    from evotok.data.world.images import held_out_scenes

    single = held_out_scenes(world, "test", 1, single=True)
    return single + held_out_scenes(world, "test", len(WORLD_QUESTIONS) - 1, seed=7)


def world_scope(world) -> Scope:
    """Builds the scope of a model that was trained on the embedded world.

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
        chat=f"Trained on {len(names)} things in {len(COLORS)} colors: their names, colors, numbers and places. Ask "
        f"“{WORLD_QUESTIONS[0]}”, or type “/draw {WORLD_PROMPTS[0]}”.",
        generate=f"Trained on {len(names)} things in {len(COLORS)} colors, one to four on a background, and emoji of "
        f"them in four styles. An example is “{WORLD_PROMPTS[0]}”.",
        inside="Trained on icons and emoji on plain backgrounds; other images are decoded with less detail.",
        words=frozenset(words_of(" ".join(texts))),
        images_only=True,
    )


def has_plain_background(image: "Image.Image") -> bool:
    """Returns whether most pixels at the border of an image have one colour, unlike those of a photograph.

    Args:
        image: RGB.
    """
    import numpy as np

    pixels = np.asarray(image.convert("RGB").resize((64, 64)), dtype=np.int16)
    border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3)])
    border = np.concatenate([border, pixels[3:-3, :3].reshape(-1, 3), pixels[3:-3, -3:].reshape(-1, 3)])
    near = np.abs(border - np.median(border, axis=0)).max(axis=1) <= PLAIN_TOLERANCE
    return bool(near.mean() >= PLAIN_SHARE)
