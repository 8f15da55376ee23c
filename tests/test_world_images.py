"""Images of the world: for the tokenizer, and with the labels that the vision tower learns at every patch."""

import random
from collections import Counter

import numpy as np
import pytest
import torch

from evotok.data.world import images
from evotok.data.world.drawings import NEW_EMOJI_STYLE
from evotok.data.world.images import (
    GRID,
    IGNORE,
    LabelledScenes,
    WorldImages,
    held_out_scenes,
    patch_labels,
    place_emoji,
    scene_pixels,
)
from evotok.data.world.palette import COLORS, PALETTE
from evotok.data.world.scenes import PATCH, Item, Scene, new_pairs, render_with_masks


SAMPLES = 3000


@pytest.fixture
def shown(monkeypatch):
    """Scenes and emoji that samples are made of; nothing is rendered, so that many may be drawn."""
    seen = {"scenes": [], "emoji": [], "chroma": []}
    nothing = np.zeros((64, 64, 3), np.uint8)

    def note(world, scene, warp=None):
        seen["scenes"].append(scene)
        return nothing

    def note_emoji(world, rng, emoji, style):
        seen["emoji"].append((emoji, style))
        return nothing, "red", (0, 0, 64), np.full((64, 64), 255, np.uint8)

    def note_with_masks(world, scene, warp=None, chroma=1.0):
        seen["chroma"].append(chroma)
        return note(world, scene), [np.full((item.size, item.size), 255, np.uint8) for item in scene.items]

    monkeypatch.setattr(images, "render", note)
    monkeypatch.setattr(images, "render_with_masks", note_with_masks)
    monkeypatch.setattr(images, "place_emoji", note_emoji)
    return seen


def test_tokenizer_images_show_nothing_that_is_held_out(world, shown):
    data = WorldImages(world, SAMPLES, {"scene": 0.7, "tidy": 0.2, "emoji": 0.1}, seed=4)
    for index in range(SAMPLES):
        data[index]
    assert 0.85 < len(shown["scenes"]) / SAMPLES < 0.95 and shown["emoji"]
    assert not any(new_pairs(scene) for scene in shown["scenes"])
    items = [item for scene in shown["scenes"] for item in scene.items]
    assert {world.drawings[item.drawing].split for item in items} == {"train"}
    assert all(world.drawings[item.drawing].thing == item.thing for item in items)
    assert len({item.thing for item in items}) == len(world.things)
    lines = [not world.drawings[item.drawing].solid for item in items]
    assert 0.02 < np.mean(lines) < 0.3, "line drawings teach it as well, but seldom"
    assert NEW_EMOJI_STYLE not in {style for _, style in shown["emoji"]}


def test_tokenizer_images_depend_on_seed_and_index_alone(world):
    first, longer = WorldImages(world, 10, seed=7), WorldImages(world, 500, seed=7)
    for index in (9, 0, 4):
        pixels = first[index]["pixel_values"]
        assert pixels.shape == (3, 64, 64) and pixels.dtype == torch.float32
        assert pixels.min() >= -1 and pixels.max() <= 1
        assert torch.equal(pixels, longer[index]["pixel_values"])
    assert not torch.equal(first[0]["pixel_values"], WorldImages(world, 10, seed=8)[0]["pixel_values"])
    with pytest.raises(ValueError, match="unknown kind 'photo'"):
        WorldImages(world, 1, {"photo": 1.0})


def test_the_mixture_weighs_kinds(world, shown):
    tidy = WorldImages(world, 60, {"tidy": 1.0})
    for index in range(60):
        tidy[index]
    assert all(item.x % PATCH == 0 and item.size == 32 for scene in shown["scenes"] for item in scene.items)
    assert {len(scene.items) for scene in shown["scenes"]} == {1, 2, 3, 4}


def test_labels_go_from_easy_to_hard(world, shown):
    """Large, black on white; then paler and stronger colours; then several: a tower that begins with colours learns no
    shapes. A colour too pale to have a name is no label."""
    data = LabelledScenes(world, 1000, seed=1)
    parts = {}
    for name, part in {"plain": range(100), "fading": range(100, 300), "last": range(600, 1000)}.items():
        for noted in shown.values():
            noted.clear()
        labels = [data[index] for index in part]
        parts[name] = {kind: list(noted) for kind, noted in shown.items()} | {"labels": labels}
    plain, fading, last = parts["plain"], parts["fading"], parts["last"]
    assert set(plain["chroma"]) == {0.0} and not plain["emoji"]
    assert {len(scene.items) for scene in plain["scenes"]} == {1}
    assert min(scene.items[0].size for scene in plain["scenes"]) >= 44
    assert all(world.drawings[scene.items[0].drawing].solid for scene in plain["scenes"])
    for labels in plain["labels"]:
        assert labels["background"] == IGNORE and (labels["colors"][labels["things"] > 0] == IGNORE).all()
    assert {len(scene.items) for scene in fading["scenes"]} == {1}
    assert 0 <= min(fading["chroma"]) < 0.1 and 0.5 < max(fading["chroma"]) < 0.7
    assert set(last["chroma"]) == {1.0} and last["emoji"]
    counts = Counter(len(scene.items) for scene in last["scenes"])
    assert set(counts) == {1, 2, 3, 4} and 0.3 < counts[1] / counts.total() < 0.55
    assert all(labels["background"] >= 0 for labels in last["labels"])
    assert min(item.size for scene in last["scenes"] for item in scene.items) < 28


