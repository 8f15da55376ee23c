"""GenEval's rules on scenes whose things are known, its file of prompts, and the networks it looks through."""

import json

import numpy as np
import pytest
import torch
from geneval_materials import geneval_records, save_color_model, save_detector, write_lines
from PIL import Image, ImageDraw

from evotok.eval.text_to_image.detectors import COLOR_PROMPTS, ColorClassifier, InstanceDetector, cut_out
from evotok.eval.text_to_image.geneval import (
    COLORS,
    CONFIDENCE,
    COUNTING_CONFIDENCE,
    TASKS,
    Thing,
    box_of,
    judge,
    pick,
    read_records,
    relations,
    scores,
    select,
)


SIDE = 128


def thing(label, x, y, size=20, score=0.95, mask=None):
    return Thing(label, score, (x, y, x + size, y + size), mask)


def clause(label, count=1, **more):
    return {"class": label, "count": count} | more


class Scene:
    """Disks of known colours on grey, as a picture and as the things that a perfect detector would find."""

    def __init__(self, *disks):
        self.picture, self.things = Image.new("RGB", (SIDE, SIDE), "gray"), []
        for label, color, x, y in disks:
            mask = Image.new("1", (SIDE, SIDE))
            ImageDraw.Draw(mask).ellipse((x, y, x + 30, y + 30), fill=1)
            self.picture.paste(Image.new("RGB", (SIDE, SIDE), color), mask=mask)
            mask = np.array(mask)
            self.things.append(Thing(label, 0.95, box_of(mask), mask))

    def colors_of(self, things):
        """The nearest colour to the middle of what is cut out."""
        middles = [np.array(cut_out(self.picture, one))[15, 15] for one in things]
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
        [clause("cat")],
        [clause("cat"), clause("dog")],
        [clause("bird", 2)],
        [clause("bird", 2, color="green")],
        [clause("cat", color="red"), clause("dog", color="blue")],
        [clause("cat"), clause("dog", position=["right of", 0])],
        [clause("dog"), clause("cat", position=["left of", 0])],
        [clause("dog"), clause("bird", position=["above", 0])],
    ],
)
def test_what_is_there_is_right(scene, include):
    assert scene.faults(*include) == []


@pytest.mark.parametrize(
    ("include", "fault"),
    [
        ([clause("cow")], "cow: 0 of 1"),
        ([clause("cat"), clause("cow")], "cow: 0 of 1"),
        ([clause("bird", 3)], "bird: 2 of 3"),
        ([clause("cat", color="blue")], "cat: red, not blue"),
        ([clause("bird", 2, color="red")], "bird: green, green, not red"),
        ([clause("dog"), clause("cat", position=["right of", 0])], "cat: not right of dog"),
        ([clause("dog"), clause("bird", 2, position=["above", 0])], "bird: not above dog"),  # the second is left of it
        ([clause("cow"), clause("cat", position=["left of", 0])], "cat: nothing to be left of"),
        ([clause("cat", color="blue"), clause("dog", position=["right of", 0])], "dog: nothing to be right of"),
    ],
)
def test_what_is_missing_is_named(scene, include, fault):
    assert scene.faults(*include)[-1] == fault


def test_colors_must_be_on_their_own_things(scene):
    swapped = [clause("cat", color="blue"), clause("dog", color="red")]
    assert scene.faults(*swapped) == ["cat: red, not blue", "dog: blue, not red"]


def test_more_than_asked_for_is_wrong_where_it_is_excluded(scene):
    assert scene.faults(clause("bird", 1)) == []
    assert scene.faults(clause("bird", 1), exclude=[clause("bird", 2)]) == ["bird: 2, not fewer than 2"]
    assert scene.faults(clause("bird", 2), exclude=[clause("bird", 3)]) == []


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (-40, 0, {"left of"}),
        (40, 0, {"right of"}),
        (0, -40, {"above"}),
        (0, 40, {"below"}),
        (-40, -40, {"left of", "above"}),
        (40, 40, {"right of", "below"}),
        (-40, 12, {"left of"}),
        (0, 0, set()),
        (4, 0, set()),  # a tenth of both sizes
        (7, 0, set()),  # 3 beyond it is less than half of the distance
        (9, 0, {"right of"}),  # 5 is more than half of 9
    ],
)
def test_relations(x, y, expected):
    assert relations(thing("cat", 50 + x, 50 + y), thing("dog", 50, 50)) == expected


def test_relations_follow_the_sizes():
    assert relations(thing("cat", 0, 50), thing("dog", 30, 50)) == {"left of"}
    assert relations(thing("cat", 0, 0, size=150), thing("dog", 80, 60, size=30)) == set()  # offset 20, sizes 180


