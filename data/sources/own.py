"""Pictures and texts of your own: a folder, webdataset tars, parquet files."""

from dataclasses import replace
from pathlib import Path

from ..conversations import MAX_TEXT
from ..image_files import resolve_image
from .generation import captioned_parquet
from .images import webdataset_pair
from .source import Source, to_draw


_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")


def image_file(row: dict, folder: Path | None) -> dict:
    """One file of a folder; its text is `NAME.txt` beside it, or its name with spaces for dashes and underscores."""
    path = Path(row["path"]).absolute()
    folder = (folder or path.parent).absolute()
    image, beside = resolve_image(folder, str(path)), path.with_suffix(".txt")
    caption = path.stem.replace("-", " ").replace("_", " ")
    if beside.is_file():
        with open(resolve_image(folder, str(beside), "text"), encoding="utf-8") as file:
            caption = file.read(MAX_TEXT + 1)
    return to_draw(path.relative_to(folder) if path.is_relative_to(folder) else path.name, caption, image)


IMAGE_FOLDER = Source(
    name="image-folder",
    hub_id="",
    kind="images",
    files=tuple(f"**/*.{suffix}" for name in _SUFFIXES for suffix in (name, name.upper())),
    convert=image_file,
    task="images",
    num_samples=0,
    num_bytes=0,
    weight=1.0,
    licence="yours to know",
)
WEBDATASET_PAIRS = replace(
    IMAGE_FOLDER, name="webdataset-pairs", kind="webdataset", files=("**/*.tar",), convert=webdataset_pair
)
PARQUET_PAIRS = replace(
    IMAGE_FOLDER, name="parquet-pairs", kind="parquet", files=("**/*.parquet",), convert=captioned_parquet
)
