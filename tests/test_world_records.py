"""Conversations about the world: what they show and say, and that record i is a function of (seed, i) alone."""

import hashlib
import json
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from evotok.data.world import records
from evotok.data.world.palette import COLORS
from evotok.data.world.phrases import plural
from evotok.data.world.prompts import TRAIN_EMOJI_STYLES
from evotok.data.world.questions import Asker
from evotok.data.world.records import GENERATING, MIXTURE_KINDS, WorldRecords, corpus
from evotok.data.world.scenes import new_pairs
from evotok.data.world.splits import is_new_color_pair, is_new_relation_pair


SAMPLES = 4000
ALL = dict.fromkeys(MIXTURE_KINDS, 1.0)


def turns(record):
    """(question, answer) pairs of text; `<image>` for an image that is generated."""
    said = [
        "".join("<image>" if part["type"] == "image" else part["text"] for part in message["content"])
        for message in record["messages"]
    ]
    return list(zip(said[::2], said[1::2], strict=True))


@pytest.fixture
def shown(monkeypatch):
    """Scenes that records are made of; nothing is rendered, so that many may be drawn."""
    seen = []

    def note(world, scene, warp=None):
        seen.append(scene)
        return np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setattr(records, "render", note)
    return seen


def held_out(world):
    return {(color, thing.name) for thing in world.things for color in COLORS if is_new_color_pair(thing.index, color)}


def test_no_record_shows_or_tells_a_held_out_pair(world, shown):
    data, styles = WorldRecords(world, SAMPLES, ALL, seed=11), Counter()
    pairs = re.compile(rf"(?=\b({'|'.join(COLORS)}) (\w+))")
    forbidden = {(color, form) for color, name in held_out(world) for form in (name, plural(name))}
    asked = re.compile(rf"^(?:Is|Are) the (\w+) ({'|'.join(COLORS)})\?")
    for index in range(SAMPLES):
        record = data[index]
        for question, answer in turns(record):
            told = {*pairs.findall(question), *pairs.findall(answer)}
            told |= {(color, name) for name, color in asked.findall(question)}
            assert not told & forbidden, (question, answer)
        if record["kind"] == "t2i_emoji":
            styles.update(s for s in ("noto", "twemoji", "fluent flat", "fluent 3d", "openmoji") if s in question)
    items = [item for scene in shown for item in scene.items]
    assert len(items) > 3000 and {world.drawings[item.drawing].split for item in items} == {"train"}
    assert not any(is_new_color_pair(item.thing, item.color) for item in items)
    assert set(styles) == {"noto", "twemoji", "fluent flat", "fluent 3d"} and len(TRAIN_EMOJI_STYLES) == 4


def test_no_record_shows_or_tells_a_held_out_relation(world, shown):
    data = WorldRecords(world, SAMPLES, {"caption": 0.5, "t2i": 0.5}, seed=12)
    names, said = {thing.name: thing.index for thing in world.things}, 0
    for index in range(SAMPLES):
        record = data[index]
        [(question, _)] = turns(record)
        if record["kind"] == "t2i" and (found := re.search(r"(\w+) (left|right|above|below)\b", question)):
            said += 1
            assert not is_new_relation_pair(names[found[1]], found[2]), question
    assert said > 200
    assert len(shown) > 1000 and not any(new_pairs(scene) for scene in shown)


