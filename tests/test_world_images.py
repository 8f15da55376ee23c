"""Images of the world: for the tokenizer, and with labels for every patch for the vision tower."""

from collections import Counter

import numpy as np
import pytest
import torch

from evotok.data.world.images import (
    GRID,
    IGNORE,
    LabelledScenes,
    WorldImages,
    held_out_scenes,
    patch_labels,
    scene_pixels,
)
from evotok.data.world.palette import COLORS, PALETTE
from evotok.data.world.scenes import PATCH, Scene, SceneObject, render_with_masks


def test_world_images_depend_on_seed_and_index_only(world):
    first, longer = WorldImages(world, 10, seed=7), WorldImages(world, 500, seed=7)
    for index in (9, 0, 4):
        pixels = first[index]["pixel_values"]
        assert pixels.shape == (3, 64, 64) and pixels.dtype == torch.float32
        assert pixels.min() >= -1 and pixels.max() <= 1
        assert torch.equal(pixels, longer[index]["pixel_values"])
    assert not torch.equal(first[0]["pixel_values"], WorldImages(world, 10, seed=8)[0]["pixel_values"])
    with pytest.raises(ValueError, match="unknown kind 'photo' in the mixture: choose among scene, tidy, emoji"):
        WorldImages(world, 1, {"photo": 1.0})


def test_world_images_mix_kinds_by_weight(world, shown):
    tidy, mixed = (
        WorldImages(world, 60, {"tidy": 1.0}),
        WorldImages(world, 1000, {"scene": 0.7, "tidy": 0.2, "emoji": 0.1}),
    )
    for index in range(60):
        tidy[index]
    assert all(item.x % PATCH == 0 and item.size == 32 for scene in shown["scenes"] for item in scene.objects)
    assert {len(scene.objects) for scene in shown["scenes"]} == {1, 2, 3, 4}
    shown["scenes"].clear()
    for index in range(1000):
        mixed[index]
    assert 0.85 < len(shown["scenes"]) / 1000 < 0.95 and shown["emoji"]
    items = [item for scene in shown["scenes"] for item in scene.objects]
    assert all(world.icons[item.icon].thing == item.thing for item in items)
    assert len({item.thing for item in items}) == len(world.things)
    assert 0.02 < np.mean([not world.icons[item.icon].solid for item in items]) < 0.3, "line drawings are a small share"


def test_labelled_scenes_go_from_easy_to_hard(world, shown):
    """Large, black on white; then paler and stronger colours; then several objects. A pale colour is no label."""
    data = LabelledScenes(world, 1000, seed=1)
    parts = {}
    for name, part in {"plain": range(100), "fading": range(100, 300), "last": range(600, 1000)}.items():
        for noted in shown.values():
            noted.clear()
        labels = [data[index] for index in part]
        parts[name] = {kind: list(noted) for kind, noted in shown.items()} | {"labels": labels}
    plain, fading, last = parts["plain"], parts["fading"], parts["last"]
    assert set(plain["chroma"]) == {0.0} and not plain["emoji"]
    assert (
        {len(scene.objects) for scene in plain["scenes"]} == {len(scene.objects) for scene in fading["scenes"]} == {1}
    )
    assert min(scene.objects[0].size for scene in plain["scenes"]) >= 44
    assert all(world.icons[scene.objects[0].icon].solid for scene in plain["scenes"])
    for labels in plain["labels"]:
        assert labels["background"] == IGNORE and (labels["colors"][labels["things"] > 0] == IGNORE).all()
    assert 0 <= min(fading["chroma"]) < 0.1 and 0.5 < max(fading["chroma"]) < 0.7
    assert set(last["chroma"]) == {1.0} and last["emoji"]
    counts = Counter(len(scene.objects) for scene in last["scenes"])
    assert set(counts) == {1, 2, 3, 4} and 0.3 < counts[1] / counts.total() < 0.55
    assert all(labels["background"] >= 0 for labels in last["labels"])
    assert min(item.size for scene in last["scenes"] for item in scene.objects) < 28
    for noted in shown.values():
        noted.clear()
    data = LabelledScenes(world, 1000, seed=1, curriculum=False)
    for index in range(100):
        data[index]
    assert set(shown["chroma"]) == {1.0} and shown["emoji"], "without a curriculum all scenes are as the last ones"
    assert {len(scene.objects) for scene in shown["scenes"]} == {1, 2, 3, 4}


def test_patch_labels_require_coverage_of_a_twelfth():
    scene = Scene("blue", (SceneObject(3, 0, "red", 16, 24, 32), SceneObject(5, 1, "white", 49, 0, 7)))
    labels = patch_labels(scene, [np.full((32, 32), 255, np.uint8), np.full((7, 7), 255, np.uint8)])
    expected = np.zeros((GRID, GRID), int)
    expected[3:7, 2:6] = 4  # 32 pixels are 4 patches
    expected[0, 6] = 6
    assert (labels["things"].reshape(GRID, GRID) == expected).all()
    assert (labels["colors"].reshape(GRID, GRID) == np.select([expected == 4, expected == 6], [1, 9])).all()
    assert labels["background"] == COLORS.index("blue")
    assert sorted(map(tuple, np.argwhere(labels["centers"].reshape(GRID, GRID)))) == [(0, 6), (5, 4)]


def test_patch_labels_agree_with_the_pixels(world):
    checked = Counter()
    for scene in held_out_scenes(world, "train", 80, single=True):
        pixels, masks = render_with_masks(world, scene)
        labels, [item] = patch_labels(scene, masks), scene.objects
        patches = pixels.reshape(GRID, PATCH, GRID, PATCH, 3).swapaxes(1, 2).reshape(GRID * GRID, -1, 3).astype(float)
        background = np.array(PALETTE[scene.background], float)
        change = np.array(PALETTE[item.color]) - background
        coverage = ((patches - background) @ change / (change @ change)).mean(1)
        clear = abs(coverage - 0.08) > 0.01
        assert ((labels["things"] == item.thing + 1) == (coverage > 0.08))[clear].all()
        assert ((labels["colors"] == COLORS.index(item.color) + 1) == (coverage > 0.08))[clear].all()
        checked.update((coverage > 0.08)[clear].tolist())
    assert checked[True] > 500 and checked[False] > 500


def test_labelled_emoji_have_no_color_and_maybe_no_thing(world, shown):
    things, data = Counter(), LabelledScenes(world, 400, seed=2, curriculum=False)
    for index in range(400):
        count = len(shown["emoji"])
        labels = data[index]
        if len(shown["emoji"]) > count:
            assert (labels["colors"][labels["things"] != 0] == IGNORE).all()
            [thing] = set(labels["things"].tolist()) - {0}
            things[thing == IGNORE] += 1
    assert things[True] > 5 and things[False] > 5


def test_held_out_scenes_are_fixed_and_of_their_split(world):
    for split in ("val", "test"):
        scenes = held_out_scenes(world, split, 50)
        assert scenes == held_out_scenes(world, split, 50)
        assert {world.icons[item.icon].split for scene in scenes for item in scene.objects} == {split}
    single = held_out_scenes(world, "val", 30, single=True)
    assert all(len(scene.objects) == 1 and scene.objects[0].size >= 32 for scene in single)
    assert scene_pixels(world, single[:2]).shape == (2, 3, 64, 64)
