"""What to try first on the page, for a model of the emoji world and for any other."""

from pathlib import Path
from typing import NamedTuple


class Examples(NamedTuple):
    """Prompts to draw, questions about an image, and paths of pictures to ask about or look into."""

    prompts: tuple[str, ...]
    questions: tuple[str, ...]
    pictures: list[str]


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


def find_examples(image_size: int, folder: Path) -> Examples:
    """Examples for a model of images of that size; those of the emoji world come with pictures, written to `folder`."""
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
    return Examples(EMOJI_PROMPTS, EMOJI_QUESTIONS, pictures)
