"""Held-out pairs: how many there are, and that every thing, colour and relation is seen without them."""

import pytest

from evotok.data.world.palette import COLORS, PALETTE, nearest_color
from evotok.data.world.splits import INVERSE, RELATIONS, is_new_color_pair, is_new_relation_pair


THINGS = 48


def test_one_pair_in_eight_is_held_out():
    colors = [(t, c) for t in range(THINGS) for c in COLORS if is_new_color_pair(t, c)]
    relations = [(t, r) for t in range(THINGS) for r in RELATIONS if is_new_relation_pair(t, r)]
    assert len(colors) == pytest.approx(THINGS * 9 / 8, abs=2)
    assert len(relations) == pytest.approx(THINGS * 4 / 8, abs=2)
    for thing in range(THINGS):
        assert 1 <= sum(t == thing for t, _ in colors) <= 2 and sum(t == thing for t, _ in relations) <= 1
    for color in COLORS:
        assert 4 <= sum(c == color for _, c in colors) <= 8
    for relation in RELATIONS:
        assert 4 <= sum(r == relation for _, r in relations) <= 8


def test_every_relation_has_its_inverse():
    assert all(INVERSE[INVERSE[r]] == r != INVERSE[r] for r in RELATIONS)


def test_colors_are_their_own_nearest():
    assert [COLORS[index] for index in nearest_color(list(PALETTE.values()))] == list(COLORS)
    assert COLORS[nearest_color([200, 60, 50])] == "red"
