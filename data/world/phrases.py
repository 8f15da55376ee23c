"""Phrases about the world: articles, plurals, numbers, places, descriptions of scenes."""

from .icons import World
from .scenes import Scene, SceneObject, relation


NUMBERS = ("no", "one", "two", "three", "four")
BETWEEN = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
PLURAL_FORMS = frozenset({"scissors", "headphones", "glasses"})
_IRREGULAR = {"leaf": "leaves"}


def with_article(words: str) -> str:
    """Adds the article: `a red heart`, `an eye`, `red scissors`."""
    if words.rpartition(" ")[2] in PLURAL_FORMS:
        return words
    return ("an " if words[0] in "aeiou" else "a ") + words


def plural(name: str) -> str:
    """Forms the plural: `hearts`, `leaves`, `scissors`."""
    if name in PLURAL_FORMS:
        return name
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    return name + "es" if name.endswith(("s", "x", "ch", "sh")) else name + "s"


def with_count(number: int, color: str, name: str) -> str:
    """Adds the number: `a red heart`, `two red hearts`; an empty colour is left out."""
    words = f"{color} {name}".strip()
    if number == 1:
        return with_article(words)
    return f"{NUMBERS[number]} {color} {plural(name)}".replace("  ", " ")


def join_words(parts: list[str]) -> str:
    """Joins phrases: `a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def reading_order(scene: Scene) -> list[SceneObject]:
    """Sorts the objects by rows, the upper, middle and lower third of the canvas, and from left to right."""
    return sorted(scene.objects, key=lambda obj: (int(obj.center[1] * 3 // 64), obj.center[0]))


def describe_things(world: World, scene: Scene) -> str:
    """Describes the objects of a scene: `two red hearts`, `a red heart left of a blue star`."""
    kinds = scene.kinds
    if len(scene.objects) == 2 and len(kinds) == 2:
        first, second = scene.objects
        seen = relation(first, second)
        if seen is not None:
            parts = [with_article(f"{obj.color} {world.things[obj.thing].name}") for obj in (first, second)]
            return f"{parts[0]} {BETWEEN[seen]} {parts[1]}"
    order = list(dict.fromkeys((obj.thing, obj.color) for obj in reading_order(scene)))
    return join_words([with_count(kinds[kind], kind[1], world.things[kind[0]].name) for kind in order])


def describe(world: World, scene: Scene) -> str:
    """Describes a scene: `a red heart left of a blue star on a yellow background`."""
    return f"{describe_things(world, scene)} on {with_article(scene.background)} background"


def place_name(obj: SceneObject) -> str | None:
    """Names the part of the canvas that an object is in, `top left` to `bottom right`; None near a border between
    parts."""
    words = []
    for center, (low, high) in zip(reversed(obj.center), (("top", "bottom"), ("left", "right")), strict=True):
        if 22 <= center < 26 or 38 < center <= 42:
            return None
        words.append(low if center < 22 else high if center > 42 else "")
    return " ".join(word for word in words if word) or "center"
