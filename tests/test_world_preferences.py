"""Wrong answers to questions about scenes: wrong, of the same kind, likely mistakes."""

import random

import pytest

from evotok.data.world.palette import COLORS
from evotok.data.world.preferences import WorldPreferences, wrong_answer
from evotok.data.world.questions import KINDS, YES_NO, Question
from evotok.data.world.scenes import Item, Scene, is_held_out_color


COUNT = 1500


@pytest.fixture(scope="module")
def pairs(world):
    """(right, rejected) by kind of question."""
    found = {kind: set() for kind in KINDS}
    records = WorldPreferences(world, COUNT, seed=3)
    for index in range(COUNT):
        record = records[index]
        [answer] = record["messages"][-1]["content"]
        assert record["messages"][0]["content"][0] == {"type": "image"} and len(record["images"]) == 1
        found[record["kind"]].add((answer["text"], record["rejected"]))
    return found


def test_every_kind_is_asked_and_every_rejected_answer_is_wrong(pairs):
    assert all(pairs.values())
    assert all(right != wrong for answers in pairs.values() for right, wrong in answers)


def test_rejected_answers_are_of_the_kind_of_the_right_one(world, pairs):
    names = {thing.name for thing in world.things}
    assert set().union(*(pairs[kind] for kind in YES_NO)) == {("yes", "no"), ("no", "yes")}
    for kind in ("name", "which"):
        assert {wrong for _, wrong in pairs[kind]} <= names
    for kind in ("color", "background"):
        assert {wrong for _, wrong in pairs[kind]} == set(COLORS)
    assert {abs(int(right) - int(wrong)) for kind in ("count", "count_kind") for right, wrong in pairs[kind]} == {1}
    assert {wrong for _, wrong in pairs["count"]} == {"1", "2", "3", "4"}
    assert {wrong for _, wrong in pairs["relation"]} == {"left", "right", "above", "below"}
    places = {right for right, _ in pairs["place"]}
    assert len(places) == 9 and {wrong for _, wrong in pairs["place"]} <= places
    assert all(wrong.endswith(" background") for _, wrong in pairs["describe"])


def test_wrong_descriptions_tell_of_no_pair_that_is_held_out(world, pairs):
    held_out = {
        f"{color} {thing.name} " for thing in world.things for color in COLORS if is_held_out_color(thing.index, color)
    }
    told = [wrong.replace(",", " ") for _, wrong in pairs["describe"]]
    assert len(told) > 50 and not [text for text in told if any(pair in text for pair in held_out)]


def test_wrong_colors_and_things_are_of_no_pair_that_is_held_out(world):
    names, rng = [thing.name for thing in world.things], random.Random(1)
    for thing, name in enumerate(names):
        shown = next(color for color in COLORS if not is_held_out_color(thing, color))
        scene = Scene("white" if shown != "white" else "black", (Item(thing, 0, shown, 0, 0, 20),))
        question = Question("color", f"Which color has the {name}?", shown)
        wrong = {wrong_answer(rng, world, scene, question) for _ in range(60)}
        assert len(wrong) > 4 and not any(is_held_out_color(thing, color) for color in wrong), name
        wrong = {wrong_answer(rng, world, scene, Question("which", f"What is {shown}?", name)) for _ in range(60)}
        assert len(wrong) > 9 and not any(is_held_out_color(names.index(other), shown) for other in wrong), name


def test_half_of_the_wrong_colors_are_elsewhere_in_the_scene(world):
    items = tuple(Item(thing, 0, color, 0, 0, 20) for thing, color in ((1, "red"), (2, "blue"), (3, "green")))
    scene, rng = Scene("white", items), random.Random(0)
    question = Question("color", f"What color is the {world.things[1].name}?", "red")
    wrong = [wrong_answer(rng, world, scene, question) for _ in range(400)]
    near = sum(color in ("blue", "green", "white") for color in wrong) / 400
    assert 0.6 < near < 0.8 and "red" not in wrong  # one half, and three of eight of the other


def test_records_depend_on_seed_and_index_alone(world):
    first, longer = WorldPreferences(world, 20, seed=5), WorldPreferences(world, 90, {"name": 1.0}, seed=5)
    again = WorldPreferences(world, 90, seed=5)
    told = [(first[i]["messages"], first[i]["rejected"]) for i in range(20)]
    assert told == [(again[i]["messages"], again[i]["rejected"]) for i in range(20)]
    assert {longer[i]["kind"] for i in range(20)} == {"name"} and len(longer) == 90
    with pytest.raises(IndexError):
        first[20]
    with pytest.raises(ValueError, match="unknown kind 'names'"):
        WorldPreferences(world, 1, {"names": 1.0})
    with pytest.raises(ValueError, match="weights of the mixture"):
        WorldPreferences(world, 1, {"name": 0.0})
