"""Scan of pickles before they are read: limits on the nesting of values and on the size of tuples.

A tuple that is the key of a dictionary is hashed with all that it holds: deep nesting overflows the stack, and sixty
tuples that each hold the one before twice would take years. The scan reads opcodes and builds no object.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast


MAX_OPCODES = 1_000_000  # a checkpoint has tens for each tensor
MAX_DEPTH = 1_000
MAX_WEIGHT = 1_000_000

_MAX_PICKLE = 2**26  # bytes of names and shapes; the tensors are separate records
_OLD_PICKLES = 5  # of the format before zip: magic number, version, system, content, names of storages
_UNHASHABLE = ("list", "dict", "set")
_FILLING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # put values into the lowest one taken


class _Value(NamedTuple):
    depth: int
    weight: int  # values in it, each as often as it occurs


_MARK = _Value(-1, 0)


def scan_torch_file(path: str | Path) -> None:
    """Scans all pickles in a file of `torch.save`.

    Raises:
        ValueError: as [`scan_pickle`]; records that are compressed, or a file of another format.
    """
    if not zipfile.is_zipfile(path):
        with Path(path).open("rb") as file:
            for _ in range(_OLD_PICKLES):
                scan_pickle(file)
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        # torch.save compresses nothing, and a compressed record could expand without limit.
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("compressed records")
        [pickled] = [record for record in records if record.filename.endswith("data.pkl")]
        if pickled.file_size > _MAX_PICKLE:
            raise ValueError(f"a pickle of {pickled.file_size:,} bytes beside the tensors")
        scan_pickle(BytesIO(archive.read(pickled)))


def scan_pickle(file: BinaryIO) -> None:
    """Scans one pickle; the file's position is behind it then.

    Raises:
        ValueError: more opcodes, a deeper nesting or a larger tuple than checkpoints have; or no pickle.
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
            memo[cast(int, argument)] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[cast(int, argument)])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(_MARK)
        else:
            _apply(opcode, stack)


def _apply(opcode: pickletools.OpcodeInfo, stack: list[_Value]) -> None:
    """Replaces the arguments of an opcode on the stack by its results."""
    taken = list(_take(opcode, stack))
    filled = taken.pop().depth if opcode.name in _FILLING else 0
    for made in opcode.stack_after:
        depth = max(filled, 1 + max((value.depth for value in taken), default=0))
        weight = 1 if made.name in _UNHASHABLE else 1 + sum(value.weight for value in taken)
        if depth > MAX_DEPTH:
            raise ValueError(f"values nested more than {MAX_DEPTH:,} deep")
        if weight > MAX_WEIGHT:
            raise ValueError(f"tuples of more than {MAX_WEIGHT:,} values")
        stack.append(_Value(depth, weight))


def _take(opcode: pickletools.OpcodeInfo, stack: list[_Value]) -> Iterator[_Value]:
    """Pops the arguments of an opcode; it takes all values down to a mark, or a fixed number."""
    before = opcode.stack_before
    single = len(before)
    if pickletools.markobject in before:
        single = before.index(pickletools.markobject)
        while (value := stack.pop()) is not _MARK:
            yield value
    for _ in range(single):
        yield stack.pop()
