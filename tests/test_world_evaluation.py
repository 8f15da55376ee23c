"""The fixed sets that EvoTok-mini is evaluated on, and the tasks of the lmms-eval harness made of them."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

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
def test_question_set_is_fixed_balanced_and_canonical(world, figure):
    rows, few = question_set(world, figure, 40), question_set(world, figure, 3)
    for row, again in zip(rows, few, strict=False):
        assert row["messages"] == again["messages"] and row["answer"] == again["answer"]
        assert row["images"][0].tobytes() == again["images"][0].tobytes()
    assert question_set(world, figure, 1, seed=1)[0]["images"][0].tobytes() != few[0]["images"][0].tobytes()
    kinds = QUESTION_SETS[figure].kinds
    assert Counter(row["kind"] for row in rows) == dict.fromkeys(kinds, 40 // len(kinds))
    for row in rows:
        question = row["messages"][0]["content"][-1]["text"]
        start = WORDINGS[row["kind"]][0].partition("{")[0]
        assert question.startswith(start) and row["messages"][-1]["content"][0]["text"] == row["answer"]
    answers = Counter((row["kind"], row["answer"]) for row in rows)
    if figure == "qa_yes_no":
        assert answers == {(kind, answer): 4 for kind in YES_NO for answer in ("yes", "no")}
    if figure == "qa_count":
        assert [answers["count", str(n)] for n in range(1, 5)] == [5] * 4


def test_question_set_refuses_unknown_names(world):
    with pytest.raises(ValueError, match="unknown set of questions 'qa_group': choose one of qa_name_new_style"):
        question_set(world, "qa_group", 1)


@pytest.mark.parametrize("held_out", [False, True])
def test_prompt_set_is_fixed_canonical_and_of_seen_or_held_out_pairs(world, held_out):
    for task in PROMPT_TASKS:
        prompts = prompt_set(world, task, 12, held_out)
        assert prompts[:4] == prompt_set(world, task, 4, held_out) and len({p.text for p in prompts}) > 7
        for item in (item for prompt in prompts for item in prompt.scene.objects):
            assert is_held_out_color(item.thing, item.color) == held_out, task
        assert not any(prompt.text.startswith(("draw", "a picture")) for prompt in prompts)


def test_emoji_prompt_set_has_all_things_in_the_trained_styles(world):
    prompts = emoji_prompt_set(world, 400)
    assert prompts[0].text == "a house, noto style" and prompts[:2] == emoji_prompt_set(world, 2)
    distinct = {(prompt.emoji, prompt.style) for prompt in prompts}
    named = sum(thing.emoji is not None for thing in world.things)
    assert len(distinct) == 4 * named and "openmoji" not in {prompt.style for prompt in prompts}


def test_labelled_pixels_have_the_things_of_their_scenes(world):
    found = labelled_pixels(world, "test", 6, single=True)
    assert found.pixels.shape == (6, 3, 64, 64) and found.things.shape == (6, 64)
    for scene, things in zip(found.scenes, found.things, strict=True):
        assert set(things.unique().tolist()) - {0} == {scene.objects[0].thing + 1} and scene.objects[0].size >= 32
    names = found.names(world)
    assert names["thing"][0] == world.things[found.scenes[0].objects[0].thing].name
    assert torch.equal(found.pixels[:2], labelled_pixels(world, "test", 2, single=True).pixels)


def test_write_tasks_has_the_questions_of_the_sets(world, tmp_path):
    write_tasks(tmp_path, 2)
    assert sorted(path.stem for path in tmp_path.glob("*.yaml")) == sorted(TASKS)
    for name in TASKS:
        folder = tmp_path / name / "test"
        lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        for line, row in zip(lines, question_set(world, name, 2), strict=True):
            assert line["question"] == row["messages"][0]["content"][-1]["text"] and line["answer"] == row["answer"]
            np.testing.assert_array_equal(Image.open(folder / line["file_name"]), row["images"][0])
