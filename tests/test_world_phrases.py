"""Words about the world: articles, plurals, lists, descriptions, places."""

import pytest

from evotok.data.world.phrases import (
    counted,
    describe,
    describe_things,
    listed,
    place,
    plural,
    reading_order,
    with_article,
)
from evotok.data.world.scenes import Item, Scene


def test_articles_and_plurals(world):
    assert [with_article(words) for words in ("red heart", "eye", "orange bell", "scissors", "red glasses")] == [
        "a red heart", "an eye", "an orange bell", "scissors", "red glasses",
    ]  # fmt: skip
    assert [plural(name) for name in ("heart", "leaf", "eye", "flash", "scissors")] == [
        "hearts", "leaves", "eyes", "flashes", "scissors",
    ]  # fmt: skip
    words = [word for thing in world.things for word in {thing.name, plural(thing.name)}]
    assert len(words) == len(set(words)), "no plural is another thing"


def test_numbers_and_lists():
    assert counted(1, "red", "heart") == "a red heart" and counted(3, "red", "heart") == "three red hearts"
    assert counted(2, "", "leaf") == "two leaves" and counted(1, "", "eye") == "an eye"
    assert [listed(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


def scene(world, *items, background="yellow"):
    placed = (Item(world.thing(name).index, 0, color, x, y, 20) for name, color, x, y in items)
    return Scene(background, tuple(placed))


def test_descriptions(world):
    one = scene(world, ("heart", "red", 10, 10))
    assert describe(world, one) == "a red heart on a yellow background"
    beside = scene(world, ("heart", "red", 0, 20), ("star", "blue", 40, 22))
    assert describe(world, beside) == "a red heart left of a blue star on a yellow background"
    above = scene(world, ("star", "blue", 22, 0), ("heart", "red", 20, 40), background="orange")
    assert describe(world, above) == "a blue star above a red heart on an orange background"
    assert describe_things(world, scene(world, ("heart", "red", 0, 0), ("heart", "red", 40, 0))) == "two red hearts"
    diagonal = scene(world, ("heart", "red", 40, 40), ("star", "blue", 0, 0))
    assert describe_things(world, diagonal) == "a blue star and a red heart"
    many = scene(
        world, ("bell", "pink", 40, 40), ("heart", "red", 40, 0), ("star", "blue", 0, 2), ("bell", "pink", 0, 40)
    )
    assert describe_things(world, many) == "a blue star, a red heart and two pink bells"
    assert [item.x for item in reading_order(many)] == [0, 40, 0, 40]


@pytest.mark.parametrize(
    ("x", "y", "size", "words"),
    [
        (0, 0, 20, "top left"), (22, 0, 20, "top"), (44, 0, 20, "top right"), (0, 22, 20, "left"),
        (22, 22, 20, "center"), (44, 44, 20, "bottom right"), (22, 44, 20, "bottom"), (44, 22, 20, "right"),
        (14, 22, 20, None), (22, 30, 20, None),
    ],
)  # fmt: skip
def test_places(x, y, size, words):
    assert place(Item(0, 0, "red", x, y, size)) == words
