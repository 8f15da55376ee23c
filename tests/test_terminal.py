"""Pictures in the terminal: what is written decodes to the picture again."""

import io
import re
from base64 import b64decode

import pytest
from PIL import Image

from evotok.commands.preview import KITTY_CHUNK, encode_blocks, encode_iterm2, encode_kitty, pick_protocol, show_preview


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def image():
    """Noise compresses badly: a PNG of several chunks."""
    return Image.effect_noise((96, 96), 90).convert("RGB")


def same(data: str, image: Image.Image) -> bool:
    return Image.open(io.BytesIO(b64decode(data))).tobytes() == image.tobytes()


def test_kitty(image):
    sequences = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", encode_kitty(image))
    assert len(sequences) > 1 and all(len(data) <= KITTY_CHUNK for _, data in sequences)
    assert sequences[0][0].startswith("a=T,f=100,")
    assert [keys[-3:] for keys, _ in sequences] == ["m=1"] * (len(sequences) - 1) + ["m=0"]
    assert same("".join(data for _, data in sequences), image)


def test_iterm2(image):
    size, data = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+);height=\d+:(.*)\x07", encode_iterm2(image)).groups()
    assert int(size) == len(b64decode(data)) and same(data, image)


def test_blocks_are_two_pixels_a_character():
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    image.paste((0, 0, 255), (0, 1, 32, 2))
    lines = encode_blocks(image).splitlines()
    assert len(lines) == 16 and lines[0].count("\u2580") == 32
    assert lines[0].startswith("\x1b[38;2;255;0;0;48;2;0;0;255m") and lines[0].endswith("\x1b[0m")


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm", "COLORTERM": "truecolor"}, "iterm2"),
        ({"COLORTERM": "truecolor"}, "blocks"),
        ({"COLORTERM": "truecolor", "NO_COLOR": "1"}, None),
        ({}, None),
    ],
)
def test_protocol_of_a_terminal(environ, protocol):
    assert pick_protocol(environ) == protocol


def test_nothing_is_shown_but_to_a_terminal(image, monkeypatch):
    monkeypatch.setenv("KITTY_WINDOW_ID", "1")
    file, terminal = io.StringIO(), Terminal()
    assert not show_preview(image, file) and not file.getvalue()
    assert show_preview(image, terminal) and terminal.getvalue().startswith("\x1b_G")
