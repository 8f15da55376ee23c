"""Words and phrases about the world: articles, plurals, numbers, descriptions of scenes."""

from .drawings import World
from .scenes import Item, Scene, relation


NUMBERS = ("no", "one", "two", "three", "four")
BETWEEN = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
PLURAL_FORMS = frozenset({"scissors", "headphones", "glasses"})
_IRREGULAR = {"leaf": "leaves"}


def with_article(words: str) -> str:
    """`a red heart`, `an eye`, `scissors`, `red scissors`."""
    if words.rpartition(" ")[2] in PLURAL_FORMS:
        return words
    return ("an " if words[0] in "aeiou" else "a ") + words


def plural(name: str) -> str:
    """`hearts`, `leaves`, `scissors`."""
    if name in PLURAL_FORMS:
        return name
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    return name + "es" if name.endswith(("s", "x", "ch", "sh")) else name + "s"


def counted(number: int, color: str, name: str) -> str:
    """`a red heart`, `two red hearts`; an empty colour is left out."""
    words = f"{color} {name}".strip()
    if number == 1:
        return with_article(words)
    return f"{NUMBERS[number]} {color} {plural(name)}".replace("  ", " ")


def listed(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def reading_order(scene: Scene) -> list[Item]:
    """The items row by row, from left to right: rows are the upper, middle and lower third of their centres."""
    return sorted(scene.items, key=lambda item: (int(item.center[1] * 3 // 64), item.center[0]))


def describe_things(world: World, scene: Scene) -> str:
    """What a scene shows, without its background: `two red hearts`, `a red heart left of a blue star`."""
    kinds = scene.kinds
    if len(scene.items) == 2 and len(kinds) == 2:
        first, second = scene.items
        seen = relation(first, second)
        if seen is not None:
            parts = [with_article(f"{item.color} {world.things[item.thing].name}") for item in (first, second)]
            return f"{parts[0]} {BETWEEN[seen]} {parts[1]}"
    order = list(dict.fromkeys((item.thing, item.color) for item in reading_order(scene)))
    return listed([counted(kinds[kind], kind[1], world.things[kind[0]].name) for kind in order])


def describe(world: World, scene: Scene) -> str:
    """A full description: `a red heart left of a blue star on a yellow background`."""
    return f"{describe_things(world, scene)} on {with_article(scene.background)} background"


def place(item: Item) -> str | None:
    """Part of the canvas that an item is in: `top left`, `top`, ..., `center`; None near a border between two parts."""
    words = []
    for center, (low, high) in zip(reversed(item.center), (("top", "bottom"), ("left", "right")), strict=True):
        if 22 <= center < 26 or 38 < center <= 42:
            return None
        words.append(low if center < 22 else high if center > 42 else "")
    return " ".join(word for word in words if word) or "center"
