"""Pairs that are held out from all training: a thing in a colour, and a thing as the subject of a relation.

Both rules are pure functions of indices. Every thing loses one or two of its nine colours, and at most one of its four
relations; every colour and every relation is seen with most things.
"""

from .palette import COLORS


RELATIONS = ("left", "right", "above", "below")
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_COLOR_RULE, _RELATION_RULE = 8, 8  # one pair in so many is held out


def is_new_color_pair(thing: int, color: str) -> bool:
    """Whether a thing in this colour is held out, one pair in eight."""
    return (3 * thing + COLORS.index(color)) % _COLOR_RULE == 0


def is_new_relation_pair(thing: int, relation: str) -> bool:
    """Whether a thing as the subject of this relation is held out, one pair in eight."""
    return (thing + thing // 8 + 2 * RELATIONS.index(relation)) % _RELATION_RULE == 0


def is_new_placement(first: int, second: int, relation: str) -> bool:
    """Whether either of two things is the subject of a held-out relation, where the first is `relation` the second."""
    return is_new_relation_pair(first, relation) or is_new_relation_pair(second, INVERSE[relation])
