"""Images of every mode come out as upright RGB; what is no image gets one line."""

import base64
import copy
import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil

from evotok.processing import image_loading_evotok
from evotok.processing.image_loading_evotok import EvoTokImageError, find_source, load_image


SIZE = 16
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(color=RED, size=(SIZE, SIZE)):
    return Image.new("RGB", size, color)


def saved(image, format="PNG", **kwargs):
    stream = io.BytesIO()
    image.save(stream, format, **kwargs)
    return stream.getvalue()


def palette(color, transparency=None):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *color])
    return saved(image, **({} if transparency is None else {"transparency": transparency}))


def grey16(value):
    return Image.fromarray(np.full((8, 8), value, dtype=np.uint16))


def translucent(mode, color):
    return saved(Image.new(mode, (8, 8), color))


MODES = {
    "rgb": (saved(picture(RED)), RED),
    "grey": (Image.new("L", (8, 8), 77), (77,) * 3),
    "bit": (Image.new("1", (8, 8), 1), (255,) * 3),
    "palette": (palette(GREEN), GREEN),
    "palette, opaque where it counts": (palette(GREEN, transparency=0), GREEN),
    "palette, transparent": (palette(GREEN, transparency=1), (255,) * 3),
    "palette, alpha for each entry": (palette(GREEN, transparency=bytes([255, 0])), (255,) * 3),
    "rgba, transparent black": (translucent("RGBA", (0, 0, 0, 0)), (255,) * 3),
    "rgba, half": (translucent("RGBA", (0, 0, 0, 128)), (127,) * 3),
    "grey with alpha": (translucent("LA", (0, 0)), (255,) * 3),
    "premultiplied": (Image.new("RGBa", (8, 8), (0, 0, 0, 0)), (255,) * 3),
    "premultiplied grey": (Image.new("LA", (8, 8), (0, 0)).convert("La"), (255,) * 3),
    "one transparent colour": (saved(Image.new("RGB", (8, 8), RED), transparency=RED), (255,) * 3),
    "16-bit": (saved(grey16(0x8080)), (128,) * 3),
    "16-bit, dark": (saved(grey16(257)), (1,) * 3),
    "16-bit tiff": (saved(grey16(0xFFFF), "TIFF"), (255,) * 3),
    "16-bit, big-endian": (Image.frombytes("I;16B", (8, 8), b"\x80\x80" * 64), (128,) * 3),
    "32-bit with 16-bit values": (Image.new("I", (8, 8), 0x8080), (128,) * 3),
    "32-bit with 8-bit values": (Image.new("I", (8, 8), 77), (77,) * 3),
    "float, unit": (Image.new("F", (8, 8), 0.5), (128,) * 3),
    "float, bytes": (Image.new("F", (8, 8), 77.0), (77,) * 3),
    "cmyk": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), RED),
    "cmyk jpeg": (saved(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG"), (0,) * 3),
    "ycbcr": (Image.new("RGB", (8, 8), GREEN).convert("YCbCr"), GREEN),
    "hsv": (Image.new("RGB", (8, 8), BLUE).convert("HSV"), BLUE),
    "lab": (Image.new("LAB", (8, 8), (255, 128, 128)), (255,) * 3),
    "bmp": (saved(picture(BLUE), "BMP"), BLUE),
    "one pixel high": (Image.new("RGB", (300, 1), RED), RED),
    "animated": (saved(picture(RED), "GIF", save_all=True, append_images=[picture(BLUE)]), RED),
    "array": (np.full((8, 8, 3), 77, dtype=np.uint8), (77,) * 3),
    "grey array": (np.full((8, 8), 77, dtype=np.uint8), (77,) * 3),
    "tensor": (torch.full((3, 8, 8), 77, dtype=torch.uint8), (77,) * 3),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_comes_out_right(mode):
    source, expected = MODES[mode]
    image = load_image(source)
    assert not isinstance(image, Image.Image) or image.mode == "RGB"
    image_processor = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    pixels = image_processor([image], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, SIZE, SIZE)
    color = (pixels.mean(dim=(0, 2, 3)) + 1) * 127.5
    torch.testing.assert_close(color, torch.tensor(expected, dtype=color.dtype), atol=2, rtol=0)


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 10), RED)
    image.paste(BLUE, (10, 0, 20, 10))  # right half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright: the right half becomes the lower one
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    for source in (path, str(path), path.read_bytes(), Image.open(path), {"path": str(path), "bytes": None}):
        upright = load_image(source)
        assert upright.size == (10, 20)
        assert upright.getpixel((5, 2)) == RED and upright.getpixel((5, 18)) == BLUE


