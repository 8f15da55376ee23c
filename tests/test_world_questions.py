"""Questions: their answers are right by an independent parser of the questions."""

import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from evotok.data.world.palette import COLORS
from evotok.data.world.phrases import PLURAL_FORMS, plural
from evotok.data.world.questions import KINDS, WORDINGS, YES_NO, QuestionSampler, scene_as_text
from evotok.data.world.scenes import RELATIONS, Scene, SceneObject, SceneSampler, is_held_out_relation


NUMBERS = {"two": 2, "three": 3, "four": 4}
SCENES = 500


def yes(truth):
    return "yes" if truth else "no"


class Parser:
    """Parser of questions, which answers them from a scene by their words alone."""

    def __init__(self, world):
        self.names = [thing.name for thing in world.things]
        self.singular = {plural(name): name for name in self.names}
        color, is_the = f"({'|'.join(COLORS)})", "(?:is|are|has|have) the"
        self.patterns = {
            r"What is this\?|What does the picture show\?|Name this thing\.": lambda: self.only(self.shown),
            rf"(?:What|Which thing) is {color}\?": lambda color: self.only(
                n for n, i in self.objects if i.color == color
            ),
            r"What color is the background\?|Name the background color\.": lambda: self.scene.background,
            r"(?:How many|Count the) (\w+)(?: are there\?|\.)": lambda names: str(
                len(self.shown) if names == "things" else self.shown.count(self.singular[names])
            ),
            rf"(?:What|Which) color {is_the} (\w+)\?": lambda name: self.the(name).color,
            rf"Where {is_the} (\w+), relative to the (\w+)\?": self.direction,
            rf"On which side of the (\w+) {is_the} (\w+)\?": lambda other, name: self.direction(name, other),
            rf"(?:Where|In which part of the picture) {is_the} (\w+)\?": self.part,
            r"(?:Is there|Do you see) (?:an? )?(\w+)\?": lambda name: yes(name in self.shown),
            rf"Is the background {color}\?": lambda color: yes(self.scene.background == color),
            rf"(?:Is|Are) the (\w+) {color}\?": lambda name, color: yes(self.the(name).color == color),
            r"(?:Is|Are) the (\w+) (left|right|above|below)(?: of)? the (\w+)\?": lambda name, where, other: yes(
                self.direction(name, other) == where
            ),
            r"Are there (two|three|four) (\w+)\?": lambda number, names: yes(
                self.shown.count(self.singular[names]) == NUMBERS[number]
            ),
        }

    def answer(self, scene, text):
        self.scene, self.objects = scene, [(self.names[item.thing], item) for item in scene.objects]
        self.shown = [name for name, _ in self.objects]
        found = ((find, re.fullmatch(pattern, text)) for pattern, find in self.patterns.items())
        return next((find(*match.groups()) for find, match in found if match), None)

    def only(self, found):
        [one] = found
        return one

    def the(self, name):
        return self.only(item for other, item in self.objects if other == name)

    def direction(self, name, other):
        dx, dy = np.subtract(self.the(name).center, self.the(other).center)
        long, short = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
        assert long >= 1.5 * short, "no clear direction"
        return ("left" if dx < 0 else "right") if abs(dx) == long else ("above" if dy < 0 else "below")

    def part(self, name):
        x, y = (int(np.digitize(value, (24, 40))) for value in self.the(name).center)
        return f"{('top', '', 'bottom')[y]} {('left', '', 'right')[x]}".strip() or "center"


@pytest.fixture(scope="module")
def asked(world):
    """Returns (scene, question) of every kind that each scene allows, twice."""
    rng, sampler, questions = random.Random(0), SceneSampler(world, world.select("train")), QuestionSampler(world)
    scenes = [sampler.free(rng) if i % 3 else sampler.pair(rng) for i in range(SCENES)]
    return [(s, questions.sample(rng, s, kind)) for s in scenes for kind in questions.kinds(s) for _ in range(2)]


def test_answers_are_right_by_the_words_of_the_question(world, asked):
    parser, seen = Parser(world), Counter()
    for scene, question in asked:
        if question.kind != "describe":  # see test_world_phrases
            assert parser.answer(scene, question.text) == question.answer, (question, scene)
            seen[question.kind] += 1
    assert set(seen) == set(KINDS) - {"describe"} and min(seen.values()) >= 50, seen


def test_questions_have_every_wording_or_the_canonical_one(world, asked):
    texts = defaultdict(set)
    for _, question in asked:
        texts[question.kind].add(question.text)
    for kind, wordings in WORDINGS.items():
        for wording in wordings:
            assert any(text.startswith(wording.partition("{")[0]) for text in texts[kind]), (kind, wording)
    scene, rng = Scene("blue", (SceneObject(1, 0, "red", 0, 0, 30),)), random.Random(0)
    canonical = QuestionSampler(world, canonical=True)
    assert {canonical.sample(rng, scene, "name").text for _ in range(9)} == {"What is this?"}


def test_yes_and_no_are_balanced_or_chosen(world, asked):
    for kind in YES_NO:
        counts = Counter(question.answer for _, question in asked if question.kind == kind)
        assert 0.35 < counts["yes"] / counts.total() < 0.65, kind
    questions, rng = QuestionSampler(world), random.Random(1)
    for scene, _ in asked[:200:20]:
        for kind in set(questions.kinds(scene)) & set(YES_NO):
            assert [questions.sample(rng, scene, kind, truth).answer for truth in (True, False)] == ["yes", "no"]


def test_held_out_relations_are_neither_asked_nor_offered(world, asked):
    for _, question in asked:
        if question.kind == "yes_no_relation":
            found = re.search(r"the (\w+) (left|right|above|below)", question.text)
            assert not is_held_out_relation(world.thing(found[1]).index, found[2])
        if question.kind == "relation":
            name = re.search(r"(?:is|are) the (\w+)(?:,|\?)", question.text)[1]
            assert not is_held_out_relation(world.thing(name).index, question.answer) and question.answer in RELATIONS


def test_questions_agree_with_plural_names(world):
    name = next(thing.name for thing in world.things if thing.name in PLURAL_FORMS)
    scene = Scene("blue", (SceneObject(world.thing(name).index, 0, "red", 0, 0, 20),))
    questions, rng = QuestionSampler(world, canonical=True), random.Random(0)
    texts = [questions.sample(rng, scene, kind, True).text for kind in ("color", "yes_no_color", "yes_no_name")]
    assert texts == [f"What color are the {name}?", f"Are the {name} red?", f"Is there {name}?"]


def test_scene_as_text_has_colors_and_places(world):
    heart, star = (world.thing(name).index for name in ("heart", "star"))
    scene = Scene("blue", (SceneObject(heart, 0, "red", 0, 20, 24), SceneObject(star, 1, "white", 40, 20, 20)))
    assert scene_as_text(world, scene) == "blue background: red heart at 2 4, white star at 6 4"
