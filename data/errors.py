"""What an error says to people: one line, and nothing in it that a terminal would obey."""

import re


_WORKER = re.compile(r"Caught [\w.]+ in DataLoader worker process \d+\.\nOriginal Traceback")


# Controls, with those of 8 bits; halves of characters; what breaks lines, and what turns the direction of writing.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with all that a terminal would obey spelled out; its line breaks and tabs stay."""
    return _OBEYED.sub(
        lambda match: f"\\x{ord(match[0]):02x}" if match[0] < "\xff" else f"\\u{ord(match[0]):04x}", text
    )


def visible_json(text: str) -> str:
    """JSON as `visible` would have it, and still JSON."""
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def printable(message: str) -> str:
    """`message` as one line of at most 500 characters; what would move the cursor or hide text is spelled out."""
    words = " ".join(message.split())
    words = words if len(words) <= 500 else f"{words[:450]} ..."
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)


def one_line(error: BaseException) -> str:
    """The message of an error; that of the operating system names the file and what is wrong with it, that of a worker
    of a loader is the one that the worker had."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return printable(f"{error.filename}: {error.strerror.lower()}: check the path.")
    return printable(_without_traceback(str(error))) or type(error).__name__


def _without_traceback(message: str) -> str:
    """What a worker raised, of the traceback that PyTorch hands on as a message."""
    if not _WORKER.match(message):
        return message
    _, _, last_frame = message.rpartition('\n  File "')
    lines = last_frame.splitlines()[1:]
    said = next((number for number, line in enumerate(lines) if not line.startswith("    ")), 0)
    kind, _, reason = "\n".join(lines[said:]).partition(": ")
    return reason or kind


def why_no_record(error: BaseException) -> str:
    """Why a row of a data set is no record: what its adapter raised, which for a missing column is a KeyError."""
    return f"no column {printable(str(error))}" if isinstance(error, KeyError) else one_line(error)
