"""Pickles looked through before they are read: how deep their values nest, how large tuples are when written out.

A tuple that is the key of a dictionary is hashed along all that it holds: nested deeply enough it ends the process,
and sixty of them, each of twice the one before, would take years. Nothing is built here.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple


MAX_OPCODES = 1_000_000  # tens for each tensor of a checkpoint
MAX_DEPTH = 1_000
MAX_WEIGHT = 1_000_000

_MAX_PICKLE = 2**26  # bytes of names and shapes; tensors lie beside them
_OLD_PICKLES = 5  # of the format before zip: magic number, version, system, what was saved, names of storages
_CHANGEABLE = ("list", "dict", "set")  # are never hashed
_FILLING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # put values into the lowest one taken


class _Value(NamedTuple):
    depth: int
    weight: int  # values in it, each as often as it is there


_MARK = _Value(-1, 0)


def scan_torch_file(path: str | Path) -> None:
    """Looks through all pickles in a file of `torch.save`.

    Raises:
        ValueError: as [`scan_pickle`]; records that are compressed, or a file of another form.
    """
    if not zipfile.is_zipfile(path):
        with Path(path).open("rb") as file:
            for _ in range(_OLD_PICKLES):
                scan_pickle(file)
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        # torch.save compresses nothing: what is compressed could grow without end when it is read.
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("compressed records")
        [pickled] = [record for record in records if record.filename.endswith("data.pkl")]
        if pickled.file_size > _MAX_PICKLE:
            raise ValueError(f"a pickle of {pickled.file_size:,} bytes beside the tensors")
        scan_pickle(BytesIO(archive.read(pickled)))


def scan_pickle(file: BinaryIO) -> None:
    """Reads one pickle, and stands behind it.

    Raises:
        ValueError: more opcodes, a deeper nesting or a larger tuple than a checkpoint has; or no pickle.
    """
    stack: list[_Value] = []
    memo: dict[int, _Value] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number > MAX_OPCODES:
            raise ValueError(f"a pickle of more than {MAX_OPCODES:,} opcodes")
        name = opcode.name
        if name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name.endswith("PUT"):
            memo[int(argument)] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[int(argument)])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(_MARK)
        else:
            _apply(opcode, stack)


def _apply(opcode: pickletools.OpcodeInfo, stack: list[_Value]) -> None:
    """Takes from the stack what an opcode takes, and puts there what it makes of it."""
    taken = list(_take(opcode, stack))
    filled = taken.pop().depth if opcode.name in _FILLING else 0
    for made in opcode.stack_after:
        depth = max(filled, 1 + max((value.depth for value in taken), default=0))
        weight = 1 if made.name in _CHANGEABLE else 1 + sum(value.weight for value in taken)
        if depth > MAX_DEPTH:
            raise ValueError(f"values nested more than {MAX_DEPTH:,} deep")
        if weight > MAX_WEIGHT:
            raise ValueError(f"tuples of more than {MAX_WEIGHT:,} values")
        stack.append(_Value(depth, weight))


def _take(opcode: pickletools.OpcodeInfo, stack: list[_Value]) -> Iterator[_Value]:
    before = opcode.stack_before
    single = len(before)
    if pickletools.markobject in before:
        single = before.index(pickletools.markobject)
        while (value := stack.pop()) is not _MARK:
            yield value
    for _ in range(single):
        yield stack.pop()
