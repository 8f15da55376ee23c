"""Conversations about the world: their forms, and that a row is a function of seed and index alone."""

import dataclasses
import hashlib
import json
import random
from collections import Counter

import pytest
from PIL import Image

from evotok.data.world.conversations import GENERATING, MIXTURE_KINDS, WorldConversations, sample_scene
from evotok.data.world.prompts import PromptSampler
from evotok.data.world.questions import QuestionSampler
from evotok.data.world.scenes import SceneSampler


ALL = dict.fromkeys(MIXTURE_KINDS, 1.0)


def pairs(row):
    """Returns (question, answer) pairs of text; `<image>` for an image."""
    texts = [
        "".join("<image>" if part["type"] == "image" else part["text"] for part in message["content"])
        for message in row["messages"]
    ]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (len(texts) // 2)
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_conversations_have_the_form_of_their_kind(world):
    data, names = WorldConversations(world, 300, ALL, seed=2), {thing.name for thing in world.things}
    rows = [data[index] for index in range(300)]
    assert {row["kind"] for row in rows} == set(MIXTURE_KINDS)
    for row in rows:
        if row["kind"].endswith("keywords"):
            continue
        kind, [(question, answer), *more] = row["kind"], pairs(row)
        count = sum(text.count("<image>") for pair in pairs(row) for text in pair)
        assert count == len(row["images"]) == (not kind.startswith("text"))
        assert all(isinstance(i, Image.Image) and i.size == (64, 64) and i.mode == "RGB" for i in row["images"])
        assert question.startswith("<image>") == (kind in ("scene", "caption", "emoji"))
        assert (answer == "<image>") == (kind in GENERATING)
        assert bool(more) == (kind in ("scene", "text"))
        assert kind not in ("scene", "text") or 6 <= len(pairs(row)) <= 12
        assert len({question for question, _ in pairs(row)}) == len(pairs(row))
        assert kind != "emoji" or answer in names
        assert kind != "caption" or answer.endswith(" background")
        assert " at " in {"text": question, "text_t2i": answer}.get(kind, " at ")


def test_questions_in_keywords_follow_an_image_or_a_scene_as_text(world):
    data = WorldConversations(world, 200, {"keywords": 1.0, "text_keywords": 1.0}, seed=2)
    rows = [data[index] for index in range(200)]
    for row in rows:
        [message] = row["messages"]
        [part] = message["content"]
        shown = row["kind"] == "keywords"
        assert (message["role"], part["type"], len(row["images"])) == ("user", "image" if shown else "text", int(shown))
        questions = [question for question, _ in row["completions"]]
        assert 6 <= len(questions) == len(set(questions)) <= 14
        assert all(question[0] == " " and answer[-1] == "\n" for question, answer in row["completions"])
    words = {question.split()[0] for row in rows for question, _ in row["completions"]}
    assert {"color", "which", "where", "many", "is", "there", "background", "count"} <= words


def test_yes_and_no_questions_are_first_in_half_of_the_rows(world, shown):
    """Otherwise the answer to an earlier question would determine some of theirs."""
    data, first = WorldConversations(world, 800, {"scene": 1.0}, seed=3), 0
    for index in range(800):
        answers = [answer in ("yes", "no") for _, answer in pairs(data[index])]
        first += answers == sorted(answers, reverse=True)
    assert first / 800 > 0.5


def test_conversations_depend_on_seed_and_index_only(world):
    first, longer = WorldConversations(world, 25, ALL, seed=7), WorldConversations(world, 900, ALL, seed=7)
    for index in reversed(range(25)):
        one, two = first[index], longer[index]
        assert one["messages"] == two["messages"] and one["kind"] == two["kind"]
        assert [i.tobytes() for i in one["images"]] == [i.tobytes() for i in two["images"]]
    other = WorldConversations(world, 25, ALL, seed=8)
    assert sum(first[i]["messages"] == other[i]["messages"] for i in range(25)) < 3
    with pytest.raises(IndexError, match="row 25 of 25"):
        first[25]


def test_conversations_do_not_change(world, shown):
    """Another order of random numbers, or another wording, would be another data set: docs/train.md must state it."""
    data = WorldConversations(world, 100, ALL, seed=1)
    rows = [data[index] for index in range(100)]
    texts = json.dumps([[row["messages"], row.get("completions"), row["kind"]] for row in rows])
    scenes = json.dumps([dataclasses.astuple(scene) for scene in shown["scenes"]])
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "fb1be5bcd4e61c9c"
    assert hashlib.sha256(scenes.encode()).hexdigest()[:16] == "ff7a63cdd9630375"


def test_blocks_of_conversations_have_one_form(world):
    data = WorldConversations(world, 400, {"keywords": 0.5, "scene": 0.3, "emoji": 0.2}, block=8)
    blocks = [{"completions" in data[index] for index in range(start, start + 8)} for start in range(0, 400, 8)]
    assert all(len(block) == 1 for block in blocks) and 10 < sum(block == {True} for block in blocks) < 40


def test_blocks_of_conversations_generate_or_answer(world, shown):
    data = WorldConversations(world, 400, {"t2i": 0.5, "t2i_emoji": 0.2, "scene": 0.3}, block=8)
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
def test_conversations_refuse_wrong_mixtures(world, mixture, block, message):
    with pytest.raises(ValueError, match=message):
        WorldConversations(world, 1, mixture, block=block)


def test_sample_scene_allows_every_kind_of_question(world):
    scenes, prompts = SceneSampler(world, world.select("train")), PromptSampler(world)
    rng, questions = random.Random(0), QuestionSampler(world)
    kinds = Counter(kind for _ in range(300) for kind in questions.kinds(sample_scene(rng, scenes, prompts)))
    assert min(kinds.values()) > 30
