"""Output of commands on a terminal: text or JSON, colours, progress, and images.

Images use the graphics protocols of kitty (and Ghostty, Konsole) or iTerm2 (and WezTerm, VS Code), else half blocks.
"""

import json
import os
import sys
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from io import BytesIO
from typing import TYPE_CHECKING, Any, TextIO, cast


if TYPE_CHECKING:
    from PIL import Image

IMAGE_ROWS = 16  # height of an image in lines of text
KITTY_CHUNK = 4096  # longest escape sequence in characters
ITERM_PROGRAMS = ("iTerm.app", "WezTerm", "vscode")
# Stdout, while it is redirected; None where it is not.
_real_stdout: ContextVar[TextIO | None] = ContextVar("real_stdout", default=None)


@contextmanager
def stdout_for_json(as_json: Any) -> Iterator[None]:
    """Redirects stdout to stderr within a context, with `--json` (True), except the output of `print_results`."""
    if as_json is not True:
        yield
        return
    token = _real_stdout.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _real_stdout.reset(token)


def print_results(as_json: bool, facts: dict[str, Any] | list[dict[str, Any]], lines: Iterable[str]) -> None:
    """Prints the results of a command, `facts` as JSON or `lines`, with control characters escaped."""
    from evotok.data.errors import escape_controls, escape_controls_json

    if as_json:
        print(escape_controls_json(json.dumps(facts, ensure_ascii=False)), file=_real_stdout.get())
    else:
        for line in lines:
            print(escape_controls(line), file=_real_stdout.get())


def has_colors(stream: TextIO) -> bool:
    """Returns whether a stream is a terminal with colours, and NO_COLOR (no-color.org) is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def bold(text: str, stream: TextIO) -> str:
    """Makes a text bold where the stream has colours."""
    return f"\x1b[1m{text}\x1b[0m" if has_colors(stream) else text


def progress(total: int, unit: str, description: str | None = None):
    """Creates a tqdm bar on stderr, which is removed at its end; without a terminal it is disabled."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, desc=description, disable=None, leave=False)


def waiting(text: str) -> AbstractContextManager:
    """Returns a context with a spinner on stderr; without a terminal there is none."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


def show_image(image: "Image.Image", stream: TextIO | None = None) -> bool:
    """Prints a PIL image on a terminal; returns whether the terminal can show it."""
    target = stream or sys.stdout
    protocol = choose_protocol(os.environ) if target.isatty() else None
    if protocol is None:
        return False
    print(ENCODERS[protocol](image), file=target, flush=True)
    return True


def choose_protocol(environ: Mapping[str, str]) -> str | None:
    """Chooses a key of `ENCODERS` for the terminal with these environment variables; None if it shows no images."""
    program = environ.get("TERM_PROGRAM", "")
    if "KITTY_WINDOW_ID" in environ or "KONSOLE_VERSION" in environ or program == "ghostty":
        return "kitty"
    if program in ITERM_PROGRAMS or environ.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    colors = environ.get("COLORTERM") in ("truecolor", "24bit") and not environ.get("NO_COLOR")
    return "blocks" if colors else None


def _to_png(image: "Image.Image") -> bytes:
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def encode_kitty(image: "Image.Image") -> str:
    """Encodes an image as a PNG in escape sequences of at most `KITTY_CHUNK` characters."""
    data = b64encode(_to_png(image)).decode()
    chunks = [data[start : start + KITTY_CHUNK] for start in range(0, len(data), KITTY_CHUNK)]
    keys = [f"a=T,f=100,r={IMAGE_ROWS},"] + [""] * (len(chunks) - 1)
    more = [1] * (len(chunks) - 1) + [0]
    return "".join(f"\x1b_G{k}m={m};{chunk}\x1b\\" for k, m, chunk in zip(keys, more, chunks, strict=True))


def encode_iterm2(image: "Image.Image") -> str:
    """Encodes an image as a PNG in one escape sequence."""
    data = _to_png(image)
    return f"\x1b]1337;File=inline=1;size={len(data)};height={IMAGE_ROWS}:{b64encode(data).decode()}\x07"


def encode_blocks(image: "Image.Image") -> str:
    """Encodes an image as upper half blocks, two pixels a character: the colours of the block and its background."""
    from PIL import Image

    height = 2 * IMAGE_ROWS
    width = max(1, min(4 * IMAGE_ROWS, round(image.width * height / image.height)))
    small = image.convert("RGB").resize((width, height), Image.Resampling.BOX)

    def pixel(x: int, y: int) -> tuple[int, int, int]:
        return cast("tuple[int, int, int]", small.getpixel((x, y)))

    lines = []
    for y in range(0, height, 2):
        pairs = ((pixel(x, y), pixel(x, y + 1)) for x in range(width))
        cells = ("\x1b[38;2;{};{};{};48;2;{};{};{}m\u2580".format(*upper, *lower) for upper, lower in pairs)
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


ENCODERS = {"kitty": encode_kitty, "iterm2": encode_iterm2, "blocks": encode_blocks}
