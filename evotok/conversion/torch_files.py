"""Reading files of `torch.save` from strangers: tensors, containers and plain values, and no call of anything else."""

import argparse
import importlib.util
import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals


_PATHS = re.compile(r"pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path")
_GLOBAL_IN_MESSAGE = re.compile(r"GLOBAL ([\w.]+)")


class StandIn:
    """In the place of an enum member or a path among a training's arguments: remembers what it was made of."""

    def __init__(self, *values: Any):
        self.values = values


def read_torch_file(path: Path) -> Any:
    """What a file of `torch.save` holds. Tensors of the usual (zip) format stay on disk until they are looked at.

    Beyond the types that `weights_only` knows, `argparse.Namespace` is let through; paths, and types of programs that
    are not installed (an enum in the arguments), become a [`StandIn`]. Nothing that the file names is imported.

    Raises:
        ValueError: the file names a function or type that a checkpoint has no use for, or is damaged.
        OSError: it cannot be opened.
    """
    with path.open("rb"):
        pass
    is_zip = zipfile.is_zipfile(path)
    try:
        unknown = get_unsafe_globals_in_checkpoint(str(path)) if is_zip else []
        unknown = [name for name in unknown if name != "argparse.Namespace"]
        for name in unknown:
            if not _is_foreign_type(name):
                raise _Forbidden(name)
        # One type a name: torch keeps the allowed ones in a dict of the names.
        stand_ins = [(type(name.rpartition(".")[2], (StandIn,), {}), name) for name in unknown]
        with safe_globals([argparse.Namespace, *stand_ins]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except _Forbidden as error:
        name = str(error)
    except pickle.UnpicklingError as error:
        found = _GLOBAL_IN_MESSAGE.search(str(error))
        if found is None:
            raise _damaged(path, error) from None
        name = found[1]
    except Exception as error:  # noqa: BLE001 - a stranger's bytes raise anything
        raise _damaged(path, error) from None
    raise ValueError(f"{path}: asks for {name}, which a checkpoint has no use for: refused, nothing of it was run.")


class _Forbidden(Exception):  # noqa: N818 - the name of what is forbidden
    pass


def _is_foreign_type(name: str) -> bool:
    """A path, or something of a program that is not here: what could do harm is always here."""
    if _PATHS.fullmatch(name):
        return True
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return False
    if top == "__main__":
        return True
    try:
        return importlib.util.find_spec(top) is None
    except (ImportError, ValueError):
        return False


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()).split("Please file an issue")[0][:120]
    return ValueError(
        f"{path}: not a file of torch.save, or damaged ({reason or type(error).__name__}). Copy it again."
    )
