"""The emoji world as it lies in `assets/emoji`: concepts, drawings, splits and pixels. Needs numpy and Pillow only."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .colors import dominant_color
from .vocabulary import SPLITS, STYLES


FORMAT_VERSION = 1


@dataclass(frozen=True)
class Concept:
    """One emoji, whatever its drawing."""

    index: int
    """Position in the sheets."""
    hexcode: str
    name: str
    """Lower-case label, unique."""
    tags: tuple[str, ...]
    group: str
    subgroup: str
    familiar: bool
    """Whether the language model learns its name."""
    new_concept: bool
    """No drawing of it is ever trained on."""
    new_pair_styles: tuple[str, ...]
    """Styles of it that are held out, though the concept is seen in other styles."""


@dataclass(frozen=True)
class Drawing:
    """A concept in one of the five styles."""

    concept: Concept
    style: str


class EmojiWorld:
    """All drawings, read from the embedded sheets; a sheet is decoded when first needed.

    Args:
        root: folder with `emoji.json` and the sheets; `assets/emoji` of the checkout by default.

    Raises:
        FileNotFoundError: no `emoji.json` there.
        ValueError: `emoji.json` of another format version.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = Path(root) if root is not None else Path(__file__).resolve().parents[2] / "assets" / "emoji"
        path = self.root / "emoji.json"
        if not path.is_file():
            mend = "run `python -m evotok.training.emoji.pack --out assets/emoji` or pass the folder of a checkout"
            raise FileNotFoundError(f"no emoji.json in {self.root}: {mend}")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format_version"] != FORMAT_VERSION:
            found = manifest["format_version"]
            raise ValueError(f"{path} has format version {found}, not {FORMAT_VERSION}: pack again")
        self.size: int = manifest["size"]
        self.columns: int = manifest["columns"]
        self.sheets: dict[str, str] = manifest["styles"]
        self.familiar_quotas: dict[str, int] = manifest["familiar_quotas"]
        self.concepts = tuple(
            Concept(
                index=index,
                tags=tuple(entry["tags"]),
                new_pair_styles=tuple(entry["new_pair_styles"]),
                **{k: entry[k] for k in ("hexcode", "name", "group", "subgroup", "familiar", "new_concept")},
            )
            for index, entry in enumerate(manifest["concepts"])
        )
        self.groups = tuple(dict.fromkeys(concept.group for concept in self.concepts))
        self.familiar = tuple(concept for concept in self.concepts if concept.familiar)
        self._pixels: dict[str, np.ndarray] = {}
        self._colors: dict[tuple[int, str], str | None] = {}
        self._by_split: dict[str, list[Drawing]] = {split: [] for split in SPLITS}
        for concept in self.concepts:
            for style in STYLES:
                drawing = Drawing(concept, style)
                self._by_split[self.split_of(drawing)].append(drawing)

    def split_of(self, drawing: Drawing) -> str:
        """`train`, `new_pair`, `new_concept` or `new_style`; the rule stands in `emoji.json`."""
        if drawing.style == "openmoji":
            return "new_style"
        if drawing.concept.new_concept:
            return "new_concept"
        return "new_pair" if drawing.style in drawing.concept.new_pair_styles else "train"

    def drawings(self, split: str, familiar: bool | None = None) -> list[Drawing]:
        """Drawings of a split in sheet order, all of them or only (un)familiar concepts.

        Raises:
            ValueError: unknown split.
        """
        if split not in self._by_split:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        return [d for d in self._by_split[split] if familiar is None or d.concept.familiar == familiar]

    def rgba(self, drawing: Drawing) -> np.ndarray:
        """Pixels (64, 64, 4), uint8, straight alpha; a read-only view of the sheet."""
        pixels = self._sheet(drawing.style)
        row, column = divmod(drawing.concept.index, self.columns)
        return pixels[row * self.size : (row + 1) * self.size, column * self.size : (column + 1) * self.size]

    def color(self, drawing: Drawing) -> str | None:
        """Dominant colour of a drawing, None when not clear; measured once (`colors.dominant_color`)."""
        key = (drawing.concept.index, drawing.style)
        if key not in self._colors:
            self._colors[key] = dominant_color(self.rgba(drawing))
        return self._colors[key]

    def image(self, drawing: Drawing, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
        """RGB picture 64x64 of a drawing on a plain background."""
        canvas = Image.new("RGBA", (self.size, self.size), (*background, 255))
        return Image.alpha_composite(canvas, Image.fromarray(self.rgba(drawing))).convert("RGB")

    def _sheet(self, style: str) -> np.ndarray:
        if style not in self._pixels:
            with Image.open(self.root / self.sheets[style]) as sheet:
                pixels = np.array(sheet.convert("RGBA"))
            pixels.flags.writeable = False
            self._pixels[style] = pixels
        return self._pixels[style]