def test_a_record_is_a_conversation_about_one_image(world):
    data = WorldRecords(world, 60, {"scene": 1.0}, seed=1)
    for index in range(60):
        record = data[index]
        roles = [message["role"] for message in record["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and 3 <= len(roles) // 2 <= 7
        images = [part for message in record["messages"] for part in message["content"] if part["type"] == "image"]
        assert len(images) == 1 and record["messages"][0]["content"][0]["type"] == "image"
        [image] = record["images"]
        assert isinstance(image, Image.Image) and image.size == (64, 64) and image.mode == "RGB"
        assert len({question for question, _ in turns(record)}) == len(turns(record))


def test_kinds_are_what_they_are_called(world):
    data = WorldRecords(world, 300, ALL, seed=2)
    seen = defaultdict(list)
    for index in range(300):
        seen[data[index]["kind"]].append(data[index])
    assert set(seen) == set(MIXTURE_KINDS)
    names = {thing.name for thing in world.things}
    for record in seen["emoji"]:
        [(_, answer)] = turns(record)
        assert answer in names
    for kind in GENERATING:
        for record in seen[kind]:
            [(prompt, answer)] = turns(record)
            assert answer == "<image>" and prompt and len(record["images"]) == 1
    for kind in ("text", "text_t2i"):
        for record in seen[kind]:
            assert record["images"] == [] and " at " in turns(record)[0][kind == "text_t2i"]
    for record in seen["caption"]:
        assert turns(record)[0][1].endswith(" background")


def test_half_of_the_records_ask_yes_and_no_first(world, shown):
    """Else the answer of a question before would give some of them away."""
    data, first = WorldRecords(world, 800, {"scene": 1.0}, seed=3), 0
    for index in range(800):
        answers = [answer in ("yes", "no") for _, answer in turns(data[index])]
        first += answers == sorted(answers, reverse=True)
    assert first / 800 > 0.5


def test_records_depend_on_seed_and_index_alone(world):
    first, longer = WorldRecords(world, 25, ALL, seed=7), WorldRecords(world, 900, ALL, seed=7)
    for index in reversed(range(25)):
        one, two = first[index], longer[index]
        assert one["messages"] == two["messages"] and one["kind"] == two["kind"]
        assert [i.tobytes() for i in one["images"]] == [i.tobytes() for i in two["images"]]
    other = WorldRecords(world, 25, ALL, seed=8)
    assert sum(first[i]["messages"] == other[i]["messages"] for i in range(25)) < 3
    with pytest.raises(IndexError, match="record 25 of 25"):
        first[25]


def test_records_are_those_that_checkpoints_were_trained_on(world, shown):
    """Another order of the lots, or another wording, would be another data set."""
    data = WorldRecords(world, 100, ALL, seed=1)
    said = json.dumps([[data[index]["messages"], data[index]["kind"]] for index in range(100)])
    places = repr(shown)
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == "3e5248a635ef5084"
    assert hashlib.sha256(places.encode()).hexdigest()[:16] == "daeb2b2bc3666b83"


def test_blocks_of_records_all_generate_or_all_answer(world, shown):
    data = WorldRecords(world, 400, {"t2i": 0.5, "t2i_emoji": 0.2, "scene": 0.3}, block=8)
    kinds = [data[index]["kind"] in GENERATING for index in range(400)]
    blocks = [set(kinds[start : start + 8]) for start in range(0, 400, 8)]
    assert all(len(block) == 1 for block in blocks) and 5 < sum(block == {False} for block in blocks) < 27


@pytest.mark.parametrize(
    ("mixture", "block", "message"),
    [
        ({"scenes": 1.0}, 1, "unknown kind 'scenes'"),
        ({"scene": -1.0, "emoji": 2.0}, 1, "weights of the mixture must be 0 or more"),
        ({"scene": 0.0}, 1, "one of them above 0"),
        ({"scene": 1.0}, 0, "block=0 must be at least 1"),
    ],
)
def test_mistakes_in_the_mixture_are_named(world, mixture, block, message):
    with pytest.raises(ValueError, match=message):
        WorldRecords(world, 1, mixture, block=block)


def test_the_corpus_has_all_words(world, shown):
    texts = corpus(world, 400)
    assert texts[:50] == corpus(world, 400)[:50]
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    assert {thing.name for thing in world.things} | set(COLORS) <= words
    data = WorldRecords(world, 200, ALL, seed=5)
    said = {word for i in range(200) for turn in turns(data[i]) for text in turn for word in re.findall(r"\w+", text)}
    assert len(said - words) <= 0.02 * len(said), said - words
    assert not any(f" {' '.join(pair)} " in f" {text} " for pair in held_out(world) for text in texts)


def test_scenes_of_questions_allow_them(world):
    data = WorldRecords(world, 1, seed=0)
    rng, asker = random.Random(0), Asker(world)
    kinds = Counter(kind for _ in range(300) for kind in asker.kinds(data.sample_scene(rng)))
    assert min(kinds.values()) > 30
