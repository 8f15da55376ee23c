"""Error messages as single lines, and text without the control characters that a terminal would act on."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


_WORKER = re.compile(r"Caught [\w.]+ in DataLoader worker process \d+\.\nOriginal Traceback")
# Control characters except tab and newline, marks that change the direction of text, line separators, lone surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
    r"""Escapes control characters as `\x1b` or `\u202e`; line breaks and tabs stay."""
    return _CONTROLS.sub(
        lambda match: f"\\x{ord(match[0]):02x}" if match[0] < "\xff" else f"\\u{ord(match[0]):04x}", text
    )


def escape_controls_json(text: str) -> str:
    r"""Escapes control characters in JSON as `\u001b`, so that it stays the same JSON."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def printable(message: str) -> str:
    """Formats a message as one line of at most 500 characters, unprintable ones escaped."""
    line = " ".join(message.split())
    line = line if len(line) <= 500 else f"{line[:450]} ..."
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


def one_line(error: BaseException) -> str:
    """Formats an error as one line.

    An error of the operating system is given with its file; one of a data loader's worker without the traceback that
    PyTorch puts around it.
    """
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return printable(f"{error.filename}: {error.strerror.lower()}: check the path.")
    return printable(_without_traceback(str(error))) or type(error).__name__


def reason(error: BaseException, limit: int = 200, prefix: str = "") -> str:
    """Shortens the message of a library's error, without `prefix`, for use inside of another message."""
    line = " ".join(str(error).split()).removeprefix(prefix)
    return (line if len(line) <= limit else f"{line[: limit - 4]} ...") or type(error).__name__


@contextmanager
def explain_errors(subject: str, problem: str, correction: str) -> Iterator[None]:
    """Converts any error within a context into a ValueError: `{subject}: {problem} (reason){correction}`."""
    try:
        yield
    except Exception as error:  # untrusted files raise nearly any type
        found = reason(error, prefix=f"{subject}: ")
        raise ValueError(f"{subject}: {problem} ({found}){correction}") from error


def image_reason(error: BaseException) -> str:
    """Shortens the message of a bad image for the client of a server, who cannot raise the limit of pixels."""
    return str(error).removeprefix("image: ").replace(", or raise max_pixels", "")


def row_reason(error: BaseException) -> str:
    """Formats why a row could not be converted; a `KeyError` is a missing column."""
    return f"no column {printable(str(error))}" if isinstance(error, KeyError) else one_line(error)


def _without_traceback(message: str) -> str:
    if not _WORKER.match(message):
        return message
    _, _, last_frame = message.rpartition('\n  File "')
    lines = last_frame.splitlines()[1:]
    first = next((number for number, line in enumerate(lines) if not line.startswith("    ")), 0)
    kind, _, text = "\n".join(lines[first:]).partition(": ")
    return text or kind
