"""emoji-GenEval: prompts and contradictions judged over scenes whose things are known, the detector, the suite."""

import json
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from evotok.cli import main
from evotok.eval.emoji_detector import EmojiDetector, Sight, find_background, find_things
from evotok.eval.geneval import Thing
from evotok.eval.suites.emoji_geneval import STYLES, TASKS, Case, Options, build_cases, contradict, faults
from evotok.training.emoji.colors import COLORS, PALETTE
from evotok.training.emoji.scenes import Scene, render, sample_scene
from evotok.training.emoji.world import Drawing, EmojiWorld


COUNT = 24


@pytest.fixture(scope="module")
def world():
    return EmojiWorld()


@pytest.fixture(scope="module")
def cases(world):
    return build_cases(world, COUNT, seed=0)


def perfect_sight(case: Case) -> Sight:
    """What a detector that makes no mistakes sees in the scene of a case."""
    if isinstance(case.scene, Drawing):
        return Sight("white", case.scene.style, [Thing(case.scene.concept.name, 1.0, (0, 0, 64, 64))])
    things = [
        Thing(item.drawing.concept.name, 1.0, (item.x, item.y, item.x + item.size, item.y + item.size))
        for item in case.scene.items
    ]
    return Sight(case.scene.background, case.scene.items[0].drawing.style, things)


def test_prompts_speak_the_language_of_the_training(cases):
    forms = {
        "single_object": r"[a-z ]+, (noto|twemoji|fluent flat|fluent 3d) style",
        "two_object": r"(an? )?[a-z ]+ and (an? )?[a-z ]+ on an? [a-z]+ background, [a-z0-9 ]+ style",
        "counting": r"(two|three|four) [a-z ]+ on an? [a-z]+ background, [a-z0-9 ]+ style",
        "colors": r"(an? )?[a-z ]+ on an? [a-z]+ background, [a-z0-9 ]+ style",
        "position": r"(an? )?[a-z ]+ (left of|right of|above|below) (an? )?[a-z ]+ on an? [a-z]+ background, .+ style",
        "attribution": r"(an? )?[a-z ]+ and (an? )?[a-z ]+ on an? [a-z]+ background, [a-z0-9 ]+ style",
    }
    assert tuple(forms) == TASKS
    for case in cases:
        assert re.fullmatch(forms[case.record["tag"]], case.record["prompt"]), case.record
    assert Counter(case.record["tag"] for case in cases) == dict.fromkeys(TASKS, COUNT)
    counts = [case.record["include"][0]["count"] for case in cases if case.record["tag"] == "counting"]
    assert Counter(counts) == {2: COUNT / 3, 3: COUNT / 3, 4: COUNT / 3}
    assert Counter(case.record["style"] for case in cases if "style" in case.record) == dict.fromkeys(STYLES, COUNT / 4)


def test_prompts_are_those_of_the_seed(world, cases):
    assert [case.record for case in build_cases(world, 2, seed=0)][:2] == [case.record for case in cases[:2]]
    assert [case.record for case in build_cases(world, 2, seed=1)][:2] != [case.record for case in cases[:2]]


