"""Images on a terminal: the printed text decodes to the image."""

import io
import re
from base64 import b64decode

import pytest
from PIL import Image

from evotok.commands.terminal import (
    KITTY_CHUNK,
    choose_protocol,
    encode_blocks,
    encode_iterm2,
    encode_kitty,
    show_image,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def image():
    """Returns noise, whose PNG has several chunks."""
    return Image.effect_noise((96, 96), 90).convert("RGB")


def is_same(data: str, image: Image.Image) -> bool:
    return Image.open(io.BytesIO(b64decode(data))).tobytes() == image.tobytes()


def test_encode_kitty_is_a_png_in_chunks(image):
    sequences = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", encode_kitty(image))
    assert len(sequences) > 1 and all(len(data) <= KITTY_CHUNK for _, data in sequences)
    assert sequences[0][0].startswith("a=T,f=100,")
    assert [keys[-3:] for keys, _ in sequences] == ["m=1"] * (len(sequences) - 1) + ["m=0"]
    assert is_same("".join(data for _, data in sequences), image)


def test_encode_iterm2_is_a_png(image):
    size, data = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+);height=\d+:(.*)\x07", encode_iterm2(image)).groups()
    assert int(size) == len(b64decode(data)) and is_same(data, image)


def test_encode_blocks_has_two_pixels_a_character():
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
def test_choose_protocol_follows_the_environment(environ, protocol):
    assert choose_protocol(environ) == protocol


def test_show_image_prints_to_terminals_only(image, monkeypatch):
    monkeypatch.setenv("KITTY_WINDOW_ID", "1")
    file, terminal = io.StringIO(), Terminal()
    assert not show_image(image, file) and not file.getvalue()
    assert show_image(image, terminal) and terminal.getvalue().startswith("\x1b_G")
