"""Finds emoji in pictures of scenes, without a network for the places: what differs from the background is a thing.

Which one it is says the nearest drawing of a gallery, by features of any network. The palette, the gallery and the
network are the caller's.

Shapes: H, W sides of a picture, G views in the gallery, T things in a picture, D width of the features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .generation import standardize
from .geneval import Thing, box_of


DIFFERENT = 48.0
"""Distance of 8-bit colours from which a pixel is not of the background."""
SMALLEST = 11
"""Least long side of a thing, in pixels; scenes have no emoji below 16. What is smaller is part of another thing,"""
NEAR = 4
"""if one is at most so far away, else dirt."""
SIDE = 64
"""Side of what is shown to the network."""
GALLERY_SIDES = (64, 26)
"""Each drawing is in the gallery large, as drawn alone, and small, as in scenes."""


@dataclass(frozen=True)
class Sight:
    """What is seen in a picture."""

    background: str
    """Name in the palette."""
    style: str | None
    """Of all things together; None if there are none."""
    things: list[Thing]


class EmojiDetector:
    """A gallery of drawings and a palette of backgrounds.

    Args:
        embed: (B, 3, 64, 64) in [-1, 1] -> features (B, D).
        palette: name -> 8-bit RGB of the backgrounds.
        drawings: (H, W, 4) uint8 with straight alpha.
        labels, styles: what each drawing shows, and how.
    """

    def __init__(
        self,
        embed: Callable[[torch.Tensor], torch.Tensor],
        palette: Mapping[str, Sequence[int]],
        drawings: Sequence[np.ndarray],
        labels: Sequence[str],
        styles: Sequence[str],
    ):
        self.embed, self.palette = embed, palette
        self.labels = np.array([*labels] * len(GALLERY_SIDES))
        self.styles = np.array([*styles] * len(GALLERY_SIDES))
        views = [_view(drawing, side) for side in GALLERY_SIDES for drawing in drawings]
        self.reference = torch.cat([embed(batch).cpu() for batch in torch.stack(views).split(64)])  # (G, D)
        self.gallery = F.normalize(standardize(self.reference, self.reference), dim=-1)

    def __call__(self, picture: Image.Image) -> Sight:
        """Background, things and style of a picture."""
        pixels = np.asarray(picture.convert("RGB")).astype(np.float32)
        background, color = find_background(pixels, self.palette)
        masks = find_things(pixels, color)
        if not masks:
            return Sight(background, None, [])
        crops = torch.stack([cut_out(pixels, mask, color) for mask in masks])
        features = F.normalize(standardize(self.embed(crops).cpu(), self.reference), dim=-1)
        similarity = (features @ self.gallery.T).numpy()  # (T, G)
        best = similarity.argmax(1)
        things = [
            Thing(str(self.labels[index]), float(row[index]), box_of(mask), mask)
            for mask, row, index in zip(masks, similarity, best, strict=True)
        ]
        return Sight(background, self._style(similarity, self.labels[best]), things)

    def _style(self, similarity: np.ndarray, labels: np.ndarray) -> str:
        """The style in which the things, being what they are, are the most alike to the gallery."""
        own = np.where(self.labels == labels[:, None], similarity, -1.0)  # (T, G)
        return max(dict.fromkeys(self.styles.tolist()), key=lambda style: own[:, self.styles == style].max(1).sum())


def find_background(pixels: np.ndarray, palette: Mapping[str, Sequence[int]]) -> tuple[str, np.ndarray]:
    """The palette colour that most of the border is nearest to, and that part's own median colour (3,).

    Args:
        pixels: (H, W, 3) float in 0 .. 255.
    """
    inner = np.zeros(pixels.shape[:2], dtype=bool)
    inner[2:-2, 2:-2] = True
    border = pixels[~inner]  # (P, 3)
    colors = np.array(list(palette.values()), dtype=np.float32)
    nearest = np.linalg.norm(border[:, None] - colors, axis=-1).argmin(1)
    winner = np.bincount(nearest, minlength=len(colors)).argmax()
    return list(palette)[winner], np.median(border[nearest == winner], axis=0)


def find_things(pixels: np.ndarray, background: np.ndarray) -> list[np.ndarray]:
    """A mask (H, W) for each thing: connected parts, those put together whose boxes share a pixel, as no two emoji of a
    scene do, or that are too small to be a thing and near another."""
    from scipy import ndimage

    parts, count = ndimage.label(np.linalg.norm(pixels - background, axis=-1) > DIFFERENT, np.ones((3, 3)))
    masks = [parts == index for index in range(1, count + 1)]
    while (pair := next(_pairs_to_join(masks), None)) is not None:
        first, second = pair
        masks[first] |= masks.pop(second)
    return [mask for mask in masks if _long_side(box_of(mask)) >= SMALLEST]


def _pairs_to_join(masks: list[np.ndarray]):
    boxes = [box_of(mask) for mask in masks]
    for first, box in enumerate(boxes):
        for second in range(first + 1, len(boxes)):
            other = boxes[second]
            gap = max(box[0] - other[2], other[0] - box[2], box[1] - other[3], other[1] - box[3])
            small = min(_long_side(box), _long_side(other)) < SMALLEST
            if gap < 0 or (small and gap <= NEAR):
                yield first, second


def _long_side(box: tuple[float, float, float, float]) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def cut_out(pixels: np.ndarray, mask: np.ndarray, background: np.ndarray) -> torch.Tensor:
    """A thing in a square, on white: (3, 64, 64) in [-1, 1]. Where it is half transparent white shines through."""
    opacity = np.clip(np.linalg.norm(pixels - background, axis=-1, keepdims=True) / DIFFERENT, 0, 1)
    opacity = np.where(mask[..., None], opacity, 0)
    white = np.clip(opacity * pixels + (1 - opacity) * 255, 0, 255).astype(np.uint8)
    left, top, right, bottom = map(int, box_of(mask))
    side = max(right - left, bottom - top) + 2
    square = Image.new("RGB", (side, side), "white")
    square.paste(
        Image.fromarray(white[top:bottom, left:right]), ((side - right + left) // 2, (side - bottom + top) // 2)
    )
    resized = np.array(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return torch.from_numpy(resized).permute(2, 0, 1).float() / 127.5 - 1


def _view(drawing: np.ndarray, side: int) -> torch.Tensor:
    """A drawing as `cut_out` shows it when it was drawn on white with this side."""
    icon = Image.fromarray(drawing).convert("RGBa").resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.alpha_composite(Image.new("RGBA", icon.size, "white"), icon).convert("RGB")
    pixels, mask = np.asarray(canvas).astype(np.float32), np.asarray(icon)[..., 3] >= DIFFERENT
    return cut_out(pixels, mask, np.full(3, 255.0))
