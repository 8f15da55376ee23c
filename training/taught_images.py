"""A fixed set of images with what the teacher says of them: it may cost more than the model, and is asked once."""

import hashlib
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..eval.files import whole_file
from .emoji.world import EmojiWorld
from .teachers import EfficientNetTeacher
from .tokenizer_data import EmojiImages, emoji_pixels


CALIBRATION_IMAGES = 512
_BATCH = 64


class TaughtImages(Dataset):
    """Images and the teacher's features of them.

    Args:
        pixels: (I, 3, H, W) uint8.
        features: (I, N, S) float16.
    """

    def __init__(self, pixels: torch.Tensor, features: torch.Tensor):
        self.pixels, self.features = pixels, features

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`pixel_values` in [-1, 1] and `semantic_target`, both float32."""
        pixels = self.pixels[index].float() / 127.5 - 1
        return {"pixel_values": pixels, "semantic_target": self.features[index].float()}


@lru_cache(maxsize=1)
def calibrated_teacher(root: str | Path | None, grid_size: int) -> EfficientNetTeacher:
    """EfficientNet-Lite0, centred and scaled on drawings that are trained on; made once in a process."""
    teacher = EfficientNetTeacher(grid_size)
    teacher.calibrate(emoji_pixels(EmojiWorld(root), "train", CALIBRATION_IMAGES))
    return teacher


@lru_cache(maxsize=1)
def taught_emoji(
    root: str | Path | None, count: int, mixture: tuple[tuple[str, float], ...], grid_size: int, folder: Path
) -> TaughtImages:
    """`count` samples of the emoji world, the same whatever the seed of a training; made once in a process.

    Args:
        mixture: pairs of [`EmojiImages`]'s `mixture`.
        folder: keeps the features for the next process.
    """
    data = EmojiImages(EmojiWorld(root), count, dict(mixture))
    drawn = [data[index]["pixel_values"] for index in tqdm(range(count), "Images", disable=None, leave=False)]
    pixels = torch.stack([to_bytes(image) for image in drawn])
    return TaughtImages(pixels, teacher_features(calibrated_teacher(root, grid_size), pixels, folder))


def features_sha256(*features: torch.Tensor) -> str:
    """Fingerprint of what a teacher said."""
    digest = hashlib.sha256()
    for tensor in features:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] as uint8."""
    return ((pixels + 1) * 127.5).round().byte()


def teacher_features(teacher: EfficientNetTeacher, pixels: torch.Tensor, folder: Path) -> torch.Tensor:
    """What a teacher says of images, from a file named after both if there is one, and written to it otherwise.

    Args:
        pixels: (I, 3, H, W) uint8.

    Returns:
        (I, N, S) float16, mapped from the file: memory is taken for what is looked at.
    """
    digest = hashlib.sha256(pixels.contiguous().numpy().data)
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    path = folder / f"{digest.hexdigest()[:24]}.safetensors"
    if not path.is_file():
        batches = tqdm(pixels.split(_BATCH), "Teacher", disable=None, leave=False)
        device = teacher.mean.device
        features = torch.cat([teacher(batch.to(device).float() / 127.5 - 1).half().cpu() for batch in batches])
        with whole_file(path) as part:
            save_file({"features": features}, part)
    return load_file(path)["features"]
