"""Structures in Thrift's compact encoding, as the footer and the page headers of parquet are written."""

from typing import Any


_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_MAX_DEPTH = 16


def read_struct(data: memoryview, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Fields of a structure by their numbers, and where it ends: integers, texts as bytes, structures and lists.

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
        if kind in (_TRUE, _FALSE):  # the value is in the kind
            found[number] = kind == _TRUE
        else:
            found[number], place = _value(data, place, kind, depth)
    return found, place + 1


def _value(data: memoryview, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_I16, _I32, _I64):
        return _integer(data, place)
    if kind == _STRUCT:
        return read_struct(data, place, depth + 1)
    if kind == _BINARY:
        size, place = _unsigned(data, place)
        if place + size > len(data):
            raise IndexError("a text longer than the data")
        return bytes(data[place : place + size]), place + size
    if kind in (_TRUE, _FALSE, _BYTE):  # the first two in lists alone
        return data[place], place + 1
    if kind == _DOUBLE:
        return None, place + 8
    if kind in (_LIST, _SET):
        return _list(data, place, depth)
    raise ValueError(f"a field of kind {kind}, which parquet does not have")


def _list(data: memoryview, place: int, depth: int) -> tuple[list, int]:
    size, kind = data[place] >> 4, data[place] & 15
    place += 1
    if size == 15:
        size, place = _unsigned(data, place)
    if depth > _MAX_DEPTH or size > len(data) - place:  # an element takes a byte at least
        raise IndexError("a list longer than the data")
    values = []
    for _ in range(size):
        value, place = _value(data, place, kind, depth + 1)
        values.append(value)
    return values, place


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
