"""Icons and emoji images of the world: sheets, splits, canonical icons."""

import json
from collections import defaultdict

import numpy as np
import pytest

from evotok.data.world.icons import EMOJI_STYLES, HELD_OUT_EMOJI_STYLE, SPLITS, TRAIN_EMOJI_STYLES, World, load_world


THINGS = 48


def test_world_select_covers_things_and_partitions_icons(world):
    assert len(world.things) == len({thing.name for thing in world.things}) == THINGS
    assert all(thing.name.isalpha() and thing.name.islower() for thing in world.things)
    icons = {split: sorted(len(chosen) for chosen in world.select(split)) for split in SPLITS}
    assert icons["train"][0] >= 5 and icons["train"][1] >= 10 and icons["test"][0] >= 1
    assert icons["val"][6] >= 1, "validation lacks a few of the things"
    parts = [i for split in SPLITS for solid in (True, False) for c in world.select(split, solid) for i in c]
    assert sorted(parts) == list(range(len(world.icons)))
    with pytest.raises(ValueError, match="unknown split 'new'"):
        world.select("new")


def test_world_is_loaded_once_however_its_folder_is_named(world):
    assert load_world() is load_world(None) is load_world(str(world.root)) is world


def test_world_families_and_authors_are_in_one_split(world):
    splits = defaultdict(set)
    for icon in world.icons:
        splits[icon.family].add(icon.split)
    for style in json.loads((world.root / "world.json").read_text(encoding="utf-8"))["styles"]:
        splits[style["author"], "author"].add(style["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_world_canonical_icons_are_solid_and_trained_on(world):
    for thing in world.things:
        icon = world.icons[thing.canonical]
        assert (icon.thing, icon.split, icon.solid) == (thing.index, "train", True), thing.name
        assert world.thing(thing.name) is thing


def test_world_masks_fill_their_square_and_are_read_only(world):
    assert world.masks.shape == (len(world.icons), 64, 64) and world.masks.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        world.masks[0] = 0
    covered = world.masks > 16
    sides = np.maximum(covered.any(1).sum(1), covered.any(2).sum(1))
    assert sides.min() >= 50 and (sides == 64).mean() > 0.9, "cropped to its bounding box"
    assert world.masks.mean((1, 2)).min() > 5


def test_world_masks_show_their_things(world):
    """A manifest that is shifted against the sheet would pass every count."""
    small = world.masks.reshape(-1, 8, 8, 8, 8).mean((2, 4)).reshape(-1, 64)
    things = np.array([icon.thing for icon in world.icons])
    means = np.stack([small[things == thing].mean(0) for thing in range(THINGS)])
    nearest = np.square(small[:, None] - means).sum(-1).argmin(1)
    assert (nearest == things).mean() > 0.5  # chance: 0.02


def test_world_emoji_of_every_style_show_the_same_things(world):
    with_emoji = [thing for thing in world.things if thing.emoji is not None]
    assert len(with_emoji) >= 44 and len({thing.emoji for thing in with_emoji}) == len(with_emoji)
    assert {*TRAIN_EMOJI_STYLES, HELD_OUT_EMOJI_STYLE} == set(EMOJI_STYLES)
    for style in EMOJI_STYLES:
        sheet = world.emoji(style)
        assert sheet.shape == (len(world.emoji_names), 64, 64, 4)
        assert (sheet[..., 3] > 0).mean((1, 2)).min() > 0.01, "an emoji is empty"
    noto, openmoji = (world.emoji(style)[..., 3].astype(np.float32) for style in ("noto", "openmoji"))
    assert np.abs(noto - openmoji).mean() < 0.85 * np.abs(noto - np.roll(openmoji, 1, axis=0)).mean()


def test_emoji_image_has_the_background(world):
    house = world.emoji_names.index("house")
    white, blue = (np.asarray(world.emoji_image(house, "noto", color)) for color in ((255, 255, 255), (0, 0, 255)))
    alpha = world.emoji("noto")[house][..., 3]
    assert (blue[alpha == 0] == (0, 0, 255)).all() and (white[alpha == 0] == 255).all()
    assert (blue[alpha == 255] == white[alpha == 255]).all()


def test_world_refuses_other_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no world\.json in .*: pass the folder"):
        World(tmp_path)
    (tmp_path / "world.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99, not 1"):
        World(tmp_path)
