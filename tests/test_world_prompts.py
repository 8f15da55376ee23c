"""Prompts determine their scenes: parsed word by word they give the same things in the same places."""

import random
import re
from collections import defaultdict

import pytest

from evotok.data.world.icons import EMOJI_STYLES
from evotok.data.world.palette import COLORS
from evotok.data.world.phrases import plural
from evotok.data.world.prompts import KINDS, TASKS, PromptSampler, emoji_prompt
from evotok.data.world.scenes import SLOTS, TIDY_SIZE, is_held_out_color, is_held_out_placement


SAMPLES = 300  # of each kind
NUMBERS = {"two": 2, "three": 3, "four": 4}
BACKGROUNDS = (
    r"^(?P<things>.*) on an? (?P<color>\w+) background$",
    r"^an? (?P<color>\w+) background with (?P<things>.*)$",
)
OBJECTS = {"two_object": 2, "color_attribution": 2, "position": 2, "position_background": 2, "three": 3, "four": 4}
ON_WHITE = ("single_object", "two_object", "counting", "position")


class Parser:
    """Parser of prompts: background and [(thing, colour, x, y), ...] in the order of the slots."""

    def __init__(self, world):
        self.names = {thing.name: thing.index for thing in world.things}
        self.names |= {plural(thing.name): thing.index for thing in world.things}

    def parse(self, text):
        text = re.sub(r"^(draw|a picture of) ", "", text)
        background = "white"
        for pattern in BACKGROUNDS:
            if found := re.match(pattern, text):
                background, text = found["color"], found["things"]
        if found := re.fullmatch(r"(.*) (left of|right of|above|below) (.*)", text):
            [first], [second], where = self.subjects(found[1]), self.subjects(found[3]), found[2].split()[0]
            subjects = [first, second] if where in ("left", "above") else [second, first]
            slots = [(y, x) if where in ("above", "below") else (x, y) for x, y in SLOTS[2]]
        else:
            subjects = [subject for part in re.split(r", | and ", text) for subject in self.subjects(part)]
            slots = SLOTS[len(subjects)]
        return background, [(*subject, *slot) for subject, slot in zip(subjects, slots, strict=True)]

    def subjects(self, words):
        *number, color, name = words.split()
        assert color in COLORS, words
        return [(self.names[name], color)] * (NUMBERS.get(number[0], 1) if number else 1)


@pytest.mark.parametrize("held_out", [False, True])
def test_prompts_determine_their_scenes(world, held_out):
    sampler, parser, rng = PromptSampler(world, held_out=held_out), Parser(world), random.Random(5)
    prompts = [sampler.sample(rng, kind) for kind in KINDS for _ in range(SAMPLES)]
    scenes, counting = defaultdict(set), set()
    for prompt in prompts:
        objects, background = prompt.scene.objects, prompt.scene.background
        # Objects of one kind look alike: their order is not in the text.
        found = sorted((item.thing, item.color, item.x, item.y) for item in objects)
        assert (background, found) == (parser.parse(prompt.text)[0], sorted(parser.parse(prompt.text)[1])), prompt.text
        scenes[prompt.text].add((background, frozenset(objects)))
        for item in objects:
            assert (item.icon, item.size) == (world.things[item.thing].canonical, TIDY_SIZE)
            assert is_held_out_color(item.thing, item.color) == held_out and item.color != background
        if prompt.kind.startswith("position"):
            first, second = objects
            seen = "above" if first.y != second.y else "left"
            assert is_held_out_placement(first.thing, second.thing, seen) == held_out, prompt.text
        if prompt.kind == "counting":
            assert len(prompt.scene.kinds) == 1
            counting.add(len(objects))
        else:
            assert len(objects) == OBJECTS.get(prompt.kind, 1)
        assert (prompt.kind in ON_WHITE) == (" background" not in prompt.text)
        assert prompt.kind not in ON_WHITE or background == "white"
    assert counting == {2, 3, 4} and set(TASKS) < set(KINDS)
    assert all(len(found) == 1 for found in scenes.values()), "one text has two scenes"
    for start in ("draw ", "a picture of "):
        assert 0.2 < sum(prompt.text.startswith(start) for prompt in prompts) / len(prompts) < 0.45


def test_canonical_prompts_have_the_first_wording(world):
    sampler, rng = PromptSampler(world, canonical=True), random.Random(0)
    texts = [sampler.sample(rng, kind).text for kind in KINDS for _ in range(20)]
    assert not [text for text in texts if text.startswith(("draw ", "a picture of ")) or " background with " in text]
    with pytest.raises(ValueError, match="unknown kind 'five'"):
        sampler.sample(rng, "five")


def test_emoji_prompts_name_thing_and_style(world):
    rng, heart = random.Random(0), world.thing("heart").index
    assert emoji_prompt(world, rng, heart, "fluent_3d", canonical=True) == "a heart, fluent 3d style"
    texts = {emoji_prompt(world, rng, heart, "noto") for _ in range(50)}
    assert texts == {"a heart, noto style", "draw a heart in noto style", "noto emoji of a heart"}
    distinct = {
        emoji_prompt(world, rng, t.index, style, canonical=True) for t in world.things for style in EMOJI_STYLES
    }
    assert len(distinct) == len(world.things) * len(EMOJI_STYLES)
