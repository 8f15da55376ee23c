"""Scenes: what is sampled, what is held out, where tidy ones put their things, and what is rendered."""

import random

import numpy as np
import pytest

from evotok.data.world.palette import COLORS, PALETTE
from evotok.data.world.scenes import (
    CANVAS,
    PATCH,
    SIZES,
    SLOTS,
    TIDY_SIZE,
    Item,
    Scene,
    SceneSampler,
    new_pairs,
    relation,
    render,
    render_with_masks,
    scaled_mask,
    tidy_scene,
)
from evotok.data.world.splits import INVERSE, is_new_color_pair, is_new_relation_pair


SAMPLES = 2000


@pytest.fixture(scope="module")
def sampler(world):
    return SceneSampler(world, world.select("train"))


def overlap(a, b):
    return a.x < b.x + b.size and b.x < a.x + a.size and a.y < b.y + b.size and b.y < a.y + a.size


def check(scene, drawings):
    assert 1 <= len(scene.items) <= 4
    for i, item in enumerate(scene.items):
        assert item.drawing in drawings[item.thing]
        assert min(item.x, item.y) >= 0 and max(item.x, item.y) + item.size <= CANVAS
        assert item.color != scene.background
        assert not is_new_color_pair(item.thing, item.color)
        assert not any(overlap(item, other) for other in scene.items[:i])


def relation_by_angle(first, second):
    """Another way to say it: the direction within about 34 degrees of an axis."""
    (x, y), (u, v) = first.center, second.center
    angle = np.degrees(np.arctan2(y - v, x - u))
    for name, axis in (("right", 0), ("below", 90), ("left", 180), ("above", -90)):
        if abs((angle - axis + 180) % 360 - 180) <= np.degrees(np.arctan(1 / 1.5)):
            return name
    return None


def test_free_scenes_are_apart_inside_and_without_held_out_pairs(sampler):
    rng, counts, same = random.Random(0), [], 0
    for _ in range(SAMPLES):
        scene = sampler.free(rng)
        check(scene, sampler.drawings)
        low, high = SIZES[len(scene.items)]
        assert all(low <= item.size <= high for item in scene.items)
        if len(scene.items) == 2 and scene.items[0].thing != scene.items[1].thing:
            seen = relation(*scene.items)
            if seen:
                assert not is_new_relation_pair(scene.items[0].thing, seen)
                assert not is_new_relation_pair(scene.items[1].thing, INVERSE[seen])
        counts.append(len(scene.items))
        same += max(scene.kinds.values()) > 1
        repeated = [item for item in scene.items if scene.kinds[item.thing, item.color] > 1]
        assert len({(item.thing, item.drawing) for item in repeated}) == len({item.thing for item in repeated})
    shares = [counts.count(n) / SAMPLES for n in (1, 2, 3, 4)]
    assert shares[0] > max(shares[1:3]) and min(shares[1:3]) > shares[3] > 0.08, "crowded ones are more often rejected"
    assert same > 0.1 * SAMPLES


def test_pairs_stand_in_a_clear_relation(sampler):
    rng, seen = random.Random(1), set()
    for _ in range(200):
        scene = sampler.pair(rng)
        check(scene, sampler.drawings)
        first, second = scene.items
        assert first.thing != second.thing and relation(first, second) == relation_by_angle(first, second)
        seen.add(relation(first, second))
        assert relation(second, first) == INVERSE[relation(first, second)]
    assert seen == {"left", "right", "above", "below"}


def test_no_relation_is_clear_on_a_diagonal():
    item = Item(0, 0, "red", 0, 0, 20)
    assert relation(item, Item(0, 0, "red", 40, 40, 20)) is None
    assert relation(item, Item(0, 0, "red", 40, 20, 20)) == "left"


def test_held_out_pairs_are_found():
    thing = next(t for t in range(48) if is_new_color_pair(t, "red"))
    other = next(t for t in range(48) if not is_new_color_pair(t, "blue") and is_new_relation_pair(t, "left"))
    fine = next(
        t
        for t in range(48)
        if t != other and not is_new_color_pair(t, "blue") and not any(is_new_relation_pair(t, r) for r in INVERSE)
    )
    assert new_pairs(Scene("white", (Item(thing, 0, "red", 0, 0, 20),)))
    assert new_pairs(Scene("white", (Item(other, 0, "blue", 0, 20, 20), Item(fine, 0, "blue", 40, 20, 20))))
    assert new_pairs(Scene("white", (Item(fine, 0, "blue", 40, 20, 20), Item(other, 0, "blue", 0, 20, 20))))