def test_base64_and_data_addresses():
    text = base64.b64encode(saved(picture(GREEN))).decode()
    for source in (text, "data:image/png;base64," + text):
        assert load_image(source).getpixel((0, 0)) == GREEN


def test_what_a_part_of_a_message_stands_for():
    assert find_source({"type": "image"}) is None and find_source({"image": None, "text": None}) is None
    assert find_source({"image_url": {"url": "a.png", "detail": "low"}}) == find_source({"path": "a.png"}) == "a.png"
    assert find_source({"bytes": b"a", "path": "a.png"}) == {"bytes": b"a", "path": "a.png"}
    with pytest.raises(EvoTokImageError, match="given as image and as url: give it in one way"):
        find_source({"image": "a.png", "url": "b.png"})
    for part in ({"base64": "no base64"}, {"base64": 3}):
        with pytest.raises(EvoTokImageError, match="base64 that is none"):
            load_image(part)


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF", "TGA", "QOI")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda image: pickle.loads(pickle.dumps(image))])  # noqa: S301
@pytest.mark.parametrize("format", FORMATS)
def test_images_that_have_lost_their_file(format, copied):
    """As a worker that was spawned gets them."""
    content = saved(Image.radial_gradient("L").convert("RGB").resize((SIZE, SIZE)), format)
    image = copied(Image.open(io.BytesIO(content)))
    assert not hasattr(image, "fp")
    assert load_image(image).tobytes() == image.convert("RGB").tobytes() == load_image(content).tobytes()


@pytest.mark.parametrize(("mode", "value", "expected"), [("F", 300.0, 1), ("I", 40_000, 156), ("F", -2.0, 0)])
def test_greys_without_a_range_are_read_with_a_warning(mode, value, expected, monkeypatch):
    said = []
    monkeypatch.setattr(image_loading_evotok.logger, "warning_once", said.append)
    assert load_image(Image.new(mode, (4, 4), value)).getpixel((0, 0)) == (expected,) * 3
    assert f"image of mode {mode} has no range of its own" in said.pop()
    with pytest.raises(EvoTokImageError, match="neither of 0 to 1 nor of 0 to 255"):
        load_image(Image.new("F", (4, 4), 1.5))


def png_header(width, height):
    """A PNG that says how large it is, and ends where its pixels would begin."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 9) + b"IDAT"


@pytest.fixture(scope="module")
def bad_images(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("images")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    contents = {
        "empty.png": b"",
        "text.jpg": b"this is no image",
        "truncated.jpg": saved(noise, "JPEG")[:600],
        "truncated.png": saved(noise)[:600],
        "broken.webp": saved(noise, "WEBP")[:100],
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "bomb.png": saved(Image.new("1", (8001, 8000))),
        "huge_bomb.png": png_header(65535, 65535),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.png", "not an image"),
        ("text.jpg", "not an image"),
        ("truncated.jpg", "cannot be read"),
        ("truncated.png", "cannot be read"),
        ("broken.webp", "cannot be read|not an image"),
        ("script.eps", "not an image"),
        ("bomb.png", "over the limit of 64 Mpx"),
        ("huge_bomb.png", "over the limit of 64 Mpx"),
        ("folder.png", "not a file"),
        ("missing.png", "no such file"),
        ("nul\0l.png", "no such file"),
    ],
)
def test_bad_image_files_get_one_line(bad_images, name, reason):
    path = str(bad_images / name)
    with pytest.raises(EvoTokImageError, match=reason) as error:
        load_image(path)
    message = str(error.value)
    assert message.startswith(repr(path)) and len(message.splitlines()) == 1


def test_the_limit_can_be_moved():
    with pytest.raises(EvoTokImageError, match="limit of 0.0001 Mpx"):
        load_image(saved(picture()), max_pixels=100)
    assert load_image(saved(Image.new("1", (8001, 8000))), max_pixels=10**8).size == (8001, 8000)


@pytest.mark.parametrize("array", [np.full((4, 4, 3), np.nan), torch.full((3, 4, 4), float("inf")), np.zeros((0, 4))])
def test_arrays_that_are_no_images(array):
    with pytest.raises(EvoTokImageError):
        load_image(array)


@pytest.mark.parametrize("source", [3, object(), {"path": None}, Image.new("F", (2, 2), float("nan"))])
def test_sources_that_are_no_images(source):
    with pytest.raises(EvoTokImageError):
        load_image(source)
