"""No training data of the world shows or describes anything that is held out."""

import re

import pytest

from evotok.data.world.conversations import MIXTURE_KINDS, WorldConversations, corpus
from evotok.data.world.icons import HELD_OUT_EMOJI_STYLE
from evotok.data.world.images import LabelledScenes, WorldImages
from evotok.data.world.palette import COLORS
from evotok.data.world.phrases import plural
from evotok.data.world.preferences import WorldPreferences
from evotok.data.world.scenes import has_held_out_pair, is_held_out_color


ROWS = 2000
DATA = {
    "images": lambda world: WorldImages(world, ROWS, seed=4),
    "labelled scenes": lambda world: LabelledScenes(world, ROWS, seed=9),
    "conversations": lambda world: WorldConversations(world, ROWS, dict.fromkeys(MIXTURE_KINDS, 1.0), seed=11),
    "preferences": lambda world: WorldPreferences(world, ROWS, seed=3),
}
PAIRS = re.compile(rf"(?=\b({'|'.join(COLORS)}) (\w+))")  # overlapping ones, too
YES_NO_PAIRS = re.compile(rf"^(?:(?:Is|Are) the| is) (\w+) ({'|'.join(COLORS)})\b")  # of questions, and in keywords


def pairs_of(text):
    """Returns (colour, name) of all pairs in a text."""
    return {*PAIRS.findall(text), *((color, name) for name, color in YES_NO_PAIRS.findall(text))}


def texts_of(row):
    """Returns all texts of a conversation; none of an image alone."""
    texts = [part["text"] for message in row.get("messages", []) for part in message["content"] if "text" in part]
    return [*texts, row.get("rejected", "")]


def keywords_of(row):
    """Returns all questions in keywords with their answers."""
    return [text for completion in row.get("completions", []) for text in completion]


def held_out_pairs(world):
    forms = [(thing.index, form) for thing in world.things for form in (thing.name, plural(thing.name))]
    return {(color, form) for thing, form in forms for color in COLORS if is_held_out_color(thing, color)}


@pytest.mark.parametrize("name", DATA)
def test_training_data_excludes_held_out_content(world, shown, name):
    data = DATA[name](world)
    rows = map(data.__getitem__, range(ROWS))
    texts = [text for row in rows for text in (*texts_of(row), *keywords_of(row))]
    assert len(shown["scenes"]) > 500 and not any(map(has_held_out_pair, shown["scenes"]))
    assert {world.icons[item.icon].split for scene in shown["scenes"] for item in scene.objects} == {"train"}
    assert HELD_OUT_EMOJI_STYLE not in {style for _, style in shown["emoji"]}
    assert shown["emoji"] or name == "preferences"
    assert not held_out_pairs(world) & {pair for text in texts for pair in pairs_of(text)}
    assert not any(HELD_OUT_EMOJI_STYLE in text for text in texts)


def test_corpus_has_all_words_and_excludes_held_out_content(world, shown):
    texts = corpus(world, 400)
    few = corpus(world, 10)
    assert texts[: len(few)] == few
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    assert {thing.name for thing in world.things} | set(COLORS) <= words
    assert not held_out_pairs(world) & {pair for text in texts for pair in pairs_of(text)}
    rows = WorldConversations(world, 100, dict.fromkeys(MIXTURE_KINDS, 1.0), seed=5)
    said = {word for i in range(100) for text in texts_of(rows[i]) for word in re.findall(r"\w+", text)}
    assert len(said - words) <= 0.02 * len(said), said - words
