"""Prompts determine their scenes: read anew, word by word, they give the same things in the same places."""

import random
import re
from collections import defaultdict

import pytest

from evotok.data.world.drawings import EMOJI_STYLES, NEW_EMOJI_STYLE
from evotok.data.world.palette import COLORS
from evotok.data.world.phrases import plural
from evotok.data.world.prompts import KINDS, TASKS, TRAIN_EMOJI_STYLES, Prompter, emoji_prompt
from evotok.data.world.scenes import SLOTS, TIDY_SIZE
from evotok.data.world.splits import INVERSE, is_new_color_pair, is_new_relation_pair


SAMPLES = 400  # of each kind
NUMBERS = {"two": 2, "three": 3, "four": 4}
BACKGROUNDS = (
    r"^(?P<things>.*) on an? (?P<color>\w+) background$",
    r"^an? (?P<color>\w+) background with (?P<things>.*)$",
)
NUMBER = {"two_object": 2, "color_attribution": 2, "position": 2, "position_background": 2, "three": 3, "four": 4}
ON_WHITE = ("single_object", "two_object", "counting", "position")


class Reader:
    """What a prompt stands for: (background, [(thing, colour, x, y), ...]) in the order of the slots."""

    def __init__(self, world):
        self.names = {thing.name: thing.index for thing in world.things}
        self.names |= {plural(thing.name): thing.index for thing in world.things}

    def read(self, text):
        text = re.sub(r"^(draw|a picture of) ", "", text)
        background = "white"
        for pattern in BACKGROUNDS:
            if found := re.match(pattern, text):
                background, text = found["color"], found["things"]
        if found := re.fullmatch(r"(.*) (left of|right of|above|below) (.*)", text):
            [first], [second], where = self.counted(found[1]), self.counted(found[3]), found[2].split()[0]
            subjects = [first, second] if where in ("left", "above") else [second, first]
            slots = [(y, x) if where in ("above", "below") else (x, y) for x, y in SLOTS[2]]
        else:
            subjects = [subject for part in re.split(r", | and ", text) for subject in self.counted(part)]
            slots = SLOTS[len(subjects)]
        return background, [(*subject, *slot) for subject, slot in zip(subjects, slots, strict=True)]

    def counted(self, words):
        *number, color, name = words.split()
        assert color in COLORS, words
        return [(self.names[name], color)] * (NUMBERS.get(number[0], 1) if number else 1)


@pytest.fixture(scope="module", params=[False, True], ids=["seen", "held out"])
def prompts(request, world):
    """(whether pairs are held out, prompts of every kind)."""
    prompter, rng = Prompter(world, held_out=request.param), random.Random(5)
    return request.param, [prompter.sample(rng, kind) for kind in KINDS for _ in range(SAMPLES)]


def test_the_words_give_the_scene(world, prompts):
    reader = Reader(world)
    for prompt in prompts[1]:
        background, items = reader.read(prompt.text)
        # Items of one kind in one colour look alike, so that their order says nothing.
        found = sorted((item.thing, item.color, item.x, item.y) for item in prompt.scene.items)
        assert (background, sorted(items)) == (prompt.scene.background, found), prompt.text
        for item in prompt.scene.items:
            assert (item.drawing, item.size) == (world.things[item.thing].canonical, TIDY_SIZE)


def test_one_text_has_one_scene(prompts):
    scenes = defaultdict(set)
    for prompt in prompts[1]:
        scenes[prompt.text].add((prompt.scene.background, frozenset(prompt.scene.items)))
    assert all(len(found) == 1 for found in scenes.values())


def test_pairs_are_held_out_or_all_of_them_seen(prompts):
    held_out, sampled = prompts
    for prompt in sampled:
        colors = {is_new_color_pair(item.thing, item.color) for item in prompt.scene.items}
        assert colors == {held_out}, prompt.text
        if prompt.kind.startswith("position"):
            first, second = prompt.scene.items
            seen = "above" if first.y != second.y else "left"
            new = is_new_relation_pair(first.thing, seen) or is_new_relation_pair(second.thing, INVERSE[seen])
            assert new == held_out, prompt.text


def test_kinds_are_what_they_are_called(prompts):
    by_kind = defaultdict(list)
    for prompt in prompts[1]:
        by_kind[prompt.kind].append(prompt)
        items, kinds = prompt.scene.items, prompt.scene.kinds
        if prompt.kind == "counting":
            assert len(kinds) == 1 and 2 <= len(items) <= 4
        else:
            assert len(items) == NUMBER.get(prompt.kind, 1)
        assert (prompt.kind in ON_WHITE) == (" background" not in prompt.text)
        assert prompt.kind not in ON_WHITE or prompt.scene.background == "white"
        assert all(item.color != prompt.scene.background for item in items)
    assert set(TASKS) < set(by_kind) == set(KINDS)
    assert {len(prompt.scene.items) for prompt in by_kind["counting"]} == {2, 3, 4}
    starts = [sum(p.text.startswith(start) for p in prompts[1]) for start in ("draw ", "a picture of ")]
    assert all(0.2 < count / len(prompts[1]) < 0.45 for count in starts)


def test_canonical_prompts_have_the_first_wording(world):
    prompter, rng = Prompter(world, canonical=True), random.Random(0)
    texts = [prompter.sample(rng, kind).text for kind in KINDS for _ in range(30)]
    assert not [text for text in texts if text.startswith(("draw ", "a picture of ")) or " background with " in text]
    with pytest.raises(ValueError, match="unknown kind 'five'"):
        prompter.sample(rng, "five")


def test_emoji_prompts_name_thing_and_style(world):
    rng = random.Random(0)
    assert NEW_EMOJI_STYLE not in TRAIN_EMOJI_STYLES
    assert set(TRAIN_EMOJI_STYLES) | {NEW_EMOJI_STYLE} == set(EMOJI_STYLES)
    heart = world.thing("heart").index
    assert emoji_prompt(world, rng, heart, "fluent_3d", canonical=True) == "a heart, fluent 3d style"
    texts = {emoji_prompt(world, rng, heart, "noto") for _ in range(50)}
    assert texts == {"a heart, noto style", "draw a heart in noto style", "noto emoji of a heart"}
    everything = {
        emoji_prompt(world, rng, thing.index, style, canonical=True) for thing in world.things for style in EMOJI_STYLES
    }
    assert len(everything) == len(world.things) * len(EMOJI_STYLES)
