"""The nine colours of the world, by name."""

import numpy as np


PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (252, 211, 37),
    "green": (46, 160, 67),
    "blue": (33, 96, 214),
    "purple": (126, 58, 182),
    "pink": (244, 114, 182),
    "black": (17, 17, 17),
    "white": (255, 255, 255),
}
COLORS = tuple(PALETTE)
RGB = np.array(list(PALETTE.values()), dtype=np.float32)  # (9, 3)


def nearest_color(pixels: np.ndarray) -> np.ndarray:
    """Returns for every pixel (..., 3) in 0..255 the index into `COLORS` of the nearest colour, by distance in RGB."""
    return np.square(np.asarray(pixels, dtype=np.float32)[..., None, :] - RGB).sum(-1).argmin(-1)
