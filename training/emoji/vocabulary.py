"""Two rules over the emoji concepts: which split a drawing belongs to, and which concepts are the familiar vocabulary.

Both are pure functions of the emojibase metadata, so that anyone can repeat them; `emoji.json` carries their texts.
"""

import hashlib
import re
from collections import deque
from typing import Any


STYLES = ("noto", "twemoji", "fluent_flat", "fluent_3d", "openmoji")
SPLITS = ("train", "new_pair", "new_concept", "new_style")

# Fluent flat and fluent 3D share their shapes, so that one without the other would leak the drawing.
PAIR_HOLDOUTS = (("noto",), ("twemoji",), ("fluent_flat", "fluent_3d"))

SPLIT_RULE = (
    "d = sha256 of the emojibase hexcode; u(i) = big-endian integer of the bytes 4i..4i+3 of d. "
    "u(0) / 2^32 < 0.10: the concept is new_concept, no drawing of it is trained on. "
    "Otherwise u(1) / 2^32 < 0.30: one choice u(2) mod 3 of {noto}, {twemoji}, {fluent_flat, fluent_3d} is new_pair. "
    "Every openmoji drawing is new_style, whatever its concept. Everything else is train."
)

FAMILIAR_QUOTAS = {
    "smileys & emotion": 24,
    "people & body": 18,
    "animals & nature": 38,
    "food & drink": 38,
    "travel & places": 24,
    "activities": 20,
    "objects": 26,
    "symbols": 12,
}

# Flags are in no group we keep; these subgroups hold letters in boxes, arrows, clock faces or near-copies of others.
_CROWDED_SUBGROUPS = frozenset(
    {"cat-face", "monkey-face", "hand-single-finger", "person-gesture", "person-activity", "person-resting", "family"}
    | {"keycap", "alphanum", "arrow", "zodiac", "av-symbol", "transport-sign", "currency", "punctuation", "gender"}
    | {"religion"}
)
# Yellow faces and hands resemble each other: their many subgroups take one turn each, so that other things have room.
_ONE_TURN = re.compile("face-(?!costume|negative)|hand")
# Words that several distinct pictures may share; any other word may occur in one familiar name only.
_SHARED_WORDS = frozenset(
    {"red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey"}
    | {"face", "heart", "hand", "hands", "circle", "square", "sign", "symbol", "ball", "baby"}
    | {"up", "down", "hot", "cold"}
)

FAMILIAR_RULE = (
    "Of the seen concepts without a zero-width joiner, outside crowded subgroups, whose label is letters only: "
    "one word of at most 10 letters, or two words of at most 10 letters each and 14 together. In each group the "
    "subgroups take turns in CLDR order (those of yellow faces and of hands only once) until the quota of the group is "
    "full; a subgroup offers one-word labels before "
    "two-word ones, those of at most 6 letters before longer ones, then CLDR order. A label that repeats a word of a "
    "label already taken is skipped, unless the word is a shared one (colours, face, heart, hand, circle, ...)."
)


def split_facts(hexcode: str) -> tuple[bool, tuple[str, ...]]:
    """`(is a new concept, styles held out as new_pair)` of a concept, by the hash of its hexcode (`SPLIT_RULE`)."""
    digest = hashlib.sha256(hexcode.encode("ascii")).digest()
    u = [int.from_bytes(digest[4 * i : 4 * i + 4], "big") for i in range(3)]
    if u[0] / 2**32 < 0.10:
        return True, ()
    if u[1] / 2**32 < 0.30:
        return False, PAIR_HOLDOUTS[u[2] % 3]
    return False, ()


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and len(word) > 3 else word


def _offer(concept: dict[str, Any]) -> tuple[int, bool] | None:
    """Sort key of a concept inside its subgroup, or None when its label is not short and common."""
    words = concept["name"].split()
    short = all(re.fullmatch("[a-z]{2,10}", word) for word in words) and len(concept["name"]) <= 15
    if concept["new_concept"] or "200D" in concept["hexcode"] or concept["subgroup"] in _CROWDED_SUBGROUPS:
        return None
    return (len(words), len(concept["name"]) > 6) if short and len(words) <= 2 else None


def familiar_hexcodes(concepts: list[dict[str, Any]]) -> set[str]:
    """Choose the familiar vocabulary (`FAMILIAR_RULE`) among concepts in CLDR order.

    Args:
        concepts: dicts with hexcode, name, group, subgroup, new_concept.
    """
    taken: set[str] = set()
    used_words: set[str] = set()
    for group, quota in FAMILIAR_QUOTAS.items():
        queues: dict[str, list[tuple[tuple[int, bool], int]]] = {}
        for index, concept in enumerate(concepts):
            key = _offer(concept) if concept["group"] == group else None
            if key is not None:
                queues.setdefault(concept["subgroup"], []).append((key, index))
        turns = deque(deque(index for _, index in sorted(queue)) for queue in queues.values())
        while quota and turns:
            queue = turns.popleft()
            while queue:
                concept = concepts[queue.popleft()]
                words = {_singular(w) for w in concept["name"].split() if w not in _SHARED_WORDS}
                if not words & used_words:
                    taken.add(concept["hexcode"])
                    used_words |= words
                    quota -= 1
                    if not _ONE_TURN.match(concept["subgroup"]):
                        turns.append(queue)
                    break
    return taken
