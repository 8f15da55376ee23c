"""Image files: found in folders, named by rows, cropped to squares, converted to pixels and back."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend

from ..processing.image_loading_evotok import EvoTokImageError, load_image
from .sequences import pick_evenly


MAX_ASPECT = 20
"""Longest side of an image over its shortest; the short side of a longer one would be enlarged too much."""
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_ADDRESS = re.compile(r"[a-zA-Z][\w+.-]*://|data:")


def image_files(folder: str | Path) -> list[Path]:
    """Lists all images below a folder, by their suffix, in the order of their paths."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def crop_square(image: Image.Image, size: int, place: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """Resizes the short side of an image to `size` pixels and crops a square of the long one.

    Args:
        image: of any mode; resized by Pillow's bicubic filter, which is antialiased.
        size: side of the square in pixels.
        place: of the square, 0 to 1 from left and from top; by default the middle.

    Raises:
        EvoTokImageError: an aspect ratio over `MAX_ASPECT`.
    """
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise EvoTokImageError(
            f"{image.width} x {image.height} pixels: the aspect ratio is limited to {MAX_ASPECT}: crop it."
        )
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (round(share * (side - size)) for share, side in zip(place, (width, height), strict=True))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def to_pixels(image: Image.Image | np.ndarray) -> torch.Tensor:
    """Converts an RGB image, (H, W, 3) uint8 as an array, to (3, H, W) float32 in [-1, 1]."""
    return from_uint8(torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))))


def pixels_of(images: Sequence[Any], image_processor: Any) -> torch.Tensor:
    """Converts RGB images to pixels `(B, 3, H, W)` as `image_processor` does, but faster: equal within rounding if all
    have the right size, in all bits otherwise."""
    arrays = [np.asarray(image) if isinstance(image, Image.Image) else image for image in images]
    height, width = image_processor.size["height"], image_processor.size["width"]
    shape = (height, width, 3)
    fits = all(isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == shape for image in arrays)
    if not fits or not (image_processor.do_rescale and image_processor.do_normalize):
        if not _resizes_by_pillow(image_processor) or not all(getattr(image, "mode", "") == "RGB" for image in images):
            return image_processor(list(images), return_tensors="pt")["pixel_values"]
        # The processor would convert each image to an array with channels first, and back, before it is resized.
        resized = [image.resize((width, height), image_processor.resample) for image in images]
        return image_processor(resized, do_resize=False, return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float()
    mean = torch.tensor(image_processor.image_mean).view(3, 1, 1)
    std = torch.tensor(image_processor.image_std).view(3, 1, 1)
    return pixels.mul_(image_processor.rescale_factor).sub_(mean).div_(std).contiguous()


def from_uint8(values: torch.Tensor) -> torch.Tensor:
    """Converts uint8, of any shape, to float32 pixels in [-1, 1]."""
    return values.float() / 127.5 - 1


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Converts pixels in [-1, 1], of any shape and type, to uint8; what is outside is clamped."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte()


def to_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """Converts pixels in [-1, 1], of any shape and type, to [0, 1]; what is outside is not clamped."""
    return (pixels + 1) / 2


def folder_pixels(folder: str | Path, size: int, limit: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
    """Reads the middle squares of images below a folder: the share of one process.

    Args:
        folder: with subfolders.
        size: side of the squares in pixels.
        limit: maximum number of images, evenly spaced, of all processes together.
        rank, world_size: of this process.

    Returns:
        (I, 3, size, size) float32 in [-1, 1].

    Raises:
        ValueError: fewer images than processes, or one that cannot be read.
    """
    paths = image_files(folder)
    if not paths:
        raise ValueError(f"{folder}: no images below this folder ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    paths = pick_evenly(paths, limit)
    if len(paths) < world_size:
        raise ValueError(
            f"{folder}: {len(paths)} images to measure on {world_size} processes: give one for each at least."
        )
    return torch.stack([to_pixels(crop_square(load_image(path), size)) for path in paths[rank::world_size]])


def resolve_file(folder: Path, name: str, what: str = "image") -> str:
    """Resolves a file name of untrusted input to a path below `folder`.

    Args:
        folder: that the file must be in.
        name: as a row has it.
        what: kind of the file, for messages.

    Raises:
        ValueError: a URL, an absolute path elsewhere, `..`, or a symbolic link that leads out of the folder.
    """
    folder = folder.resolve()
    if _ADDRESS.match(name):
        raise ValueError(f"{what} {name!r} is an address, which is not fetched: download it into {folder}")
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a null byte, or links in a circle
        raise ValueError(f"{what} {name!r} is no file name ({error}): correct it") from None
    if not path.is_relative_to(folder) or path == folder:
        raise ValueError(f"{what} {name!r} is outside of {folder}: move it there, or set the image folder")
    return str(path)


def row_image(value: Any, folder: Path | None) -> dict | str:
    """Returns the image of a row as `load_image` takes it: its bytes, or the path of a file below `folder`.

    Args:
        value: bytes, a file name, or the `{"bytes", "path"}` of `datasets.Image`, whose path beside bytes is not used.
        folder: of the named files; None where there is none.

    Raises:
        ValueError: neither bytes nor a name, a name without a folder, or as [`resolve_file`].
    """
    content, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
    if isinstance(content, (bytes, bytearray)) and content:
        return {"bytes": bytes(content), "path": name if isinstance(name, str) else None}
    if not name or not isinstance(name, str):
        raise ValueError("no image")
    if folder is None:
        raise ValueError(f"image {name!r} is a name, but there is no folder of images: set image_folder")
    return resolve_file(folder, name)


def _resizes_by_pillow(image_processor: Any) -> bool:
    by_pillow = isinstance(image_processor, PilBackend) and image_processor.do_resize
    return by_pillow and isinstance(image_processor.resample, int)
