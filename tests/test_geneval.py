"""GenEval: its rules on scenes whose things are known, its file of prompts, and its networks."""

import json

import numpy as np
import pytest
import torch
from geneval_materials import geneval_records, save_color_model, save_detector, write_lines
from PIL import Image, ImageDraw

from evotok.eval.text_to_image.detectors import COLOR_PROMPTS, ColorClassifier, InstanceDetector, crop_thing
from evotok.eval.text_to_image.geneval import (
    COLORS,
    CONFIDENCE,
    COUNTING_CONFIDENCE,
    TASKS,
    DetectedObject,
    box_of,
    judge,
    pick_records,
    read_records,
    relations,
    select,
)


SIDE = 128


def thing(label, x, y, size=20, score=0.95):
    return DetectedObject(label, score, (x, y, x + size, y + size))


def clause(label, count=1, **more):
    return {"class": label, "count": count} | more


class Scene:
    """Disks of known colours on grey, as an image and as the things that a perfect detector finds."""

    def __init__(self, *disks):
        self.image, self.things = Image.new("RGB", (SIDE, SIDE), "gray"), []
        for label, color, x, y in disks:
            mask = Image.new("1", (SIDE, SIDE))
            ImageDraw.Draw(mask).ellipse((x, y, x + 30, y + 30), fill=1)
            self.image.paste(Image.new("RGB", (SIDE, SIDE), color), mask=mask)
            mask = np.array(mask)
            self.things.append(DetectedObject(label, 0.95, box_of(mask), mask))

    def colors_of(self, things):
        """Returns the colours that are nearest to the middle of each crop."""
        middles = [np.array(crop_thing(self.image, one))[15, 15] for one in things]
        named = {color: np.array(Image.new("RGB", (1, 1), color))[0, 0].astype(int) for color in COLORS}
        return [min(named, key=lambda color: abs(named[color] - middle).sum()) for middle in middles]

    def faults(self, *include, exclude=()):
        record = {"include": list(include), "exclude": list(exclude)}
        return judge(record, select(self.things, CONFIDENCE), self.colors_of)


@pytest.fixture
def scene():
    return Scene(("cat", "red", 5, 50), ("dog", "blue", 80, 50), ("bird", "green", 80, 5), ("bird", "green", 5, 5))


@pytest.mark.parametrize(
    "include",
    [
        [clause("cat", color="red"), clause("dog", color="blue")],
        [clause("bird", 2, color="green")],
        [clause("cat"), clause("dog", position=["right of", 0])],
        [clause("dog"), clause("bird", position=["above", 0])],
    ],
)
def test_judge_accepts_right_images(scene, include):
    assert scene.faults(*include) == []


@pytest.mark.parametrize(
    ("include", "fault"),
    [
        ([clause("cat"), clause("cow")], "cow: 0 of 1"),
        ([clause("bird", 3)], "bird: 2 of 3"),
        ([clause("cat", color="red"), clause("dog", color="red")], "dog: blue, not red"),
        ([clause("bird", 2, color="red")], "bird: green, green, not red"),
        ([clause("dog"), clause("cat", position=["right of", 0])], "cat: not right of dog"),
        ([clause("dog"), clause("bird", 2, position=["above", 0])], "bird: not above dog"),  # the second is left of it
        ([clause("cow"), clause("cat", position=["left of", 0])], "cat: nothing to be left of"),
        ([clause("cat", color="blue"), clause("dog", position=["right of", 0])], "dog: nothing to be right of"),
    ],
)
def test_judge_names_faults(scene, include, fault):
    assert scene.faults(*include)[-1] == fault


def test_judge_refuses_excluded_things(scene):
    assert scene.faults(clause("bird", 1)) == []
    assert scene.faults(clause("bird", 1), exclude=[clause("bird", 2)]) == ["bird: 2, not fewer than 2"]


def test_judge_checks_the_highest_scores_only():
    asked = []
    found = {"cat": [thing("cat", 0, 0, score=0.9), thing("cat", 50, 0, score=0.8)]}
    record = {"include": [clause("cat", color="red")]}
    assert judge(record, found, lambda things: asked.extend(things) or ["red" for _ in things]) == []
    assert [one.score for one in asked] == [0.9]


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (-40, 0, {"left of"}),
        (0, 40, {"below"}),
        (40, -40, {"right of", "above"}),
        (-40, 12, {"left of"}),
        (4, 0, set()),  # a tenth of both sizes
        (7, 0, set()),  # 3 beyond it is less than half of the distance
        (9, 0, {"right of"}),  # 5 is more than half of 9
    ],
)
def test_relations_depend_on_offset_and_distance(x, y, expected):
    assert relations(thing("cat", 50 + x, 50 + y), thing("dog", 50, 50)) == expected


