"""Whole numbers on a command line: types for argparse."""

import argparse


def at_least_one(text: str) -> int:
    """A whole number from 1 up."""
    return _whole_number(text, 1, None)


def seed(text: str) -> int:
    """What a random generator can be begun with."""
    return _whole_number(text, 0, 2**64 - 1)


def _whole_number(text: str, least: int, most: int | None) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least or (most is not None and number > most):
        limits = f"{least} or more" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number, {limits}")
    return number
