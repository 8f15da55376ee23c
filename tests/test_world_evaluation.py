"""The fixed sets that EvoTok-mini is evaluated on."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from evotok.data.world.evaluation import (
    QUESTION_SETS,
    emoji_prompt_set,
    labelled_pixels,
    prompt_set,
    question_set,
)
from evotok.data.world.lmms_tasks import TASKS, write_tasks
from evotok.data.world.prompts import TASKS as PROMPT_TASKS
from evotok.data.world.questions import WORDINGS, YES_NO
from evotok.data.world.scenes import is_held_out_color


@pytest.mark.parametrize("figure", QUESTION_SETS)
def test_a_set_of_questions_is_fixed_balanced_and_canonical(world, figure):
    records = question_set(world, figure, 40)
    few = question_set(world, figure, 3)
    for record, again in zip(records, few, strict=False):
        assert record["messages"] == again["messages"] and record["answer"] == again["answer"]
        assert not ImageChops.difference(record["images"][0], again["images"][0]).getbbox()
    assert question_set(world, figure, 3, seed=1)[0]["images"][0].tobytes() != few[0]["images"][0].tobytes()
    kinds = Counter(record["kind"] for record in records)
    assert kinds == dict.fromkeys(QUESTION_SETS[figure].kinds, 40 // len(QUESTION_SETS[figure].kinds))
    for record in records:
        question = record["messages"][0]["content"][-1]["text"]
        assert question.split()[0] == WORDINGS[record["kind"]][0].format_map(_Words(question)).split()[0]
        assert record["messages"][-1]["content"][0]["text"] == record["answer"]


class _Words(dict):
    """Stands for any word of a template: the first one of the question."""

    def __init__(self, question: str):
        super().__init__()
        self.question = question

    def __missing__(self, key):
        return self.question.split()[0]


def test_half_of_each_yes_no_kind_is_yes_and_numbers_go_round(world):
    answers = Counter((record["kind"], record["answer"]) for record in question_set(world, "qa_yes_no", 40))
    assert answers == {(kind, answer): 4 for kind in YES_NO for answer in ("yes", "no")}
    counts = [record["answer"] for record in question_set(world, "qa_count", 40) if record["kind"] == "count"]
    assert Counter(counts) == dict.fromkeys("1234", 5)


def test_unknown_sets_are_named(world):
    with pytest.raises(ValueError, match="unknown set of questions 'qa_group': choose one of qa_name_new_style"):
        question_set(world, "qa_group", 1)


@pytest.mark.parametrize("held_out", [False, True])
def test_prompts_are_fixed_and_of_seen_or_held_out_pairs(world, held_out):
    for task in PROMPT_TASKS:
        prompts = prompt_set(world, task, 12, held_out)
        assert prompts[:4] == prompt_set(world, task, 4, held_out) and len({p.text for p in prompts}) > 7
        for item in (item for prompt in prompts for item in prompt.scene.items):
            assert is_held_out_color(item.thing, item.color) == held_out, task
        assert not any(prompt.text.startswith(("draw", "a picture")) for prompt in prompts)


def test_emoji_prompts_are_of_all_things_and_trained_styles(world):
    prompts = emoji_prompt_set(world, 400)
    assert prompts[0].text == "a house, noto style" and prompts[:2] == emoji_prompt_set(world, 2)
    distinct = {(prompt.emoji, prompt.style) for prompt in prompts}
    named = sum(thing.emoji is not None for thing in world.things)
    assert len(distinct) == 4 * named and "openmoji" not in {prompt.style for prompt in prompts}


def test_labels_say_what_is_at_every_patch(world):
    found = labelled_pixels(world, "test", 6, single=True)
    assert found.pixels.shape == (6, 3, 64, 64) and found.things.shape == (6, 64)
    for scene, things in zip(found.scenes, found.things, strict=True):
        assert set(things.unique().tolist()) - {0} == {scene.items[0].thing + 1} and scene.items[0].size >= 32
    names = found.names(world)
    assert names["thing"][0] == world.things[found.scenes[0].items[0].thing].name
    assert torch.equal(found.pixels[:2], labelled_pixels(world, "test", 2, single=True).pixels)
    drawings = {item.drawing for scene in labelled_pixels(world, "test", 20).scenes for item in scene.items}
    assert {world.drawings[drawing].split for drawing in drawings} == {"test"}


def test_tasks_of_the_harness_hold_the_same_questions(world, tmp_path):
    write_tasks(tmp_path, 3)
    assert sorted(path.stem for path in tmp_path.glob("*.yaml")) == sorted(TASKS)
    for name in TASKS:
        folder = tmp_path / name / "test"
        lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        for line, record in zip(lines, question_set(world, name, 3), strict=True):
            assert line["question"] == record["messages"][0]["content"][-1]["text"]
            assert line["answer"] == record["answer"]
            np.testing.assert_array_equal(Image.open(folder / line["file_name"]), record["images"][0])
