"""Scenes: held-out pairs, sampling, tidy scenes, rendering."""

import random

import numpy as np
import pytest

from evotok.data.world.palette import COLORS, PALETTE, nearest_color
from evotok.data.world.scenes import (
    CANVAS,
    INVERSE,
    PATCH,
    RELATIONS,
    SIZES,
    TIDY_SIZE,
    Scene,
    SceneObject,
    SceneSampler,
    has_held_out_pair,
    is_held_out_color,
    is_held_out_relation,
    relation,
    render,
    render_with_masks,
    scaled_mask,
    tidy_scene,
)


THINGS = 48


@pytest.fixture(scope="module")
def sampler(world):
    return SceneSampler(world, world.select("train"))


def overlap(a, b):
    return a.x < b.x + b.size and b.x < a.x + a.size and a.y < b.y + b.size and b.y < a.y + a.size


def test_held_out_pairs_are_one_in_eight_and_leave_something_of_everything():
    colors = [(t, c) for t in range(THINGS) for c in COLORS if is_held_out_color(t, c)]
    relations = [(t, r) for t in range(THINGS) for r in RELATIONS if is_held_out_relation(t, r)]
    assert len(colors) == pytest.approx(THINGS * 9 / 8, abs=2)
    assert len(relations) == pytest.approx(THINGS * 4 / 8, abs=2)
    for thing in range(THINGS):
        assert 1 <= sum(t == thing for t, _ in colors) <= 2 and sum(t == thing for t, _ in relations) <= 1
    assert all(4 <= sum(c == color for _, c in colors) <= 8 for color in COLORS)
    assert all(4 <= sum(r == name for _, r in relations) <= 8 for name in RELATIONS)


def test_has_held_out_pair_finds_colors_and_relations_of_either_object():
    thing = next(t for t in range(THINGS) if is_held_out_color(t, "red"))
    assert has_held_out_pair(Scene("white", (SceneObject(thing, 0, "red", 0, 0, 20),)))
    left, fine = (
        next(t for t in range(THINGS) if not is_held_out_color(t, "blue") and allowed(t))
        for allowed in (
            lambda t: is_held_out_relation(t, "left"),
            lambda t: not any(is_held_out_relation(t, r) for r in RELATIONS),
        )
    )
    for first, second in ((left, fine), (fine, left)):
        x = 0 if first == left else 40
        scene = Scene(
            "white", (SceneObject(first, 0, "blue", x, 20, 20), SceneObject(second, 0, "blue", 40 - x, 20, 20))
        )
        assert has_held_out_pair(scene)


def test_relation_is_clear_within_34_degrees_of_an_axis():
    item, rng = SceneObject(0, 0, "red", 22, 22, 20), random.Random(0)
    for _ in range(200):
        other = SceneObject(0, 0, "red", rng.randrange(44), rng.randrange(44), 20)
        (x, y), (u, v) = other.center, item.center
        if (x, y) == (u, v):
            continue
        angle = np.degrees(np.arctan2(y - v, x - u))
        axes = {"right": 0, "below": 90, "left": 180, "above": -90}
        limit = np.degrees(np.arctan(1 / 1.5))
        clear = [name for name, axis in axes.items() if abs((angle - axis + 180) % 360 - 180) <= limit + 1e-9]
        assert relation(other, item) == (clear[0] if clear else None)
        assert relation(item, other) == INVERSE.get(relation(other, item))


