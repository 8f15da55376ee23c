"""Image files in folders, the one that a record names, and the square that is cropped from an image."""

import re
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing.image_loading_evotok import EvoTokImageError


MAX_ASPECT = 200  # of any image, as in Qwen2-VL; those that are learnt from are squarer
_ADDRESS = re.compile(r"[a-zA-Z][\w+.-]*://|data:")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def image_files(folder: str | Path) -> list[Path]:
    """All images below a folder, by their suffix, in the order of their paths."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def crop_square(image: Image.Image, size: int, place: tuple[float, float]) -> Image.Image:
    """The short side resized to `size`, and of the long one the square at `place`, 0 to 1 across and down.

    Raises:
        EvoTokImageError: a strip, which would be blown up to many times its size.
    """
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise EvoTokImageError(f"{image.width} x {image.height} is too long a strip to crop a square from: crop it.")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (round(share * (side - size)) for share, side in zip(place, (width, height), strict=True))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def resolve_image(folder: Path, name: str, what: str = "image") -> str:
    """The path of the file `name` in `folder`: the one way from what a record says to a file that is opened.

    Args:
        what: it is, for messages.

    Raises:
        ValueError: if it lies elsewhere: an address, an absolute path, `..`, or a symbolic link that leads out.
    """
    folder = folder.resolve()
    if _ADDRESS.match(name):
        raise ValueError(f"{what} {name!r} is an address, which is not fetched: download it into {folder}")
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a name with a null byte, links in a circle
        raise ValueError(f"{what} {name!r} is no file name ({error}): correct it") from None
    if not path.is_relative_to(folder) or path == folder:
        raise ValueError(f"{what} {name!r} lies outside {folder}: move it there, or set the image folder")
    return str(path)


def embedded_image(value: Any, folder: Path | None) -> dict | str:
    """The image of a row, as `load_image` takes it: bytes that the row brings, or a file below the folder that it
    names. An address is never fetched.

    Args:
        value: bytes, a name, or the `{"bytes", "path"}` of `datasets.Image`; `path` beside bytes is but a name.

    Raises:
        ValueError: neither, or a name that leads out of the folder, or that there is no folder for.
    """
    content, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
    if isinstance(content, (bytes, bytearray)) and content:
        return {"bytes": bytes(content), "path": name if isinstance(name, str) else None}
    if not name or not isinstance(name, str):
        raise ValueError("no image")
    if folder is None:
        raise ValueError(f"image {name!r} is a name, but there is no folder of images: set image_folder")
    return resolve_image(folder, name)
