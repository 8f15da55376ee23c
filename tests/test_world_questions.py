"""Questions: their answers are true of the scene, by reading the words of the question anew."""

import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from evotok.data.world.palette import COLORS
from evotok.data.world.phrases import PLURAL_FORMS, plural
from evotok.data.world.questions import KINDS, WORDINGS, YES_NO, Asker, scene_in_words
from evotok.data.world.scenes import Item, Scene, SceneSampler
from evotok.data.world.splits import RELATIONS, is_new_relation_pair


NUMBERS = {"two": 2, "three": 3, "four": 4}
SCENES = 500


class Reader:
    """Answers questions from a scene by their words alone; `None` is no question that is known."""

    def __init__(self, world):
        self.names = [thing.name for thing in world.things]
        self.singular = {plural(name): name for name in self.names}

    def answer(self, scene, text):
        shown = [(self.names[item.thing], item) for item in scene.items]
        for pattern, find in self.patterns():
            found = re.fullmatch(pattern, text)
            if found:
                return find(scene, shown, **found.groupdict())
        return None

    def patterns(self):
        thing, other, color = r"(?P<name>\w+)", r"(?P<other>\w+)", rf"(?P<color>{'|'.join(COLORS)})"
        is_the = r"(?:is|are) the"
        return [
            (r"What is this\?|What does the picture show\?|Name this thing\.", self.only),
            (rf"What is {color}\?|Which thing is (?P<same>{'|'.join(COLORS)})\?", self.of_color),
            (r"What color is the background\?|Name the background color\.", self.background),
            (r"How many things are there\?|Count the things\.", lambda scene, shown: str(len(shown))),
            (rf"How many {thing} are there\?|Count the (?P<same>\w+)\.", self.number),
            (rf"What color {is_the} {thing}\?|Which color (?:has|have) the (?P<same>\w+)\?", self.color),
            (rf"Where {is_the} {thing}, relative to the {other}\?", self.direction),
            (rf"On which side of the {other} {is_the} {thing}\?", self.direction),
            (rf"Where {is_the} {thing}\?|In which part of the picture {is_the} (?P<same>\w+)\?", self.part),
            (rf"Is there (?:an? )?{thing}\?|Do you see (?:an? )?(?P<same>\w+)\?", self.is_there),
            (rf"Is the background {color}\?", lambda scene, shown, color: yes(scene.background == color)),
            (rf"(?:Is|Are) the {thing} {color}\?", self.has_color),
            (rf"(?:Is|Are) the {thing} (?P<where>left of|right of|above|below) the {other}\?", self.is_where),
            (rf"Are there (?P<number>two|three|four) {thing}\?", self.are_there),
        ]

    def the(self, shown, name):
        [item] = [item for other, item in shown if other == name]
        return item

    def only(self, scene, shown):
        [(name, _)] = shown
        return name

    def of_color(self, scene, shown, color, same):
        [name] = [name for name, item in shown if item.color == (color or same)]
        return name

    def background(self, scene, shown):
        return scene.background

    def number(self, scene, shown, name, same):
        return str([other for other, _ in shown].count(self.singular[name or same]))

    def color(self, scene, shown, name, same):
        return self.the(shown, name or same).color

    def direction(self, scene, shown, name, other):
        dx, dy = np.subtract(self.the(shown, name).center, self.the(shown, other).center)
        long, short = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
        assert long >= 1.5 * short, "no clear direction"
        return ("left" if dx < 0 else "right") if abs(dx) == long else ("above" if dy < 0 else "below")

    def part(self, scene, shown, name, same):
        x, y = self.the(shown, name or same).center
        vertical, horizontal = (("top", "", "bottom")[int(np.digitize(y, (24, 40)))], "")
        horizontal = ("left", "", "right")[int(np.digitize(x, (24, 40)))]
        return f"{vertical} {horizontal}".strip() or "center"

    def is_there(self, scene, shown, name, same):
        return yes((name or same) in [other for other, _ in shown])

    def has_color(self, scene, shown, name, color):
        return yes(self.the(shown, name).color == color)

    def is_where(self, scene, shown, name, where, other):
        return yes(self.direction(scene, shown, name, other) == where.split()[0])

    def are_there(self, scene, shown, number, name):
        return yes([other for other, _ in shown].count(self.singular[name]) == NUMBERS[number])


