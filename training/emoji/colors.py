"""Named colours: the palette of scenes, and the dominant colour of a drawing as measured from its pixels."""

import numpy as np


PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 220, 50),
    "green": (50, 170, 70),
    "blue": (50, 110, 220),
    "purple": (130, 60, 190),
    "pink": (250, 150, 190),
    "brown": (120, 75, 40),
    "black": (20, 20, 20),
    "white": (255, 255, 255),
    "gray": (140, 140, 140),
}
COLORS = tuple(PALETTE)

# Upper hue limits in degrees; red closes the circle. Cyan and teal are left to the ambiguity check below.
_HUES = (("red", 14), ("orange", 36), ("yellow", 68), ("green", 168), ("blue", 250), ("purple", 292), ("pink", 342))
# A colour is clear only if these changes of (hue in degrees, saturation, value) leave it the dominant one.
_NUDGES = ((0, 1.0, 1.0), (4, 1.0, 1.0), (-4, 1.0, 1.0), (0, 0.85, 1.0), (0, 1.15, 1.0), (0, 1.0, 0.9), (0, 1.0, 1.1))
_OPAQUE = 128
_LEAST_SHARE = 0.45


def _hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value in 0..1 of colours (P, 3) in 0..255."""
    rgb = rgb.astype(np.float32) / 255
    value, low = rgb.max(-1), rgb.min(-1)
    span = value - low
    safe = np.where(span > 0, span, 1)
    red, green, blue = rgb.T
    sector = np.select(
        [value == red, value == green], [(green - blue) / safe % 6, (blue - red) / safe + 2], (red - green) / safe + 4
    )
    return np.where(span > 0, sector * 60, 0), np.where(value > 0, span / np.where(value > 0, value, 1), 0), value


def _names(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Index into `COLORS` of every pixel (P,)."""
    color = np.full(hue.shape, COLORS.index("red"))
    for name, limit in reversed(_HUES):
        color[hue < limit] = COLORS.index(name)
    color[(hue < 48) & (hue >= 8) & (value < 0.77)] = COLORS.index("brown")
    color[((hue >= 335) | (hue < 12)) & (saturation < 0.55) & (value > 0.75)] = COLORS.index("pink")
    color[(hue >= 12) & (hue < 36) & (saturation < 0.35) & (value >= 0.77)] = COLORS.index("orange")
    # Cold grays look gray up to a higher saturation than warm ones; so do dark ones.
    cold = (hue > 180) & (hue < 290)
    pale = (saturation < 0.16) | ((saturation < 0.26) & cold) | ((saturation < 0.3) & (value < 0.45))
    color[pale] = COLORS.index("gray")
    color[(saturation < 0.10) & (value > 0.86)] = COLORS.index("white")
    color[(value < 0.22) | ((value < 0.36) & (saturation < 0.4))] = COLORS.index("black")
    return color


def color_shares(rgba: np.ndarray) -> dict[str, float]:
    """Share of every palette colour among the opaque pixels of a picture (H, W, 4) uint8; {} when nothing is opaque."""
    pixels = rgba.reshape(-1, 4)
    rgb = pixels[pixels[:, 3] >= _OPAQUE, :3]
    if not len(rgb):
        return {}
    counts = np.bincount(_names(*_hsv(rgb)), minlength=len(COLORS)) / len(rgb)
    return dict(zip(COLORS, counts.tolist(), strict=True))


def dominant_color(rgba: np.ndarray) -> str | None:
    """The palette colour of most of a picture, or None when it is not clear.

    Clear means: at least 45% of the opaque pixels and 1.5 times as many as the next colour, and still the first one
    after small changes of hue, saturation and value (so that a teal is neither green nor blue).

    Args:
        rgba: (H, W, 4) uint8 with straight alpha.
    """
    pixels = rgba.reshape(-1, 4)
    rgb = pixels[pixels[:, 3] >= _OPAQUE, :3]
    if not len(rgb):
        return None
    hue, saturation, value = _hsv(rgb)
    winners = set()
    for turn, more, lighter in _NUDGES:
        names = _names((hue + turn) % 360, np.clip(saturation * more, 0, 1), np.clip(value * lighter, 0, 1))
        counts = np.bincount(names, minlength=len(COLORS)) / len(names)
        second, first = np.argsort(counts, kind="stable")[-2:]
        if counts[first] < _LEAST_SHARE or counts[first] < 1.5 * counts[second]:
            return None
        winners.add(int(first))
    return COLORS[winners.pop()] if len(winners) == 1 else None
