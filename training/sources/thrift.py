"""Structures in Thrift's compact encoding, as the page headers of parquet are written."""

from typing import Any


_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_MAX_DEPTH = 8


def read_struct(data: memoryview, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Fields of a structure by their numbers, integers and structures alone, and where it ends.

    Raises:
        IndexError: it is longer than the data.
        ValueError: it is none.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("structures nested too deeply")
    found, number = {}, 0
    while head := data[place]:
        place += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            number, place = _integer(data, place)
        if kind in (_TRUE, _FALSE):
            continue
        value, place = _value(data, place, kind, depth)
        if value is not None:
            found[number] = value
    return found, place + 1


def _value(data: memoryview, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_I16, _I32, _I64):
        return _integer(data, place)
    if kind == _STRUCT:
        return read_struct(data, place, depth + 1)
    if kind == _BINARY:
        size, place = _unsigned(data, place)
        return None, place + size
    if kind in (_BYTE, _DOUBLE):
        return None, place + (1 if kind == _BYTE else 8)
    raise ValueError(f"a field of kind {kind}, which no page header has")


def _unsigned(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise ValueError("an integer of more than 64 bits")


def _integer(data: memoryview, place: int) -> tuple[int, int]:
    value, place = _unsigned(data, place)
    return (value >> 1) ^ -(value & 1), place  # zigzag


__all__ = ["read_struct"]