def test_sampler_free_keeps_objects_apart(sampler):
    rng = random.Random(0)
    scenes = [sampler.free(rng) for _ in range(1500)]
    for scene in scenes:
        low, high = SIZES[len(scene.objects)]
        for i, item in enumerate(scene.objects):
            assert item.icon in sampler.icons[item.thing] and low <= item.size <= high
            assert min(item.x, item.y) >= 0 and max(item.x, item.y) + item.size <= CANVAS
            assert not any(overlap(item, other) for other in scene.objects[:i])
        repeated = [item for item in scene.objects if scene.kinds[item.thing, item.color] > 1]
        assert len({(item.thing, item.icon) for item in repeated}) == len({item.thing for item in repeated})
    assert not any(map(has_held_out_pair, scenes))
    counts = [len(scene.objects) for scene in scenes]
    shares = [counts.count(n) / len(scenes) for n in (1, 2, 3, 4)]
    assert shares[0] > max(shares[1:3]) and min(shares[1:3]) > shares[3] > 0.08, "crowded ones are more often rejected"
    assert sum(max(scene.kinds.values()) > 1 for scene in scenes) > 0.1 * len(scenes)
    pairs = {(item.color, scene.background) for scene in scenes for item in scene.objects}
    assert {color for color, _ in pairs} == {background for _, background in pairs} == set(COLORS)
    assert not any(color == background for color, background in pairs)
    assert not pairs & {("blue", "purple"), ("purple", "blue")}, "not distinguished easily"
    pairs = [sampler.pair(rng).objects for _ in range(100)]
    assert all(first.thing != second.thing for first, second in pairs)
    assert {relation(*pair) for pair in pairs} == set(RELATIONS)


def test_tidy_scenes_are_canonical_and_on_the_grid_of_patches(world, sampler):
    rng = random.Random(2)
    for kinds, counts in ((1, None), (2, None), (3, None), (4, None), (1, (3,)), (2, (1, 2))):
        scene = sampler.tidy(rng, kinds, counts, upright=kinds == 2)
        assert len(scene.objects) == sum(counts or (1,) * kinds) and len(scene.kinds) == kinds
        for item in scene.objects:
            assert item.icon == world.things[item.thing].canonical and item.size == TIDY_SIZE
            assert item.x % PATCH == item.y % PATCH == 0
        assert not has_held_out_pair(scene)
    subjects = [(0, "red"), (1, "blue")]
    beside, upright = (tidy_scene(world, subjects, "white", upright) for upright in (False, True))
    assert relation(*beside.objects) == "left" and relation(*upright.objects) == "above"


def test_render_blends_colors_by_the_mask_and_fades_with_chroma(world):
    scene = Scene("blue", (SceneObject(0, world.things[0].canonical, "yellow", 16, 24, 32),))
    pixels, [mask] = render_with_masks(world, scene)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8 and mask.shape == (32, 32)
    assert (render(world, scene) == pixels).all() and (scaled_mask(world, 7, 64) == world.masks[7]).all()
    blue, yellow = (np.array(PALETTE[name], float) for name in ("blue", "yellow"))
    for chroma in (1.0, 0.5, 0.0):
        background, color = 255 + (blue - 255) * chroma, yellow * chroma
        expected = np.tile(background, (64, 64, 1))
        expected[24:56, 16:48] += mask[..., None] / 255 * (color - background)
        assert np.abs(render_with_masks(world, scene, chroma=chroma)[0] - expected).max() <= 0.51
    assert (mask == 255).sum() > 100 and ((mask > 0) & (mask < 255)).any()


def test_render_warp_stays_in_the_square_and_mirrors_half_of_the_objects(world):
    size, icon, mirrored = 44, world.things[2].canonical, 0  # an icon that is not symmetric
    scene = Scene("white", (SceneObject(2, icon, "black", 10, 10, size),))
    plain = scaled_mask(world, icon, size).astype(float)
    for seed in range(60):
        pixels, [mask] = render_with_masks(world, scene, random.Random(seed))
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert (border > 128).mean() < 0.35, "an object that is cut off has a long straight edge"
        assert 0.25 < mask.sum() / plain.sum() < 1.7
        assert (pixels[:10] == 255).all() and (pixels[54:] == 255).all()
        mirrored += np.abs(mask.astype(float) - plain[:, ::-1]).sum() < np.abs(mask.astype(float) - plain).sum()
    assert 10 < mirrored < 50
    assert render(world, scene, random.Random(7)).tobytes() == render(world, scene, random.Random(7)).tobytes()


def test_nearest_color_of_the_palette_is_itself():
    assert [COLORS[index] for index in nearest_color(list(PALETTE.values()))] == list(COLORS)
    assert COLORS[nearest_color([200, 60, 50])] == "red"
