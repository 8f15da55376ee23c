"""Reads untrusted files of `torch.save`: tensors, containers and plain values, and no call of anything else."""

import argparse
import importlib.util
import pickletools
import re
import sys
import tarfile
import zipfile
from _compat_pickle import IMPORT_MAPPING
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from evotok.eval.pickle_scan import scan_torch_file


_PATHS = re.compile(r"pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path")
_EXPECTED = re.compile(r"torch\.|collections\.(OrderedDict|Counter)$|argparse\.Namespace$|_codecs\.encode$")
_SCANNED_BYTES = 2**24


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
        if not is_zip and tarfile.is_tarfile(path):
            raise ValueError("a tar of pickles, as PyTorch wrote before 0.1.10")
        scan_torch_file(path)
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
    except Exception as error:  # noqa: BLE001 - untrusted bytes raise anything
        name = _first_forbidden(path, is_zip)
        if name is None:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise ValueError(f"{path}: not a file of torch.save, or damaged ({reason}). Copy it again.") from None
    raise ValueError(f"{path}: asks for {name}, which a checkpoint has no use for: refused, nothing of it was run.")


class _Forbidden(Exception):  # noqa: N818 - the name of what is forbidden
    pass


def _first_forbidden(path: Path, is_zip: bool) -> str | None:
    """What stopped the reading, for the message: found without running anything, in pickles of any protocol."""
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                [record] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                with archive.open(record) as file:
                    content = file.read(_SCANNED_BYTES)
        else:
            with path.open("rb") as file:
                content = file.read(_SCANNED_BYTES)
        position = 0
        while position < len(content):  # the old format is several pickles in a row
            strings: list[str] = []
            for opcode, argument, start in pickletools.genops(content[position:]):
                if opcode.name in ("GLOBAL", "INST"):
                    module, name = str(argument).split(" ", 1)
                    strings += [IMPORT_MAPPING.get(module, module), name]  # Python 2's names, in protocol 2
                elif isinstance(argument, str):
                    strings.append(argument)
                if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                    name = ".".join(strings[-2:])
                    if not (_EXPECTED.match(name) or _is_foreign_type(name)):
                        return name
                end = start
            position += end + 1
    except Exception:  # noqa: BLE001 - as above
        return None
    return None


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
