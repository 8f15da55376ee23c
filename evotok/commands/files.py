"""Files that commands write: safe names, and all of them or none."""

import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def safe_name(text: str, length: int = 48) -> str:
    """A file name, without its suffix, that every system takes: `A café, 3D!` -> `a-cafe-3d`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:length].rstrip("-") or "image"


def check_folder(folder: str | Path) -> Path:
    """A folder to write to, there already or to be made.

    Raises:
        ValueError: it, or what should hold it, is a file; or no folder can have such a name.
    """
    path = Path(folder)
    try:
        place = next((place for place in (path, *path.parents) if place.exists()), path)
    except OSError as error:
        raise ValueError(f"{str(path)[:80]}: {error.strerror.lower()}: give another folder to write to.") from None
    if not place.is_dir():
        raise ValueError(f"{place}: this is a file, give a folder to write to.")
    return path


def check_file(path: str | Path) -> Path:
    """A file to write, in a folder that is there already or to be made.

    Raises:
        ValueError: it is a folder, or what should hold it is a file.
    """
    path = Path(path)
    check_folder(path.parent)
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder, give the name of a file to write.")
    return path


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
    folder = check_folder(folder)
    parts: dict[Path, Path] = {}
    taken: set[Path] = set()
    numbers: dict[str, int] = {}  # the next to be tried, by name: thousands of pictures may have one name

    def reserve(name: str) -> Path:
        final = folder / name
        while final in taken or (final.exists() and not overwrite):
            numbers[name] = numbers.get(name, 1) + 1
            final = folder / f"{Path(name).stem}-{numbers[name]}{Path(name).suffix}"
        taken.add(final)
        part = folder / f".{final.name}.part"
        part.unlink(missing_ok=True)  # left by a run that was killed, or a link that somebody planted
        parts[part] = final
        return part

    with made_folder(folder):
        try:
            yield reserve
            for part, final in parts.items():
                part.replace(final)
        except BaseException:
            for part in parts:
                part.unlink(missing_ok=True)
            raise


@contextmanager
def filled_folder(folder: str | Path, outdated: Iterable[str] = ()) -> Iterator[Path]:
    """A folder that gets many files together, when all are written; after an error it is as it was.

    Args:
        folder: where; made if missing. Files in it stay, but for those of the same name as a new one.
        outdated: patterns of names; files of such names that are not written anew would contradict them, and go.

    Yields:
        Path of an empty folder to write into, flat.

    Raises:
        ValueError: `folder` is a file.
    """
    folder = check_folder(folder)
    with made_folder(folder), tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        yield Path(part)
        new = [path.name for path in Path(part).iterdir()]
        for path in {path for pattern in outdated for path in folder.glob(pattern)}:
            if path.name not in new:
                path.unlink()
        for name in new:
            (Path(part) / name).replace(folder / name)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes a folder and its parents; after an error, those that were missing and are empty go again."""
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
    """Checks the name of a folder to make.

    Raises:
        ValueError: it is a file, or a folder with files in it.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: this is there already, give a folder that is new or empty.")
    return folder


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
    from evotok.data.atomic_files import move_synced, sync_files

    folder = check_new_folder(folder)
    part = folder.with_name(folder.name + ".part")
    if part.exists():
        raise ValueError(f"{part}: this is there already, left by a run that was stopped: remove it.")
    with made_folder(folder.parent):
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
