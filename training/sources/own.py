"""Pictures and texts of your own: a folder, webdataset tars, parquet files."""

from dataclasses import replace
from pathlib import Path

from .generation import captioned_parquet
from .images import webdataset_pair
from .source import Source, to_draw


_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")


def image_file(row: dict, folder: Path | None) -> dict:
    """One file of a folder; its text is `NAME.txt` beside it, or its name with spaces for dashes and underscores."""
    path = Path(row["path"])
    beside = path.with_suffix(".txt")
    caption = beside.read_text(encoding="utf-8") if beside.is_file() else path.stem.replace("-", " ").replace("_", " ")
    return to_draw(path.relative_to(folder) if folder else path.name, caption, str(path))


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
