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
from typing import Any, cast

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from evotok.data.errors import reason
from evotok.eval.pickle_scan import scan_torch_file


_PATHS = re.compile(r"pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path")
_EXPECTED = re.compile(r"torch\.|collections\.(OrderedDict|Counter)$|argparse\.Namespace$|_codecs\.encode$")
_SCANNED_BYTES = 2**24


class StandIn:
    """Placeholder for an enum member or a path in the arguments of a training."""

    def __init__(self, *values: Any):
        self.values = values


def read_torch_file(path: Path) -> Any:
    """Reads a file of `torch.save`. Tensors of the usual (zip) format stay on disk until they are used.

    Beside the types of `weights_only`, `argparse.Namespace` is allowed; paths, and types of modules that are not
    installed (an enum in the arguments), become a [`StandIn`]. Nothing is imported.

    Raises:
        ValueError: the file calls a function or type that no checkpoint needs, or is damaged.
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
            if not _is_harmless(name):
                raise _Forbidden(name)
        # A type for each name: torch keeps the allowed types in a dict by name.
        stand_ins = [(type(name.rpartition(".")[2], (StandIn,), {}), name) for name in unknown]
        with safe_globals([argparse.Namespace, *stand_ins]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except _Forbidden as error:
        name = str(error)
    except Exception as error:  # noqa: BLE001 - untrusted bytes raise any type
        name = _first_forbidden(path, is_zip)
        if name is None:
            raise ValueError(
                f"{path}: not a file of torch.save, or damaged ({reason(error, 120)}). Copy it again."
            ) from None
    raise ValueError(f"{path}: calls {name}, which no checkpoint needs: refused, nothing of it was run.")


class _Forbidden(Exception):  # noqa: N818 - the name of what is forbidden
    pass


def _first_forbidden(path: Path, is_zip: bool) -> str | None:
    """Finds the first forbidden name in pickles of any protocol, for the message, without running them."""
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
                    if not (_EXPECTED.match(name) or _is_harmless(name)):
                        return name
                end = cast(int, start)
            position += end + 1
    except Exception:  # noqa: BLE001 - as above
        return None
    return None


def _is_harmless(name: str) -> bool:
    """Returns whether a name is of a path, or of a module that is not installed and so cannot run."""
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