def test_select_takes_the_highest_scores_above_a_threshold():
    things = [thing("cat", 0, 0, score=score) for score in (0.5, 0.95, 0.3)]
    assert [one.score for one in select(things, CONFIDENCE)["cat"]] == [0.95, 0.5], "0.3 is not above 0.3"
    assert len(select(things, COUNTING_CONFIDENCE)["cat"]) == 1
    assert "cat" not in select([thing("cat", 0, 0, score=0.5)], COUNTING_CONFIDENCE)
    assert len(select([thing("cat", 0, 0, score=0.5 + i / 100) for i in range(20)], CONFIDENCE)["cat"]) == 16


def test_read_records_reads_the_file_of_the_benchmark(tmp_path):
    records = read_records(write_lines(tmp_path / "evaluation_metadata.jsonl", geneval_records()))
    assert len(records) == 553 == sum(TASKS.values())
    assert [record["tag"] for record in pick_records(records, 2)] == [task for task in TASKS for _ in range(2)]
    assert pick_records(records, None) == records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "99 prompts of color_attr, GenEval has 100"),
        (lambda lines: ["{", *lines[1:]], "line 1: no prompt of GenEval"),
        (lambda lines: [lines[0], "[]", *lines[2:]], "line 2: no prompt of GenEval"),
        (lambda lines: [json.dumps({"tag": "single_object", "prompt": "a cat"}), *lines[1:]], r"line 1.*include"),
        (lambda lines: [lines[0].replace("single_object", "double_object"), *lines[1:]], "line 1.*tag"),
        (lambda lines: [lines[0].replace('"count": 1', '"count": "one"'), *lines[1:]], "line 1.*count"),
        (lambda lines: [*lines[:-1], lines[-1].replace("blue", "teal")], "line 553.*color"),
        (lambda lines: [line.replace("left of", "near") for line in lines], "line 354.*position"),
    ],
)
def test_read_records_refuses_other_files(tmp_path, change, message):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(change([json.dumps(record) for record in geneval_records()])))
    with pytest.raises(ValueError, match=message):
        read_records(path)


def test_instance_detector_returns_the_instances_of_the_model(tmp_path):
    detector = InstanceDetector(save_detector(tmp_path / "detector", sees="mouse"), torch.device("cpu"))
    assert detector.names == ["cat", "dog", "computer mouse"]
    first, second = detector([Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")])
    for things in (first, second):
        assert len(things) == 5, "one for each query"
        assert {one.label for one in things} == {"computer mouse"} and things[0].score > 0.9
        assert things[0].box == (0, 0, 64, 64) and things[0].mask.shape == (64, 64) and things[0].mask.all()
    blind = InstanceDetector(save_detector(tmp_path / "blind", sees=None), torch.device("cpu"))
    assert blind([Image.new("RGB", (64, 64))]) == [[]]


def test_color_classifier_agrees_with_forward(tmp_path):
    classifier = ColorClassifier(save_color_model(tmp_path / "colors"), torch.device("cpu"))
    generator = np.random.default_rng(0)
    crops = [Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(6)]
    named = classifier.classify(crops, "cat")
    texts = [wording.format(color=color, label="cat") for color in COLORS for wording in COLOR_PROMPTS]
    inputs = classifier.processor(
        text=texts,
        images=crops,
        padding="max_length",
        max_length=classifier.length,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = classifier.model(**inputs)
    texts = output.text_embeds.unflatten(0, (len(COLORS), -1)).mean(1)
    texts = texts / texts.norm(dim=-1, keepdim=True)
    assert named == [COLORS[index] for index in (output.image_embeds @ texts.T).argmax(-1).tolist()]
    assert len(set(classifier.classify(crops, "dog")) | set(named)) > 1


def test_crop_thing_covers_all_outside_the_mask():
    scene = Scene(("cat", "red", 40, 20))
    crop = crop_thing(scene.image, scene.things[0])
    assert crop.size == (31, 31) and crop.getpixel((15, 15)) == (255, 0, 0) and crop.getpixel((0, 0)) == (153,) * 3
    assert crop_thing(scene.image, thing("cat", 40, 20, size=31)).getpixel((0, 0)) == (128,) * 3