def test_a_scene_is_right_for_its_prompt_and_wrong_for_what_contradicts_it(cases):
    for index, case in enumerate(cases):
        sight, other = perfect_sight(case), cases[(index + 1) % COUNT + index // COUNT * COUNT]
        assert faults(case.record, sight) == [], case.record
        wrong = contradict(case.record, other.record)
        assert len(faults(wrong, sight)) >= 1, wrong
        assert wrong["tag"] == case.record["tag"] and wrong != case.record


def test_attributes_are_judged_where_they_are_asked_for(cases):
    colors = next(case for case in cases if case.record["tag"] == "colors")
    attribution = next(case for case in cases if case.record["tag"] == "attribution")
    for case, key, expected in [
        (colors, "background", 1),
        (colors, "style", 0),
        (attribution, "background", 1),
        (attribution, "style", 1),
    ]:
        sight = perfect_sight(case)
        other = {"background": next(c for c in COLORS if c != sight.background), "style": "openmoji"}[key]
        seen = Sight(**vars(sight) | {key: other})
        assert len(faults(case.record, seen)) == expected, key
    assert faults(attribution.record, Sight("red", None, []))[:2] == [
        f"{clause['class']}: 0 of 1" for clause in attribution.record["include"]
    ]


# --- the detector ----------------------------------------------------------------------------------------------------


def test_things_are_told_apart(world):
    """Backgrounds and numbers of things in scenes of every size."""
    right, drawings = [], world.drawings("train", familiar=True)
    for seed in range(60):
        scene = sample_scene(random.Random(seed), world, drawings, count=1 + seed % 4)
        pixels = np.asarray(render(scene, world)).astype(np.float32)
        name, color = find_background(pixels, PALETTE)
        right.append((name == scene.background, len(find_things(pixels, color)) == len(scene.items)))
    assert np.mean(right, 0).min() >= 0.95


def test_parts_of_a_thing_are_put_together_and_dirt_is_not_a_thing():
    pixels = np.full((64, 64, 3), 255.0)
    pixels[5:30, 5:30] = (0, 0, 200)
    pixels[10:14, 32:36] = (0, 0, 200)  # too small to be a thing, near one
    pixels[40:60:4, 40:60:4] = (200, 0, 0)  # dots, none of them a thing
    pixels[55:58, 5:8] = (0, 200, 0)  # dirt
    name, color = find_background(pixels, PALETTE)
    masks = find_things(pixels, color)
    assert name == "white" and len(masks) == 2
    assert [int(mask.sum()) for mask in masks] == [25 * 25 + 16, 25]
    assert find_things(np.full((64, 64, 3), 255.0), color) == []


def test_a_detector_of_a_small_gallery(world):
    """Named by colour alone: the features are the mean colours of a grid."""
    chosen = [c for c in world.familiar if c.name in ("frog", "pizza", "rocket", "guitar", "robot")]
    drawings = [Drawing(concept, style) for concept in chosen for style in ("noto", "fluent_3d")]
    detector = EmojiDetector(
        lambda pixels: torch.nn.functional.avg_pool2d(pixels, 8).flatten(1),
        PALETTE,
        [world.rgba(drawing) for drawing in drawings],
        [drawing.concept.name for drawing in drawings],
        [drawing.style for drawing in drawings],
    )
    right = []
    for seed in range(20):
        scene = sample_scene(random.Random(seed), world, drawings, kind="pair", same_style=True)
        sight = detector(render(scene, world))
        names = [item.drawing.concept.name for item in scene.items]
        right.append(sorted(one.label for one in sight.things) == sorted(names))
        right.append(sight.style == scene.items[0].drawing.style)
    assert len(chosen) == 5 and np.mean(right) >= 0.9
    assert detector(Image.new("RGB", (64, 64), PALETTE["blue"])) == Sight("blue", None, [])


# --- the suite -------------------------------------------------------------------------------------------------------


class SmallWorld(EmojiWorld):
    """Twenty familiar things instead of two hundred: a gallery in a second."""

    def __init__(self):
        super().__init__()
        self.familiar = self.familiar[::10]

    def drawings(self, split, familiar=None):
        return [drawing for drawing in super().drawings(split, familiar) if drawing.concept in self.familiar]


def test_the_suite(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("evotok.eval.suites.emoji_geneval.EmojiWorld", SmallWorld)
    assert main(["eval", "emoji-geneval", "mini", "prompts=2", "--out", str(out), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    figures = results["figures"]
    for task in ("overall", *TASKS):
        assert 0 <= figures[task] <= 1 and figures[f"{task}_detector"] >= 0.5, task
        assert figures[f"{task}_n"] == (12 if task == "overall" else 2)
    assert figures["overall_detector"] >= 0.8
    assert [row["task"] for row in results["tables"]["tasks"]] == [*TASKS, "overall"]
    lines = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and np.mean([line["correct"] for line in lines]) == pytest.approx(figures["overall"])
    assert json.loads((out / "pictures/00011/metadata.jsonl").read_text())["tag"] == "attribution"
    assert Image.open(out / "pictures/00011/samples/0000.png").size == (64, 64)
    assert "`detector` is its own accuracy" in (out / "README.md").read_text()


def test_other_sizes_than_the_emojis_are_refused(tmp_path, capsys):
    from conftest import build_chat_model

    model, processor = build_chat_model()
    model.save_pretrained(tmp_path / "tiny")
    processor.save_pretrained(tmp_path / "tiny")
    assert main(["eval", "emoji-geneval", str(tmp_path / "tiny"), "--out", str(tmp_path / "out")]) == 2
    assert "images of 32 px, not of 64: give a mini model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options():
    with pytest.raises(ValueError, match="prompts=1 must be at least 2"):
        Options(prompts=1)


def test_scene_and_drawing_are_pictures(world, cases):
    kinds = {type(case.scene): case.image(world).size for case in cases}
    assert kinds == {Scene: (64, 64), Drawing: (64, 64)}
