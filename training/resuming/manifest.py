"""The manifest of a training checkpoint: names, sizes and SHA-256 of its files, written last, checked before resuming.

    {"format": 1, "step": 2000, "finished": true, "files": {"optimizer.pt": [1234, "9f86..."], ...}}

Every process syncs and hashes the files that it wrote, and checks its share of them.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from ...data.atomic_files import atomic_file, sync


MANIFEST = "manifest.json"
UNFINISHED = "not written to its end"
_FORMAT = 1
_MAX_BYTES = 64_000_000  # of a manifest: some hundred thousand files
_RANK = re.compile(r"(?:rank|state)_?(\d+)")


def step_of(folder: Path) -> int:
    """Returns the step of a folder `checkpoint-N`."""
    return int(folder.name.rpartition("-")[2])


def begin_manifest(folder: Path) -> None:
    """Marks a checkpoint as unfinished, before anything else is written."""
    _write(folder, {"format": _FORMAT, "step": step_of(folder), "finished": False})


def hash_files(folder: Path, rank: int = 0, world_size: int = 1) -> dict[str, tuple[int, str]]:
    """Syncs the files that a process wrote; returns their sizes and SHA-256 by their names in the folder."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and _owner(name, world_size) == rank:
            sync(path)
            hashes[name] = path.stat().st_size, _sha256(path)
    return hashes


def finish_manifest(folder: Path, files: dict[str, tuple[int, str]]) -> None:
    """Marks a checkpoint as finished, after the names of its files are on the disk, too.

    Args:
        files: results of [`hash_files`], of all processes.
    """
    folders = [path for path in folder.rglob("*") if path.is_dir()]
    for path in (*sorted(folders, key=lambda path: len(path.parts), reverse=True), folder, folder.absolute().parent):
        sync(path)
    _write(folder, {"format": _FORMAT, "step": step_of(folder), "finished": True, "files": files})


def find_damage(folder: Path, rank: int = 0, world_size: int = 1, contents: bool = True) -> str | None:
    """Returns why a checkpoint cannot be resumed, or None. Reads only the process's share of the files.

    Args:
        contents: whether files are hashed; otherwise only their sizes are compared.
    """
    if not (folder / MANIFEST).exists():
        written = (folder / "trainer_state.json").exists()
        return f"no {MANIFEST}, by which it could be checked" if written else UNFINISHED
    manifest = _read(folder / MANIFEST)
    if manifest is None:
        return f"{MANIFEST} is damaged"
    if not manifest["finished"]:
        return UNFINISHED
    files = manifest["files"]
    if manifest["step"] != step_of(folder):
        return f"of step {manifest['step']}, by its {MANIFEST}"
    if "trainer_state.json" not in files or not any(re.fullmatch(r"rng_state.*\.pth", name) for name in files):
        return "weights alone, saved with training.save_only_model"
    share = {name: entry for name, entry in files.items() if _owner(name, world_size) == rank}
    for name, (size, _) in share.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes of {size:,}"
    damaged = (name for name, (_, digest) in share.items() if _sha256(folder / name) != digest)
    return next((f"{name} is damaged" for name in damaged), None) if contents else None


def discard(folder: Path) -> None:
    """Removes a checkpoint; it is renamed first, so that a part of it is never resumed."""
    _remove_discarded(folder.parent)  # left by a run that was killed here
    if folder.is_dir():
        folder.rename(folder.with_name(f".removed-{folder.name}"))
        _remove_discarded(folder.parent)


def _remove_discarded(folder: Path) -> None:
    for path in folder.glob(".removed-checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def _owner(name: str, world_size: int) -> int:
    """Returns the rank that writes a file: 0, unless its name contains a rank, as do
    `rng_state_1.pth` and DeepSpeed's `zero_pp_rank_1_mp_rank_00_optim_states.pt`."""
    match = _RANK.search(name.rpartition("/")[2])
    return int(match[1]) % world_size if match else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    with atomic_file(folder / MANIFEST) as part:
        part.write_text(json.dumps(manifest, indent=0), encoding="utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    """Reads a manifest; None unless its values are of the right types."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = manifest["files"] if manifest["finished"] else {}
        valid = manifest["format"] == _FORMAT and type(manifest["step"]) is int and type(manifest["finished"]) is bool
        for name, (size, digest) in files.items():
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts
            valid = valid and inside and type(size) is int and isinstance(digest, str)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return manifest if valid else None
