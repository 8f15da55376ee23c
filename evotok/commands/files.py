"""Files that commands write: safe names, and all of them or none."""

import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def safe_name(text: str, length: int = 48) -> str:
    """A file name, without its suffix, that every system takes: `A café, 3D!` -> `a-cafe-3d`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:length].rstrip("-") or "image"


@contextmanager
def new_files(folder: str | Path, overwrite: bool = False) -> Iterator[Callable[[str], Path]]:
    """Files that appear under their names together, when all are written; after an error there is none of them.

    Args:
        folder: where; made if missing.
        overwrite: whether a file of the same name is replaced; otherwise the new one gets a number.

    Yields:
        Function: name wanted -> path to write to (it ends in `.part`).

    Raises:
        ValueError: `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: this is a file, give a folder to write to.")
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    parts: dict[Path, Path] = {}

    def reserve(name: str) -> Path:
        final, number = folder / name, 2
        while final in parts.values() or (final.exists() and not overwrite):
            final, number = folder / f"{Path(name).stem}-{number}{Path(name).suffix}", number + 1
        part = folder / f".{final.name}.part"
        parts[part] = final
        return part

    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield reserve
        for part, final in parts.items():
            part.replace(final)
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder that appears under its name when all in it is written; after an error there is none.

    Args:
        folder: must not be there yet, or be empty.

    Yields:
        The folder to write into (its name ends in `.part`).

    Raises:
        ValueError: `folder` is a file, or has files in it.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: this is there already, give a folder that is new or empty.")
    missing = [path for path in folder.parents if not path.exists()]
    part = folder.with_name(folder.name + ".part")
    try:
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            folder.rmdir()
        part.replace(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def save_images(folder: str | Path, named_images: Iterable[tuple[str, Any]], overwrite: bool = False) -> list[Path]:
    """Write PIL images as PNG, all or none; what their `info` says goes along as text.

    Args:
        folder: where.
        named_images: (name without suffix, image) pairs.
        overwrite: as in `new_files`.

    Returns:
        The paths, in order.
    """
    from PIL.PngImagePlugin import PngInfo

    with new_files(folder, overwrite) as reserve:
        parts = []
        for name, image in named_images:
            notes = PngInfo()
            for key, value in image.info.items():
                notes.add_itxt(str(key), str(value))
            parts.append(reserve(f"{name}.png"))
            image.save(parts[-1], format="PNG", pnginfo=notes)
    return [part.with_name(part.name[1 : -len(".part")]) for part in parts]
