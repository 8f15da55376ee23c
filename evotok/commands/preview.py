"""Pictures in the terminal: by the graphics protocols of kitty and iTerm2, else in colored half blocks.

Kitty's is spoken by kitty, Ghostty and Konsole; iTerm2's by iTerm2, WezTerm and VS Code.
"""

import os
import sys
from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, TextIO


if TYPE_CHECKING:
    from PIL import Image

ROWS = 16  # height of a preview in lines of text
KITTY_CHUNK = 4096  # most characters of one escape sequence
ITERM_PROGRAMS = ("iTerm.app", "WezTerm", "vscode")


def show_preview(image: "Image.Image", stream: TextIO | None = None) -> bool:
    """Show a PIL image on a terminal; whether that was possible."""
    stream = sys.stdout if stream is None else stream
    encode = ENCODERS.get(pick_protocol(os.environ) if stream.isatty() else None)
    if encode is None:
        return False
    print(encode(image), file=stream, flush=True)
    return True


def pick_protocol(environ: Mapping[str, str]) -> str | None:
    """How the terminal of these environment variables shows pictures: a key of `ENCODERS`, or None."""
    program = environ.get("TERM_PROGRAM", "")
    if "KITTY_WINDOW_ID" in environ or "KONSOLE_VERSION" in environ or program == "ghostty":
        return "kitty"
    if program in ITERM_PROGRAMS or environ.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    colors = environ.get("COLORTERM") in ("truecolor", "24bit") and not environ.get("NO_COLOR")
    return "blocks" if colors else None


def _png(image: "Image.Image") -> bytes:
    file = BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def encode_kitty(image: "Image.Image") -> str:
    """A PNG in as many escape sequences as it needs."""
    data = b64encode(_png(image)).decode()
    chunks = [data[start : start + KITTY_CHUNK] for start in range(0, len(data), KITTY_CHUNK)]
    keys = [f"a=T,f=100,r={ROWS},"] + [""] * (len(chunks) - 1)
    more = [1] * (len(chunks) - 1) + [0]
    return "".join(f"\x1b_G{k}m={m};{chunk}\x1b\\" for k, m, chunk in zip(keys, more, chunks, strict=True))


def encode_iterm2(image: "Image.Image") -> str:
    """A PNG in one escape sequence."""
    data = _png(image)
    return f"\x1b]1337;File=inline=1;size={len(data)};height={ROWS}:{b64encode(data).decode()}\x07"


def encode_blocks(image: "Image.Image") -> str:
    """Two pixels a character: the upper half block in one color on a background of the other."""
    from PIL import Image

    height = 2 * ROWS
    width = max(1, min(4 * ROWS, round(image.width * height / image.height)))
    small = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
    lines = []
    for y in range(0, height, 2):
        pairs = ((small.getpixel((x, y)), small.getpixel((x, y + 1))) for x in range(width))
        cells = ("\x1b[38;2;{};{};{};48;2;{};{};{}m\u2580".format(*upper, *lower) for upper, lower in pairs)
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


ENCODERS = {"kitty": encode_kitty, "iterm2": encode_iterm2, "blocks": encode_blocks}
