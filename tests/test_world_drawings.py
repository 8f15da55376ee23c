"""The embedded drawings: sheets, splits, canonical drawings, emoji, and who drew them."""

import json
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from evotok.data.world.drawings import EMOJI_STYLES, NEW_EMOJI_STYLE, SPLITS, World


THINGS = 48


def test_every_thing_has_solid_drawings_in_every_split(world):
    assert len(world.things) == len({thing.name for thing in world.things}) == THINGS
    assert all(thing.name.isalpha() and thing.name.islower() for thing in world.things)
    parts = {split: world.select(split) for split in SPLITS}
    fewest = {split: sorted(map(len, chosen)) for split, chosen in parts.items()}
    assert fewest["train"][0] >= 5 and fewest["train"][1] >= 10 and fewest["test"][0] >= 1
    assert fewest["val"][6] >= 1, "validation does without a few of the things"
    indices = [index for chosen in parts.values() for drawings in chosen for index in drawings]
    assert len(indices) == len(set(indices)) and all(world.drawings[index].solid for index in indices)
    everything = [i for split in SPLITS for part in (True, False) for c in world.select(split, part) for i in c]
    assert sorted(everything) == list(range(len(world.drawings)))
    with pytest.raises(ValueError, match="unknown split 'new'"):
        world.select("new")


def test_families_never_straddle_splits(world):
    splits = defaultdict(set)
    for drawing in world.drawings:
        splits[drawing.family].add(drawing.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split for [split] in splits.values()} == set(SPLITS)
    styles = json.loads((world.root / "world.json").read_text(encoding="utf-8"))["styles"]
    authors = defaultdict(set)
    for style in styles:
        authors[style["author"]].add(style["split"])
    assert not {author: found for author, found in authors.items() if len(found) > 1}


def test_canonical_drawings_are_solid_and_trained_on(world):
    for thing in world.things:
        drawing = world.drawings[thing.canonical]
        assert (drawing.thing, drawing.split, drawing.solid) == (thing.index, "train", True), thing.name
        assert world.thing(thing.name) is thing


def test_masks_fill_their_square_and_are_not_empty(world):
    assert world.masks.shape == (len(world.drawings), 64, 64) and world.masks.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        world.masks[0] = 0
    covered = world.masks > 16
    sides = np.maximum(covered.any(1).sum(1), covered.any(2).sum(1))
    assert sides.min() >= 50 and (sides == 64).mean() > 0.9, "cropped to its bounding box"
    assert world.masks.mean((1, 2)).min() > 5


def test_drawings_of_a_thing_resemble_each_other_more_than_others(world):
    """Rows of the manifest that are shifted against the sheet would pass every count; pixels catch it."""
    small = world.masks.reshape(-1, 8, 8, 8, 8).mean((2, 4)).reshape(-1, 64)
    things = np.array([drawing.thing for drawing in world.drawings])
    means = np.stack([small[things == thing].mean(0) for thing in range(THINGS)])
    nearest = np.square(small[:, None] - means).sum(-1).argmin(1)
    assert (nearest == things).mean() > 0.5  # chance: 0.02


def test_emoji_of_every_style_show_the_same_things(world):
    with_emoji = [thing for thing in world.things if thing.emoji is not None]
    assert len(with_emoji) >= 44 and len({thing.emoji for thing in with_emoji}) == len(with_emoji)
    assert NEW_EMOJI_STYLE in EMOJI_STYLES
    for style in EMOJI_STYLES:
        sheet = world.emoji(style)
        assert sheet.shape == (len(world.emoji_names), 64, 64, 4)
        assert (sheet[..., 3] > 0).mean((1, 2)).min() > 0.01, "none is empty"
    gray = {style: world.emoji(style)[..., 3].astype(np.float32) for style in ("noto", "openmoji")}
    same = np.abs(gray["noto"] - gray["openmoji"]).mean()
    assert same < 0.85 * np.abs(gray["noto"] - np.roll(gray["openmoji"], 1, axis=0)).mean()


def test_an_emoji_lies_on_its_background(world):
    house = world.emoji_names.index("house")
    white, blue = (np.asarray(world.emoji_image(house, "noto", color)) for color in ((255, 255, 255), (0, 0, 255)))
    alpha = world.emoji("noto")[house][..., 3]
    assert (blue[alpha == 0] == (0, 0, 255)).all() and (white[alpha == 0] == 255).all()
    assert (blue[alpha == 255] == white[alpha == 255]).all()


def test_missing_and_other_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no world\.json in .*: pass the folder"):
        World(tmp_path)
    (tmp_path / "world.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99, not 1"):
        World(tmp_path)


def test_every_icon_set_and_emoji_style_has_its_line_of_attribution(world):
    manifest = json.loads((world.root / "world.json").read_text(encoding="utf-8"))
    text = (world.root / "LICENSES.md").read_text(encoding="utf-8")
    lines = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    used = {manifest["styles"][style]["set"]: manifest["styles"][style] for _, style, _, _ in manifest["drawings"]}
    assert len(used) > 100 and set(used) | {f"{style}.webp" for style in EMOJI_STYLES} == set(lines)
    for name, style in used.items():
        for said in (style["title"], style["author"], style["licence"]):
            assert said in lines[name], (name, said)
        assert style["author_url"] is None or style["author_url"] in lines[name]
    for style, licence in {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0", "openmoji": "CC-BY-SA-4.0"}.items():
        assert licence in lines[f"{style}.webp"]
    for name in {style["licence"] for style in used.values()}:
        assert f"## {name}\n" in text, "the licence itself, or where it is"


def test_sheets_are_lossless(world):
    with Image.open(world.root / "icons.webp") as sheet:
        assert sheet.format == "WEBP" and sheet.width == 64 * 64
