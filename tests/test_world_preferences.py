"""Wrong answers to questions about scenes: wrong, of the same kind, likely mistakes."""

import random

import pytest

from evotok.data.world.palette import COLORS
from evotok.data.world.preferences import WorldPreferences, wrong_answer
from evotok.data.world.questions import KINDS, YES_NO, Question
from evotok.data.world.scenes import RELATIONS, Scene, SceneObject, is_held_out_color


ROWS = 1500


def test_rejected_answers_are_wrong_and_of_the_same_kind(world, shown):
    pairs = {kind: set() for kind in KINDS}
    rows = WorldPreferences(world, ROWS, seed=3)
    for index in range(ROWS):
        row = rows[index]
        [answer] = row["messages"][-1]["content"]
        assert row["messages"][0]["content"][0] == {"type": "image"} and len(row["images"]) == 1
        pairs[row["kind"]].add((answer["text"], row["rejected"]))
    assert all(pairs.values()) and all(right != wrong for found in pairs.values() for right, wrong in found)
    wrong = {kind: {rejected for _, rejected in found} for kind, found in pairs.items()}
    assert set().union(*(pairs[kind] for kind in YES_NO)) == {("yes", "no"), ("no", "yes")}
    assert wrong["name"] | wrong["which"] <= {thing.name for thing in world.things}
    assert wrong["color"] == wrong["background"] == set(COLORS) and wrong["relation"] == set(RELATIONS)
    assert {abs(int(right) - int(bad)) for kind in ("count", "count_kind") for right, bad in pairs[kind]} == {1}
    assert wrong["count"] == {"1", "2", "3", "4"}
    places = {right for right, _ in pairs["place"]}
    assert len(places) == 9 and wrong["place"] <= places
    assert len(wrong["describe"]) > 50 and all(text.endswith(" background") for text in wrong["describe"])


def test_wrong_colors_and_things_are_of_no_held_out_pair(world):
    names, rng = [thing.name for thing in world.things], random.Random(1)
    for thing, name in enumerate(names):
        shown = next(color for color in COLORS if not is_held_out_color(thing, color))
        scene = Scene("white" if shown != "white" else "black", (SceneObject(thing, 0, shown, 0, 0, 20),))
        question = Question("color", f"Which color has the {name}?", shown)
        wrong = {wrong_answer(rng, world, scene, question) for _ in range(60)}
        assert len(wrong) > 4 and not any(is_held_out_color(thing, color) for color in wrong), name
        wrong = {wrong_answer(rng, world, scene, Question("which", f"What is {shown}?", name)) for _ in range(60)}
        assert len(wrong) > 9 and not any(is_held_out_color(names.index(other), shown) for other in wrong), name


def test_wrong_colors_are_often_elsewhere_in_the_scene(world):
    objects = tuple(SceneObject(thing, 0, color, 0, 0, 20) for thing, color in ((1, "red"), (2, "blue"), (3, "green")))
    scene, rng = Scene("white", objects), random.Random(0)
    question = Question("color", f"What color is the {world.things[1].name}?", "red")
    wrong = [wrong_answer(rng, world, scene, question) for _ in range(400)]
    near = sum(color in ("blue", "green", "white") for color in wrong) / 400
    assert 0.6 < near < 0.8 and "red" not in wrong  # one half, and three of eight of the other


def test_preferences_depend_on_seed_and_index_only(world, shown):
    first, again = WorldPreferences(world, 20, seed=5), WorldPreferences(world, 90, seed=5)
    for index in reversed(range(20)):
        assert [first[index][key] for key in ("messages", "rejected")] == [
            again[index][key] for key in ("messages", "rejected")
        ]
    assert {WorldPreferences(world, 9, {"name": 1.0})[i]["kind"] for i in range(9)} == {"name"}
    with pytest.raises(IndexError):
        first[20]
    with pytest.raises(ValueError, match="unknown kind 'names'"):
        WorldPreferences(world, 1, {"names": 1.0})