def test_the_surest_things_count():
    sure = [thing("cat", x, 0, score=0.95) for x in (0, 30)]
    doubtful = [thing("cat", 60, 0, score=0.5), thing("cat", 90, 0, score=0.3)]
    assert len(select(sure + doubtful, CONFIDENCE)["cat"]) == 3, "0.3 is not above 0.3"
    assert len(select(sure + doubtful, COUNTING_CONFIDENCE)["cat"]) == 2
    assert "cat" not in select(doubtful, COUNTING_CONFIDENCE)
    assert select([*doubtful, *sure], CONFIDENCE)["cat"][0].score == 0.95
    assert len(select([thing("cat", 0, 0, score=0.5 + i / 100) for i in range(20)], CONFIDENCE)["cat"]) == 16


def test_only_the_surest_are_asked_for_their_color():
    asked = []

    def colors_of(things):
        asked.extend(things)
        return ["red" for _ in things]

    found = {"cat": [thing("cat", 0, 0, score=0.9), thing("cat", 50, 0, score=0.8)]}
    assert judge({"include": [clause("cat", color="red")]}, found, colors_of) == []
    assert [one.score for one in asked] == [0.9]


def test_overall_is_the_mean_of_tasks():
    shares = scores(["colors", "colors", "colors", "counting"], [True, True, False, False])
    assert shares == {"colors": pytest.approx(2 / 3), "counting": 0.0, "overall": pytest.approx(1 / 3)}


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_benchmarks_file(tmp_path):
    path = write_lines(tmp_path / "evaluation_metadata.jsonl", geneval_records())
    records = read_records(path)
    assert len(records) == 553 == sum(TASKS.values())
    few = pick(records, 2)
    assert [record["tag"] for record in few] == [task for task in TASKS for _ in range(2)]
    assert pick(records, None) == records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "99 prompts of color_attr, GenEval has 100"),
        (lambda lines: [*lines, lines[0]], "81 prompts of single_object"),
        (lambda lines: ["{", *lines[1:]], "line 1: no prompt of GenEval"),
        (lambda lines: [lines[0], "[]", *lines[2:]], "line 2: no prompt of GenEval"),
        (lambda lines: [json.dumps({"tag": "single_object", "prompt": "a cat"}), *lines[1:]], r"line 1.*include"),
        (lambda lines: [lines[0].replace("single_object", "double_object"), *lines[1:]], "line 1.*tag"),
        (lambda lines: [lines[0].replace('"count": 1', '"count": "one"'), *lines[1:]], "line 1.*count"),
        (lambda lines: [*lines[:-1], lines[-1].replace("blue", "teal")], "line 553.*color"),
        (lambda lines: [line.replace("left of", "near") for line in lines], "line 354.*position"),
    ],
)
def test_other_files_are_refused(tmp_path, change, message):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(change([json.dumps(record) for record in geneval_records()])))
    with pytest.raises(ValueError, match=message):
        read_records(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jsonl: no such file"):
        read_records(tmp_path / "none.jsonl")


# --- the networks ----------------------------------------------------------------------------------------------------


def test_mask2former_sees_what_it_is_rigged_to_see(tmp_path):
    detector = InstanceDetector(save_detector(tmp_path / "detector", sees="mouse"), torch.device("cpu"))
    assert detector.names == ["cat", "dog", "computer mouse"]
    first, second = detector([Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")])
    for things in (first, second):
        assert len(things) == 5, "one for each query"
        assert {one.label for one in things} == {"computer mouse"} and things[0].score > 0.9
        assert things[0].box == (0, 0, 64, 64) and things[0].mask.shape == (64, 64) and things[0].mask.all()
    blind = InstanceDetector(save_detector(tmp_path / "blind", sees=None), torch.device("cpu"))
    assert blind([Image.new("RGB", (64, 64))]) == [[]]


def test_colors_are_those_of_the_whole_model(tmp_path):
    """`ColorClassifier` runs the two towers apart; the model's own forward pass must name the same colours."""
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


def test_a_thing_is_cut_out_on_grey():
    scene = Scene(("cat", "red", 40, 20))
    crop = cut_out(scene.picture, scene.things[0])
    assert crop.size == (31, 31) and crop.getpixel((15, 15)) == (255, 0, 0) and crop.getpixel((0, 0)) == (153,) * 3
    bare = cut_out(scene.picture, thing("cat", 40, 20, size=31))
    assert bare.getpixel((0, 0)) == (128,) * 3
