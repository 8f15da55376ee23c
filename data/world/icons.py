"""Icons and emoji images of the embedded world, as stored in `assets/world`."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image


FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
EMOJI_STYLES = {  # name of the sheet -> name in prompts
    "noto": "noto",
    "twemoji": "twemoji",
    "fluent_flat": "fluent flat",
    "fluent_3d": "fluent 3d",
    "openmoji": "openmoji",
}
HELD_OUT_EMOJI_STYLE = "openmoji"
TRAIN_EMOJI_STYLES = tuple(style for style in EMOJI_STYLES if style != HELD_OUT_EMOJI_STYLE)
_EMBEDDED = Path(__file__).resolve().parents[2] / "assets" / "world"
_SOLID = 0.8  # share of the outline's area that is covered, from which on an icon is a filled shape


@dataclass(frozen=True)
class Thing:
    """A kind of object, with a name that the language model learns."""

    index: int
    name: str
    canonical: int
    """Index of the icon in scenes of text-to-image prompts."""
    emoji: int | None
    """Index of its emoji, None where there is none."""


@dataclass(frozen=True)
class Icon:
    """An alpha mask of a thing."""

    index: int
    thing: int
    """Index of the thing."""
    family: str
    """Icon styles of one set, or of sets that look alike; a family is in one split only."""
    split: str
    solid: bool
    """Whether it is a filled shape, not a line drawing."""


class World:
    """Icons and emoji images of all things, read from sheets.

    Args:
        root: folder with `world.json` and the sheets; `assets/world` of the checkout by default.

    Raises:
        FileNotFoundError: no `world.json` there.
        ValueError: `world.json` of another format version.
    """

    def __init__(self, root: str | Path = _EMBEDDED):
        self.root = Path(root)
        path = self.root / "world.json"
        if not path.is_file():
            raise FileNotFoundError(f"no world.json in {self.root}: pass the folder `assets/world` of a checkout.")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format_version"] != FORMAT_VERSION:
            found = manifest["format_version"]
            raise ValueError(
                f"{path} has format version {found}, not {FORMAT_VERSION}: take the files of one checkout."
            )
        self.size: int = manifest["size"]
        self.things = tuple(Thing(index=i, **entry) for i, entry in enumerate(manifest["things"]))
        styles = manifest["styles"]
        self.icons = tuple(
            Icon(i, thing, styles[style]["family"], styles[style]["split"], solidity > _SOLID)
            for i, (thing, style, solidity, _) in enumerate(manifest["drawings"])
        )
        self.emoji_names = tuple(name for name, _ in manifest["emoji"])
        self.masks = _tiles(self.root / "icons.webp", "L", self.size, manifest["columns"], len(self.icons))
        self._emoji_columns: int = manifest["emoji_columns"]
        self._emoji: dict[str, np.ndarray] = {}
        self._by_name = {thing.name: thing for thing in self.things}

    def thing(self, name: str) -> Thing:
        """Returns the thing of a name.

        Raises:
            KeyError: no such thing.
        """
        return self._by_name[name]

    def select(self, split: str, solid: bool | None = True) -> list[list[int]]:
        """Returns for each thing the indices of its icons in a split.

        Args:
            split: one of `SPLITS`.
            solid: True for filled shapes, False for line drawings, None for both.

        Raises:
            ValueError: unknown split.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}.")
        chosen: list[list[int]] = [[] for _ in self.things]
        for icon in self.icons:
            if icon.split == split and (solid is None or icon.solid == solid):
                chosen[icon.thing].append(icon.index)
        return chosen

    def emoji(self, style: str) -> np.ndarray:
        """Reads the emoji of a style, (I, 64, 64, 4) uint8 with straight alpha, in the order of `emoji_names`."""
        if style not in self._emoji:
            path, count = self.root / f"{style}.webp", len(self.emoji_names)
            self._emoji[style] = _tiles(path, "RGBA", self.size, self._emoji_columns, count)
        return self._emoji[style]

    def emoji_image(self, emoji: int, style: str, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
        """Renders an emoji on a plain background, as an RGB image of 64x64 pixels."""
        canvas = Image.new("RGBA", (self.size, self.size), (*background, 255))
        return Image.alpha_composite(canvas, Image.fromarray(self.emoji(style)[emoji])).convert("RGB")


def _tiles(path: Path, mode: str, size: int, columns: int, count: int) -> np.ndarray:
    """Reads the tiles of a sheet, (count, size, size[, channels]) uint8, in reading order."""
    with Image.open(path) as image:
        sheet = np.asarray(image.convert(mode))
    rows = sheet.shape[0] // size
    tiles = sheet.reshape(rows, size, columns, size, *sheet.shape[2:]).swapaxes(1, 2)
    tiles = np.ascontiguousarray(tiles.reshape(rows * columns, size, size, *sheet.shape[2:])[:count])
    tiles.flags.writeable = False
    return tiles


def load_world(root: str | Path | None = None) -> World:
    """Loads the world of a folder, by default the embedded one, once for a process."""
    return _load(_EMBEDDED if root is None else Path(root))


_load = lru_cache(maxsize=2)(World)
