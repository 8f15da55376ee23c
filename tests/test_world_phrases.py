"""Phrases about the world: articles, plurals, lists, descriptions, places."""

from evotok.data.world.phrases import (
    describe,
    describe_things,
    join_words,
    place_name,
    plural,
    reading_order,
    with_article,
    with_count,
)
from evotok.data.world.scenes import Scene, SceneObject


def test_phrases_have_right_articles_plurals_and_counts(world):
    phrases = {"red heart": "a red heart", "eye": "an eye", "scissors": "scissors", "red glasses": "red glasses"}
    assert {words: with_article(words) for words in phrases} == phrases
    plurals = {"heart": "hearts", "leaf": "leaves", "flash": "flashes", "scissors": "scissors"}
    assert {name: plural(name) for name in plurals} == plurals
    words = [word for thing in world.things for word in {thing.name, plural(thing.name)}]
    assert len(words) == len(set(words)), "a plural is another thing"
    assert with_count(1, "red", "heart") == "a red heart" and with_count(3, "red", "heart") == "three red hearts"
    assert with_count(2, "", "leaf") == "two leaves" and with_count(1, "", "eye") == "an eye"
    assert [join_words(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


def scene(world, *objects, background="yellow"):
    placed = (SceneObject(world.thing(name).index, 0, color, x, y, 20) for name, color, x, y in objects)
    return Scene(background, tuple(placed))


def test_describe_names_relation_kinds_and_background(world):
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


def test_place_name_is_none_near_a_border():
    rows = [("top left", "top", "top right"), ("left", "center", "right"), ("bottom left", "bottom", "bottom right")]
    for y, names in zip((0, 22, 44), rows, strict=True):
        assert [place_name(SceneObject(0, 0, "red", x, y, 20)) for x in (0, 22, 44)] == list(names)
    assert place_name(SceneObject(0, 0, "red", 14, 22, 20)) is place_name(SceneObject(0, 0, "red", 22, 30, 20)) is None