def yes(truth):
    return "yes" if truth else "no"


@pytest.fixture(scope="module")
def asked(world):
    """(scene, question) of every kind that each scene allows, twice."""
    rng, sampler, asker = random.Random(0), SceneSampler(world, world.select("train")), Asker(world)
    scenes = [sampler.free(rng) if i % 3 else sampler.pair(rng) for i in range(SCENES)]
    return [(scene, asker.ask(rng, scene, kind)) for scene in scenes for kind in asker.kinds(scene) for _ in range(2)]


def test_answers_are_true_of_the_scene(world, asked):
    reader, seen = Reader(world), Counter()
    for scene, question in asked:
        if question.kind != "describe":  # read in the tests of phrases
            assert reader.answer(scene, question.text) == question.answer, (question, scene)
            seen[question.kind] += 1
    assert set(seen) == set(KINDS) - {"describe"} and min(seen.values()) >= 50, seen


def test_every_wording_is_used_and_the_first_one_in_evaluation(world, asked):
    starts = {kind: [wording.partition("{")[0] for wording in wordings] for kind, wordings in WORDINGS.items()}
    texts = defaultdict(set)
    for _, question in asked:
        texts[question.kind].add(question.text)
    for kind, wordings in starts.items():
        for start in wordings:
            assert any(text.startswith(start) for text in texts[kind]), (kind, start)
    scene, rng = Scene("blue", (Item(1, 0, "red", 0, 0, 30),)), random.Random(0)
    canonical = Asker(world, canonical=True)
    assert {canonical.ask(rng, scene, "name").text for _ in range(9)} == {"What is this?"}


def test_yes_and_no_are_balanced_and_may_be_asked_for(world, asked):
    answers = {kind: Counter(question.answer for _, question in asked if question.kind == kind) for kind in YES_NO}
    for kind, counts in answers.items():
        assert 0.35 < counts["yes"] / counts.total() < 0.65, kind
    asker, rng = Asker(world), random.Random(1)
    for scene, _ in asked[:200:20]:
        for kind in set(asker.kinds(scene)) & set(YES_NO):
            assert [asker.ask(rng, scene, kind, truth).answer for truth in (True, False)] == ["yes", "no"]


def test_relations_that_are_held_out_are_not_asked_about(world, asked):
    """Nor is a held-out relation offered as a wrong one."""
    names = {thing.name: thing.index for thing in world.things}
    for _, question in asked:
        if question.kind == "yes_no_relation":
            found = re.search(r"the (\w+) (left|right|above|below)", question.text)
            assert not is_new_relation_pair(names[found[1]], found[2])
        if question.kind == "relation":
            name = re.search(r"(?:is|are) the (\w+)(?:,|\?)", question.text)[1]
            assert not is_new_relation_pair(names[name], question.answer) and question.answer in RELATIONS


def test_grammar_agrees_with_names_that_are_plural(world):
    name = next(thing.name for thing in world.things if thing.name in PLURAL_FORMS)
    scene = Scene("blue", (Item(world.thing(name).index, 0, "red", 0, 0, 20),))
    asker, rng = Asker(world, canonical=True), random.Random(0)
    assert asker.ask(rng, scene, "color").text == f"What color are the {name}?"
    assert asker.ask(rng, scene, "yes_no_color", True).text == f"Are the {name} red?"
    assert asker.ask(rng, scene, "yes_no_name", True).text == f"Is there {name}?"


def test_a_scene_in_words_has_all_that_is_asked_about(world):
    heart, star = (world.thing(name).index for name in ("heart", "star"))
    scene = Scene("blue", (Item(heart, 0, "red", 0, 20, 24), Item(star, 1, "white", 40, 20, 20)))
    assert scene_in_words(world, scene) == "blue background: red heart at 2 4, white star at 6 4"