def test_tidy_scenes_are_canonical_and_on_the_lattice(world, sampler):
    rng = random.Random(2)
    for kinds, counts in ((1, None), (2, None), (3, None), (4, None), (1, (3,)), (2, (1, 2))):
        for upright in (False, True):
            scene = sampler.tidy(rng, kinds, counts, upright)
            assert len(scene.items) == sum(counts or (1,) * kinds) and len(scene.kinds) == kinds
            assert all(item.drawing == world.things[item.thing].canonical for item in scene.items)
            assert all(item.size == TIDY_SIZE and item.x % PATCH == item.y % PATCH == 0 for item in scene.items)
            assert not new_pairs(scene)
    assert all(number == len(slots) for number, slots in SLOTS.items())
    subjects = [(0, "red"), (1, "blue")]
    beside, upright = (tidy_scene(world, subjects, "white", upright) for upright in (False, True))
    assert relation(*beside.items) == "left" and relation(*upright.items) == "above"


def test_colors_stand_out_from_the_background(sampler):
    rng = random.Random(3)
    pairs = {(item.color, s.background) for s in (sampler.free(rng) for _ in range(600)) for item in s.items}
    assert not pairs & {("blue", "purple"), ("purple", "blue")} and len(pairs) > 60


def test_a_scene_is_rendered_in_its_colors(world):
    thing = world.things[0]
    scene = Scene("blue", (Item(0, thing.canonical, "yellow", 16, 24, 32),))
    pixels, [mask] = render_with_masks(world, scene)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8 and mask.shape == (32, 32)
    inside = np.zeros((64, 64), bool)
    inside[24:56, 16:48] = True
    assert (pixels[~inside] == PALETTE["blue"]).all()
    region = pixels[24:56, 16:48]
    assert (region[mask == 255] == PALETTE["yellow"]).all() and (region[mask == 0] == PALETTE["blue"]).all()
    assert (mask == 255).sum() > 100
    half = np.abs(mask.astype(int) - 128) < 30
    expected = np.array(PALETTE["blue"]) + mask[half][:, None] / 255 * np.subtract(PALETTE["yellow"], PALETTE["blue"])
    assert np.abs(region[half] - expected).max() <= 0.51
    assert (render(world, scene) == pixels).all()
    assert scaled_mask(world, thing.canonical, 64).tolist() == world.masks[thing.canonical].tolist()


def test_colors_fade_in_from_black_on_white(world):
    scene = Scene("blue", (Item(0, world.things[0].canonical, "yellow", 16, 24, 32),))
    strong, _ = render_with_masks(world, scene)
    none, [mask] = render_with_masks(world, scene, chroma=0.0)
    half, _ = render_with_masks(world, scene, chroma=0.5)
    assert (none[24:56, 16:48][mask == 255] == 0).all() and (none[:24] == 255).all()
    assert np.abs(half[0, 0] - (np.array(PALETTE["blue"]) + 255) / 2).max() <= 0.5
    assert np.abs(half[24:56, 16:48][mask == 255] - np.array(PALETTE["yellow"]) / 2).max() <= 0.5
    assert (render_with_masks(world, scene, chroma=1.0)[0] == strong).all()


def test_a_warped_thing_stays_in_its_square_and_is_like_itself(world):
    """Mirrored in half of the cases, never cut off, with strokes that are a little thicker or thinner."""
    size, drawing = 44, world.things[0].canonical
    plain = scaled_mask(world, drawing, size).astype(float)
    mirrored = 0
    for seed in range(60):
        scene = Scene("white", (Item(0, drawing, "black", 10, 10, size),))
        pixels, [mask] = render_with_masks(world, scene, random.Random(seed))
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert (border > 128).mean() < 0.35, "what stands over the edge would be a long straight cut"
        assert 0.25 < mask.sum() / plain.sum() < 1.7
        assert (pixels[:10] == 255).all() and (pixels[54:] == 255).all()
        asymmetric = world.things[2].canonical
        turned = render_with_masks(
            world, Scene("white", (Item(2, asymmetric, "black", 10, 10, size),)), random.Random(seed)
        )[1][0].astype(float)
        straight = scaled_mask(world, asymmetric, size).astype(float)
        mirrored += np.abs(turned - straight[:, ::-1]).sum() < np.abs(turned - straight).sum()
    assert 10 < mirrored < 50
    again = [render(world, scene, random.Random(7)).tobytes() for _ in range(2)]
    assert again[0] == again[1]


def test_the_palette_is_what_things_and_backgrounds_take(sampler):
    rng = random.Random(4)
    scenes = [sampler.free(rng) for _ in range(400)]
    assert {s.background for s in scenes} == set(COLORS) == {item.color for s in scenes for item in s.items}
