"""Files that commands write: safe names, and sets of files that are written together or not at all."""

import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def safe_name(text: str, length: int = 48) -> str:
    """Makes a file name, without suffix, that is valid on every system: `A café, 3D!` -> `a-cafe-3d`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:length].rstrip("-") or "image"


def check_folder(folder: str | Path) -> Path:
    """Checks a folder to write to, which may not exist yet.

    Raises:
        ValueError: it, or a folder above it, is a file; or its name is too long.
    """
    path = Path(folder)
    try:
        place = next((place for place in (path, *path.parents) if place.exists()), path)
    except OSError as error:
        raise ValueError(
            f"{str(path)[:80]}: {(error.strerror or str(error)).lower()}: give another folder to write to."
        ) from None
    if not place.is_dir():
        raise ValueError(f"{place}: this is a file, give a folder to write to.")
    return path


def check_file(path: str | Path) -> Path:
    """Checks a file to write, in a folder that may not exist yet.

    Raises:
        ValueError: it is a folder, or a folder above it is a file.
    """
    path = Path(path)
    check_folder(path.parent)
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder, give the name of a file to write.")
    return path


@contextmanager
def new_files(folder: str | Path, overwrite: bool = False) -> Iterator[Callable[[str], Path]]:
    """Writes files together within a context: they get their names at its end, and are removed after an error.

    Args:
        folder: created if missing.
        overwrite: whether a file of the same name is replaced; otherwise the new one gets a number.

    Yields:
        Function: name -> path to write to (it ends in `.part`).

    Raises:
        ValueError: `folder` is a file.
    """
    from evotok.data.atomic_files import sync

    folder = check_folder(folder)
    parts: dict[Path, Path] = {}
    taken: set[Path] = set()
    numbers: dict[str, int] = {}  # next number of each name: thousands of images may have one name

    def reserve(name: str) -> Path:
        final = folder / name
        while final in taken or (final.exists() and not overwrite):
            numbers[name] = numbers.get(name, 1) + 1
            final = folder / f"{Path(name).stem}-{numbers[name]}{Path(name).suffix}"
        taken.add(final)
        part = folder / f".{final.name}.part"
        part.unlink(missing_ok=True)  # of a run that was killed, or a link that another user made
        parts[part] = final
        return part

    with create_folder(folder):
        try:
            yield reserve
            for part in parts:
                sync(part)  # a full disk is noticed here, before a file has its name
            for part, final in parts.items():
                part.replace(final)
            sync(folder)
        except BaseException:
            for part in parts:
                part.unlink(missing_ok=True)
            raise


@contextmanager
def add_files(folder: str | Path, outdated: Iterable[str] = ()) -> Iterator[Path]:
    """Adds files to a folder together, at the end of a context; after an error the folder is as before.

    Args:
        folder: created if missing. Its files stay, unless a new one has the same name.
        outdated: patterns of names; old files of such names, which would contradict the new ones, are removed.

    Yields:
        Path of an empty folder to write into, flat.

    Raises:
        ValueError: `folder` is a file.
    """
    from evotok.data.atomic_files import sync, sync_files

    folder = check_folder(folder)
    with create_folder(folder), tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        yield Path(part)
        sync_files(part)  # a full disk is noticed here, before the folder changes
        new = [path.name for path in Path(part).iterdir()]
        for path in {path for pattern in outdated for path in folder.glob(pattern)}:
            if path.name not in new:
                path.unlink()
        for name in new:
            (Path(part) / name).replace(folder / name)
        sync(folder)


@contextmanager
def create_folder(folder: Path) -> Iterator[None]:
    """Creates a folder and its parents for a context; after an error, those of them that are empty are removed."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def check_new_folder(folder: str | Path) -> Path:
    """Checks a folder to create.

    Raises:
        ValueError: it is a file, or a folder with files in it.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: this exists already, give a new or empty folder.")
    return folder


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Writes a folder atomically within a context: it gets its name at the end, and is removed after an error.

    Args:
        folder: missing or empty.

    Yields:
        Path of the folder to write into (its name ends in `.part`).

    Raises:
        ValueError: `folder` is a file, or has files in it.
    """
    from evotok.data.atomic_files import move_synced, sync_files

    folder = check_new_folder(folder)
    part = folder.with_name(folder.name + ".part")
    if part.exists():
        raise ValueError(f"{part}: this exists already, left by a run that was stopped: remove it.")
    with create_folder(folder.parent):
        part.mkdir()
        try:
            yield part
            sync_files(part)
            if folder.exists():
                folder.rmdir()
            move_synced(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def save_images(folder: str | Path, named_images: Iterable[tuple[str, Any]], overwrite: bool = False) -> list[Path]:
    """Writes PIL images as PNG together, with their `info` as text.

    Args:
        named_images: pairs of name without suffix and image.
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
