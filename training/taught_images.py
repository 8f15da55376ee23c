"""EfficientNet-Lite0 as a judge of drawings of the emoji world."""

from functools import lru_cache
from pathlib import Path

from .emoji.world import EmojiWorld
from .teachers import EfficientNetTeacher
from .tokenizer_data import emoji_pixels


CALIBRATION_IMAGES = 512


@lru_cache(maxsize=1)
def calibrated_teacher(root: str | Path | None, grid_size: int) -> EfficientNetTeacher:
    """EfficientNet-Lite0, centred and scaled on drawings that are trained on; made once in a process."""
    teacher = EfficientNetTeacher(grid_size)
    teacher.calibrate(emoji_pixels(EmojiWorld(root), "train", CALIBRATION_IMAGES))
    return teacher
