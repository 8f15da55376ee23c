"""Image files in folders, and the square that is cropped from an image."""

from pathlib import Path

from PIL import Image


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def image_files(folder: str | Path) -> list[Path]:
    """All images below a folder, by their suffix, in the order of their paths."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def crop_square(image: Image.Image, size: int, place: tuple[float, float]) -> Image.Image:
    """The short side resized to `size`, and of the long one the square at `place`, 0 to 1 across and down."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (round(share * (side - size)) for share, side in zip(place, (width, height), strict=True))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))