def test_without_a_curriculum_all_samples_are_as_the_last_ones(world, shown):
    data = LabelledScenes(world, 1000, seed=1, curriculum=False)
    for index in range(100):
        data[index]
    assert set(shown["chroma"]) == {1.0}
    assert {len(scene.items) for scene in shown["scenes"]} == {1, 2, 3, 4} and shown["emoji"]


def test_no_labelled_scene_shows_what_is_held_out(world, shown):
    data = LabelledScenes(world, 10 * SAMPLES, seed=9)
    for index in range(0, 10 * SAMPLES, 10):
        data[index]
    items = [item for scene in shown["scenes"] for item in scene.items]
    assert {world.drawings[item.drawing].split for item in items} == {"train"}
    assert not any(new_pairs(scene) for scene in shown["scenes"])
    assert NEW_EMOJI_STYLE not in {style for _, style in shown["emoji"]}


def test_labels_are_where_the_things_are(world):
    """A square of 32 pixels covers 4 x 4 patches; of what it covers by less than a twelfth nothing is said."""
    scene = Scene("blue", (Item(3, 0, "red", 16, 24, 32), Item(5, 1, "white", 49, 0, 7)))
    labels = patch_labels(scene, [np.full((32, 32), 255, np.uint8), np.full((7, 7), 255, np.uint8)])
    things = labels["things"].reshape(GRID, GRID)
    expected = np.zeros((GRID, GRID), int)
    expected[3:7, 2:6] = 4
    expected[0, 6] = 6
    assert (things == expected).all()
    assert (labels["colors"].reshape(GRID, GRID) == np.select([expected == 4, expected == 6], [1, 9])).all()
    assert labels["background"] == COLORS.index("blue")
    assert sorted(map(tuple, np.argwhere(labels["centers"].reshape(GRID, GRID)))) == [(0, 6), (5, 4)]


def test_labels_agree_with_the_pixels(world):
    """The share of a patch that has an item's colour is seen in the image; from a twelfth on it is labelled."""
    checked = Counter()
    for scene in held_out_scenes(world, "train", 80):
        pixels, masks = render_with_masks(world, scene)
        labels = patch_labels(scene, masks)
        patches = pixels.reshape(GRID, PATCH, GRID, PATCH, 3).swapaxes(1, 2).reshape(GRID * GRID, -1, 3).astype(float)
        background = np.array(PALETTE[scene.background], float)
        for patch in range(GRID * GRID):
            row, column = divmod(patch, GRID)
            over = [
                item
                for item in scene.items
                if item.x < (column + 1) * PATCH and item.x + item.size > column * PATCH
                and item.y < (row + 1) * PATCH and item.y + item.size > row * PATCH
            ]  # fmt: skip
            if len(over) != 1:
                assert over or labels["things"][patch] == labels["colors"][patch] == 0
                continue
            change = np.array(PALETTE[over[0].color]) - background
            coverage = ((patches[patch] - background) @ change / (change @ change)).mean()
            if abs(coverage - 0.08) > 0.01:
                covered = coverage > 0.08
                expected = (over[0].thing + 1, COLORS.index(over[0].color) + 1) if covered else (0, 0)
                assert (labels["things"][patch], labels["colors"][patch]) == expected
                checked[covered] += 1
    assert checked[True] > 500 and checked[False] > 50


def test_of_emoji_only_the_thing_is_said_where_it_is_known(world):
    known, unknown = 0, 0
    data = LabelledScenes(world, 2000, seed=2, curriculum=False)
    for index in range(2000):
        rng = random.Random(f"2/{index}")  # whether an emoji comes out is decided first: only those are rendered
        rng.random()
        if rng.random() >= 0.06 or known + unknown > 40:
            continue
        labels = data[index]
        assert (labels["colors"][labels["things"] != 0] == IGNORE).all()
        things = set(labels["things"].tolist())
        if IGNORE in things:
            unknown += 1
            assert things <= {0, IGNORE}
        else:
            known += 1
            assert len(things - {0}) == 1
    assert known and unknown


def test_a_placed_emoji_lies_within_the_image(world):
    rng = random.Random(0)
    for _ in range(10):
        pixels, background, (x, y, size), mask = place_emoji(world, rng, 3, "noto")
        assert pixels.shape == (64, 64, 3) and mask.shape == (size, size) and 32 <= size <= 64
        assert background in COLORS and min(x, y) >= 0 and max(x, y) + size <= 64 and mask.max() == 255


def test_held_out_scenes_are_of_their_split_and_always_the_same(world):
    for split in ("val", "test"):
        scenes = held_out_scenes(world, split, 50)
        assert scenes == held_out_scenes(world, split, 50)
        assert {world.drawings[item.drawing].split for scene in scenes for item in scene.items} == {split}
    single = held_out_scenes(world, "val", 30, single=True)
    assert all(len(scene.items) == 1 and scene.items[0].size >= 32 for scene in single)
    assert scene_pixels(world, single[:2]).shape == (2, 3, 64, 64)
