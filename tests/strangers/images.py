"""Images: files cut short, files that lie, bombs, arrays that are none; and every odd kind that must come out right."""

import base64
import http.server
import io
import os
import struct
import threading
import time
import zlib
from unittest import mock

import numpy as np
import torch
from PIL import Image

from evotok.processing import image_loading_evotok
from evotok.processing.image_loading_evotok import load_image
from strangers.case import Case, Group, Place


RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
SUFFIXES = {
    "PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm", "ICO": "ico",
    "JPEG2000": "jp2", "TGA": "tga",
}  # fmt: skip
NOT_AN_IMAGE = (
    "'{}': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI."
)
UNREADABLE = "'{}': cannot be read (…): save the image again."


def noise(width: int = 48, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, format: str = "PNG", **kwargs) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **kwargs)
    return stream.getvalue()


def file(name: str, content: bytes):
    return lambda place: place.write(name, content)


# --- cut short --------------------------------------------------------------------------------------------------------

CUTS_OF_HEADERS = ("in its first bytes", "after 30 bytes")
CUTS = {"in its first bytes": 6, "after 30 bytes": 30, "in the middle": 0.5, "before its last tenth": 0.9}


def cut(content: bytes, where: float) -> bytes:
    return content[: where if where > 1 else int(len(content) * where)]


def cut_cases() -> list[Case]:
    cases = []
    for kind, suffix in SUFFIXES.items():
        content = saved(noise(), kind)
        for words, where in CUTS.items():
            name = f"cut.{suffix}"
            cases.append(Case(f"{kind} cut {words}", _message_of_cut(name, words), file(name, cut(content, where))))
    return cases


def _message_of_cut(name: str, words: str) -> str:
    """While its kind can still be told, a file cannot be read; else it is not an image."""
    if words == "after 30 bytes":
        known = name.endswith(("jpg", "webp", "bmp", "ppm", "jp2", "tga"))
    else:
        known = words not in CUTS_OF_HEADERS or name.endswith(("jpg", "ppm"))
    return (UNREADABLE if known else NOT_AN_IMAGE).format(name)


# --- files that lie ---------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 8, color: int = 2, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks)


PIXELS = chunk(b"IDAT", zlib.compress(bytes(999)))


def jpeg_of_size(width: int, height: int) -> bytes:
    content = saved(noise(), "JPEG")
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


def bmp_of_size(width: int, height: int) -> bytes:
    content = bytearray(saved(noise(), "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def gif_of_size(width: int, height: int) -> bytes:
    content = bytearray(saved(noise(), "GIF"))
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def tiff_of_size(width: int, height: int) -> bytes:
    content = saved(Image.new("L", (3, 5)), "TIFF")
    for tag, value in ((256, width), (257, height)):
        place = content.index(struct.pack("<HHI", tag, 4, 1)) + 8 if struct.pack("<HHI", tag, 4, 1) in content else None
        if place is None:
            place = content.index(struct.pack("<HHI", tag, 3, 1))
            content = content[: place + 2] + struct.pack("<HII", 4, 1, value) + content[place + 12 :]
        else:
            content = content[:place] + struct.pack("<I", value) + content[place + 4 :]
    return content


def tiff_in_a_circle() -> bytes:
    """A TIFF whose first directory says that it is followed by itself."""
    content = bytearray(saved(Image.new("L", (4, 4), 77), "TIFF"))
    start = struct.unpack("<I", content[4:8])[0]
    end = start + 2 + 12 * struct.unpack("<H", content[start : start + 2])[0]
    content[end : end + 4] = struct.pack("<I", start)
    return bytes(content)


def frames(count: int, format: str = "GIF") -> bytes:
    images = [Image.new("RGB", (16, 16), (index % 256, index // 256, 7)) for index in range(count)]
    return saved(Image.new("RGB", (16, 16), RED), format, save_all=True, append_images=images)


def many_frames(count: int) -> bytes:
    """A GIF of 16 x 16 red pixels, and then of very many frames of one pixel."""
    first = saved(Image.new("RGB", (16, 16), RED), "GIF")
    frame = b"\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    return first[:-1] + frame * count + b";"


def text_bomb() -> bytes:
    """A PNG with 200 compressed notes of a megabyte each."""
    note = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 1_000_000))
    return png(1, 1, 8, 2, note * 200, chunk(b"IDAT", zlib.compress(b"\0\0\0\0")), chunk(b"IEND", b""))


BOMBS = [
    Case(
        "PNG just over 64 million pixels",
        "'bomb.png': 8001 x 8000 pixels are over the limit of 64 Mpx: scale the image down, or raise max_pixels.",
        file("bomb.png", png(8001, 8000, 1, 0, chunk(b"IDAT", zlib.compress(bytes(1001 * 8000))))),
    ),
    Case(
        "PNG header of 65535 x 65535",
        "'bomb.png': far over the limit of 64 Mpx: scale the image down.",
        file("bomb.png", png(65535, 65535, 8, 2, PIXELS)),
    ),
    Case(
        "PNG header of 4 billion x 1",
        "'bomb.png': far over the limit of 64 Mpx: scale the image down.",
        file("bomb.png", png(2**32 - 1, 1, 8, 2, PIXELS)),
    ),
    Case(
        "PNG header of 1 x 64,000,001",
        "'bomb.png': 1 x 64000001 pixels are over the limit of 64 Mpx: scale the image down, or raise max_pixels.",
        file("bomb.png", png(1, 64_000_001, 8, 2, PIXELS)),
    ),
    Case(
        "PNG of 400,000 x 1",
        "'bomb.png': a side of 400000 pixels is over the limit of 65536: crop it.",
        lambda place: place.write("bomb.png", saved(Image.new("L", (400_000, 1)))),
    ),
    Case(
        "PNG header of 0 x 0",
        "'bomb.png': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        file("bomb.png", png(0, 0, 8, 2, PIXELS)),
    ),
    Case(
        "PNG header of 9000 x 9000 in 64 bits a pixel",
        "'bomb.png': 9000 x 9000 pixels are over the limit of 64 Mpx: scale the image down, or raise max_pixels.",
        file("bomb.png", png(9000, 9000, 16, 6, PIXELS)),
    ),
    Case(
        "PNG with 200 MB of compressed notes",
        "'bomb.png': cannot be read (…): save the image again.",
        file("bomb.png", text_bomb()),
    ),
    Case(
        "JPEG header of 65000 x 65000",
        "'bomb.jpg': far over the limit of 64 Mpx: scale the image down.",
        file("bomb.jpg", jpeg_of_size(65000, 65000)),
    ),
    Case(
        "BMP header of 60000 x 60000",
        "'bomb.bmp': far over the limit of 64 Mpx: scale the image down.",
        file("bomb.bmp", bmp_of_size(60000, 60000)),
    ),
    Case(
        "BMP header of negative width",
        "'bomb.bmp': far over the limit of 64 Mpx: scale the image down.",
        file("bomb.bmp", bmp_of_size(-40, 40)),
    ),
    Case(
        "GIF header of 65535 x 65535",
        "'bomb.gif': far over the limit of 64 Mpx: scale the image down.",
        file("bomb.gif", gif_of_size(65535, 65535)),
    ),
    Case(
        "TIFF header of 100000 x 100000",
        "'bomb.tif': far over the limit of 64 Mpx: scale the image down.",
        file("bomb.tif", tiff_of_size(100_000, 100_000)),
    ),
    Case(
        "PPM header of 100000 x 100000",
        "'bomb.ppm': far over the limit of 64 Mpx: scale the image down.",
        file("bomb.ppm", b"P6 100000 100000 255\n" + b"\0" * 64),
    ),
    Case(
        "PPM header of a million digits",
        "'bomb.ppm': cannot be read (…): save the image again.",
        file("bomb.ppm", b"P6 " + b"9" * 1_000_000),
    ),
    Case(
        "PGM of a depth that does not exist",
        "'bomb.ppm': cannot be read (…): save the image again.",
        file("bomb.ppm", b"P5 8 8 70000\n" + b"\0" * 128),
    ),
]

LIES = [
    Case(
        "empty file",
        "'empty.png': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        file("empty.png", b""),
    ),
    Case(
        "one zero byte",
        "'zero.png': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        file("zero.png", b"\0"),
    ),
    Case(
        "4096 zero bytes",
        "'zeros.jpg': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        file("zeros.jpg", b"\0" * 4096),
    ),
    Case(
        "text named .png",
        "'text.png': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        file("text.png", b"this is no image"),
    ),
    Case(
        "HTML of an error page named .jpg",
        "'page.jpg': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        file("page.jpg", b"<!doctype html><title>404</title>"),
    ),
    Case(
        "SVG, which is a program",
        "'drawing.svg': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        file("drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    ),
    Case(
        "EPS, which starts an interpreter",
        "'a.eps': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        file("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    ),
    Case(
        "PDF",
        "'a.pdf': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        file("a.pdf", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"),
    ),
    Case(
        "ZIP archive",
        "'a.png': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        file("a.png", b"PK\x03\x04" + b"\0" * 60),
    ),
    Case(
        "pickle",
        "'a.png': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        file("a.png", b"\x80\x04cos\nsystem\n(S'touch pickled'\ntR."),
    ),
    Case(
        "PNG whose pixels fail their checksum",
        "'crc.png': cannot be read (…): save the image again.",
        file("crc.png", saved(noise())[:60] + b"\x55" + saved(noise())[61:]),
    ),
    Case(
        "PNG without pixels",
        "'none.png': cannot be read (…): save the image again.",
        file("none.png", png(4, 4, 8, 2, chunk(b"IEND", b""))),
    ),
    Case(
        "PNG of a colour type that does not exist",
        "'color.png': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        file("color.png", png(4, 4, 8, 5)),
    ),
    Case(
        "folder",
        "'folder.png': not a file: give the path of an image.",
        lambda place: (place.path / "folder.png").mkdir() or "folder.png",
    ),
    Case(
        "pipe that never ends",
        "'pipe.png': not a file: give the path of an image.",
        lambda place: os.mkfifo(place.path / "pipe.png") or "pipe.png",
    ),
    Case(
        "device that never ends",
        "'endless.png': not a file: give the path of an image.",
        lambda place: place.link("endless.png", "/dev/zero"),
    ),
    Case("path of no file", "'missing.png': no such file: check the path.", lambda place: "missing.png"),
    Case(
        "broken link", "'link.png': no such file: check the path.", lambda place: place.link("link.png", "nowhere.png")
    ),
    Case(
        "link to itself",
        "'circle.png': no such file: check the path.",
        lambda place: place.link("circle.png", "circle.png"),
    ),
    Case("path with a null byte", "'null\\x00byte.png': no such file: check the path.", lambda place: "null\0byte.png"),
    Case(
        "path with line breaks",
        "'line\\nbreak\\r.png': no such file: check the path.",
        lambda place: "line\nbreak\r.png",
    ),
    Case(
        "path of 5000 letters",
        "'…': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        lambda place: "x" * 5000,
    ),
    Case("empty path", "image: no such file: check the path.", lambda place: ""),
    Case(
        "address of another kind: file://",
        "'file:///outside/a.png': no such file: check the path.",
        lambda place: "file:///outside/a.png",
    ),
    Case(
        "address of another kind: ftp://",
        "'ftp://example.com/a.png': no such file: check the path.",
        lambda place: "ftp://example.com/a.png",
    ),
    Case(
        "data address without data",
        "'data:image/png;base64,': no such file: check the path.",
        lambda place: "data:image/png;base64,",
    ),
    Case(
        "data address that is no base64",
        "'data:image/png;base64,????': no such file: check the path.",
        lambda place: "data:image/png;base64,????",
    ),
    Case(
        "data address of text",
        "'data:image/png;base64,…': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        lambda place: "data:image/png;base64," + base64.b64encode(b"no image" * 9).decode(),
    ),
    Case(
        "base64 of half an image",
        "'iVBOR…': cannot be read (…): save the image again.",
        lambda place: base64.b64encode(saved(noise())[:900]).decode(),
    ),
    Case(
        "bytes of text",
        "image: not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        lambda place: b"no image",
    ),
    Case(
        "no bytes",
        "image: not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        lambda place: b"",
    ),
]

THINGS = [
    Case("number", "int is no image: give a path, bytes, a PIL image or an array.", lambda place: 3),
    Case("None", "NoneType is no image: give a path, bytes, a PIL image or an array.", lambda place: None),
    Case(
        "dict without path or bytes",
        "NoneType is no image: give a path, bytes, a PIL image or an array.",
        lambda place: {"path": None, "bytes": None},
    ),
    Case(
        "dict of a missing file",
        "'missing.png': no such file: check the path.",
        lambda place: {"path": "missing.png", "bytes": None},
    ),
    Case(
        "object that is nothing",
        "object is no image: give a path, bytes, a PIL image or an array.",
        lambda place: object(),
    ),
    Case(
        "file opened as text", "image: cannot be read (…): save the image again.", lambda place: io.StringIO("no image")
    ),
    Case(
        "PIL image of no pixels",
        "image: 0 x 0 pixels are no image: give at least one.",
        lambda place: Image.new("RGB", (0, 0)),
    ),
    Case(
        "PIL float image with NaN",
        "image holds NaN or infinite values: repair them before giving it.",
        lambda place: Image.new("F", (4, 4), float("nan")),
    ),
    Case(
        "tensor with NaN",
        "array holds NaN or infinite values: repair them before making an image of it.",
        lambda place: torch.full((3, 8, 8), float("nan")),
    ),
    Case(
        "tensor with one infinite value",
        "array holds NaN or infinite values: repair them before making an image of it.",
        lambda place: torch.zeros(3, 8, 8).index_fill(2, torch.tensor([3]), torch.inf),
    ),
    Case(
        "bfloat16 tensor with NaN",
        "array holds NaN or infinite values: repair them before making an image of it.",
        lambda place: torch.full((3, 8, 8), float("nan"), dtype=torch.bfloat16),
    ),
    Case(
        "float16 array with infinite values",
        "array holds NaN or infinite values: repair them before making an image of it.",
        lambda place: np.full((8, 8, 3), np.inf, dtype=np.float16),
    ),
    Case(
        "array of no pixels",
        "array of shape (0, 8, 3) is no image: give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels.",
        lambda place: np.zeros((0, 8, 3), dtype=np.uint8),
    ),
    Case(
        "array of one dimension",
        "array of shape (64,) is no image: give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels.",
        lambda place: np.zeros(64, dtype=np.uint8),
    ),
    Case(
        "array of no dimension",
        "array of shape () is no image: give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels.",
        lambda place: np.array(7),
    ),
    Case(
        "array of four dimensions, two images in it",
        "array of shape (2, 8, 8, 3) is no image: give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels.",
        lambda place: np.zeros((2, 8, 8, 3), dtype=np.uint8),
    ),
    Case(
        "array of seven channels",
        "array of shape (8, 8, 7) is no image: give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels.",
        lambda place: np.zeros((8, 8, 7), dtype=np.uint8),
    ),
    Case(
        "array of two channels",
        "array of shape (2, 8, 8) is no image: give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels.",
        lambda place: np.zeros((2, 8, 8), dtype=np.uint8),
    ),
    Case(
        "complex array",
        "array of complex64 is no image: give numbers from 0 to 255.",
        lambda place: np.zeros((8, 8, 3), dtype=np.complex64),
    ),
    Case(
        "array of objects",
        "array of object is no image: give numbers from 0 to 255.",
        lambda place: np.full((8, 8, 3), None, dtype=object),
    ),
    Case(
        "array of text",
        "array of <U3 is no image: give numbers from 0 to 255.",
        lambda place: np.full((8, 8, 3), "red"),
    ),
    Case(
        "array of dates",
        "array of datetime64[s] is no image: give numbers from 0 to 255.",
        lambda place: np.zeros((8, 8, 3), dtype="datetime64[s]"),
    ),
    Case(
        "integers over 255 that are not uint16",
        "array holds values from 40000 to 40000: give floats from 0 to 1, or integers from 0 to 255 (uint16: to 65535).",
        lambda place: np.full((8, 8, 3), 40_000, dtype=np.int32),
    ),
    Case(
        "array of numbers under 0",
        "array holds values from -300 to -300: give floats from 0 to 1, or integers from 0 to 255 (uint16: to 65535).",
        lambda place: np.full((8, 8, 3), -300, dtype=np.int64),
    ),
    Case(
        "pixel values of the model, in [-1, 1]",
        "array holds values from -1.0 to 0.0: pixel_values go to the model as they are; of an image in [-1, 1] give (x + 1) / 2.",
        lambda place: torch.linspace(-1, 0, 192).view(3, 8, 8),
    ),
    Case(
        "floats of no range, a brightened picture of 0 to 1",
        "array holds floats from 0.0 to 3.0, neither of 0 to 1 nor of 0 to 255: clip them to 0 to 1.",
        lambda place: torch.linspace(0, 3, 192).view(3, 8, 8),
    ),
    Case(
        "sparse tensor",
        "array cannot be read (…): give a dense one on the CPU.",
        lambda place: torch.zeros(8, 8).to_sparse(),
    ),
    Case(
        "tensor without memory",
        "array cannot be read (…): give a dense one on the CPU.",
        lambda place: torch.zeros(3, 8, 8, device="meta"),
    ),
]


# --- odd but good -----------------------------------------------------------------------------------------------------


def is_color(color: tuple[int, int, int], size: tuple[int, int] | None = None, at: tuple[int, int] = (0, 0)):
    """Checks that what comes out is upright RGB of that colour, to 2 of 255."""

    def check(image: Image.Image) -> None:
        assert image.mode == "RGB" and (size is None or image.size == size), (image.mode, image.size)
        assert np.abs(np.subtract(image.getpixel(at), color)).max() <= 2, image.getpixel(at)

    return check


def palette(color: tuple[int, int, int], transparency: int | bytes | None = None) -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *color])
    return saved(image, **({} if transparency is None else {"transparency": transparency}))


def rotated(orientation: int) -> bytes:
    """Red on the left and blue on the right, as a camera saves it that was held turned."""
    image = Image.new("RGB", (20, 10), RED)
    image.paste(BLUE, (10, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, exif=exif)


def good(given: str, gets: str, name: str, content: bytes, color, size=None, at=(0, 0)) -> Case:
    return Case(given, gets, file(name, content), is_color(color, size, at))


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, dtype=np.uint16))


ODD = [
    good(
        "CMYK JPEG",
        "the colours that were meant",
        "a.jpg",
        saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
        RED,
    ),
    good(
        "CMYK TIFF",
        "the colours that were meant",
        "a.tif",
        saved(Image.new("CMYK", (8, 8), (255, 0, 255, 0)), "TIFF"),
        GREEN,
    ),
    good("16-bit grey PNG", "scaled to 8 bits, not clipped", "a.png", saved(grey16(0x8080)), (128,) * 3),
    good("16-bit grey TIFF", "scaled to 8 bits, not clipped", "a.tif", saved(grey16(257), "TIFF"), (1,) * 3),
    good(
        "32-bit float TIFF from 0 to 1",
        "scaled to 8 bits",
        "a.tif",
        saved(Image.new("F", (8, 8), 0.5), "TIFF"),
        (128,) * 3,
    ),
    good("1-bit PNG", "black and white", "a.png", saved(Image.new("1", (8, 8), 1)), WHITE),
    good("palette PNG", "its colours", "a.png", palette(GREEN), GREEN),
    good("palette PNG with a transparent entry", "transparency on white", "a.png", palette(GREEN, 1), WHITE),
    good(
        "palette PNG with alpha for each entry",
        "transparency on white",
        "a.png",
        palette(GREEN, bytes([255, 0])),
        WHITE,
    ),
    good("RGBA PNG, wholly transparent", "white", "a.png", saved(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), WHITE),
    good(
        "RGBA PNG, half transparent",
        "blended with white",
        "a.png",
        saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128))),
        (127,) * 3,
    ),
    good("grey PNG with alpha", "transparency on white", "a.png", saved(Image.new("LA", (8, 8), (0, 0))), WHITE),
    good(
        "PNG with one transparent colour",
        "transparency on white",
        "a.png",
        saved(Image.new("RGB", (8, 8), RED), transparency=RED),
        WHITE,
    ),
    good(
        "RGBA WEBP",
        "transparency on white",
        "a.webp",
        saved(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "WEBP", lossless=True),
        WHITE,
    ),
    *(
        good(f"EXIF orientation {orientation}", "upright", "a.png", rotated(orientation), color, size)
        for orientation, color, size in (
            (1, RED, (20, 10)),
            (2, BLUE, (20, 10)),
            (3, BLUE, (20, 10)),
            (4, RED, (20, 10)),
            (5, RED, (10, 20)),
            (6, RED, (10, 20)),
            (7, BLUE, (10, 20)),
            (8, BLUE, (10, 20)),
        )
    ),
    good("EXIF orientation 77, which does not exist", "as it lies", "a.png", rotated(77), RED, (20, 10)),
    good(
        "EXIF block of garbage",
        "the picture without it",
        "a.jpg",
        saved(Image.new("RGB", (8, 8), RED), "JPEG", exif=b"Exif\0\0" + b"\xff" * 50),
        (254, 0, 0),
    ),
    good("animated GIF", "its first frame", "a.gif", frames(3), RED),
    good("animated WEBP", "its first frame", "a.webp", frames(3, "WEBP"), RED),
    good("animated PNG", "its first frame", "a.png", frames(3, "PNG"), RED),
    good("TIFF of several pages", "its first page", "a.tif", frames(3, "TIFF"), RED),
    good("GIF of 200,000 frames", "its first frame, without counting the others", "a.gif", many_frames(200_000), RED),
    good("TIFF whose pages go in a circle", "its first page", "a.tif", tiff_in_a_circle(), (77,) * 3),
    good("1 x 1 PNG", "one pixel", "a.png", saved(Image.new("RGB", (1, 1), BLUE)), BLUE, (1, 1)),
    good("20000 x 1 PNG", "one row", "a.png", saved(Image.new("RGB", (20_000, 1), BLUE)), BLUE, (20_000, 1)),
    good("1 x 20000 PNG", "one column", "a.png", saved(Image.new("RGB", (1, 20_000), BLUE)), BLUE, (1, 20_000)),
    good("PNG named .jpg", "what it is, not what it is called", "a.jpg", saved(Image.new("RGB", (8, 8), BLUE)), BLUE),
    good(
        "name with spaces, accents and emoji",
        "the picture",
        "ein schönes Bild 🐸.png",
        saved(Image.new("RGB", (8, 8), BLUE)),
        BLUE,
    ),
    good(
        "PNG with rubbish behind its end",
        "the picture",
        "a.png",
        saved(Image.new("RGB", (8, 8), BLUE)) + b"rubbish",
        BLUE,
    ),
    Case("PIL image in its second frame", "its first frame", lambda place: _second_frame(), is_color(RED)),
    Case("LAB image", "its colours", lambda place: Image.new("LAB", (8, 8), (255, 128, 128)), is_color(WHITE)),
    Case("HSV image", "its colours", lambda place: Image.new("RGB", (8, 8), BLUE).convert("HSV"), is_color(BLUE)),
    Case(
        "big-endian 16-bit image",
        "scaled to 8 bits",
        lambda place: Image.frombytes("I;16B", (8, 8), b"\x80\x80" * 64),
        is_color((128,) * 3),
    ),
    Case("bytes", "the picture", lambda place: saved(Image.new("RGB", (8, 8), BLUE)), is_color(BLUE)),
    Case(
        "base64",
        "the picture",
        lambda place: base64.b64encode(saved(Image.new("RGB", (8, 8), BLUE))).decode(),
        is_color(BLUE),
    ),
    Case(
        "link to an image",
        "the picture",
        lambda place: place.link("link.png", place.write("a.png", saved(Image.new("RGB", (8, 8), BLUE)))),
        is_color(BLUE),
    ),
]


def _second_frame() -> Image.Image:
    image = Image.open(io.BytesIO(frames(3)))
    image.seek(1)
    return image


# --- pixels of a grid of arrays ---------------------------------------------------------------------------------------


def process(place: Place, images) -> torch.Tensor:
    return place.materials.processor(images=images, return_tensors="pt")["pixel_values"]


def has_color(color: tuple[int, int, int]):
    def check(pixels: torch.Tensor) -> None:
        assert tuple(pixels.shape) == (1, 3, 32, 32), pixels.shape
        mean = (pixels.mean(dim=(0, 2, 3)) + 1) * 127.5
        torch.testing.assert_close(mean, torch.tensor(color, dtype=mean.dtype), atol=2, rtol=0)

    return check


PROCESSED = [
    Case(
        "grey array (H, W)",
        "three equal channels",
        lambda place: np.full((8, 8), 77, dtype=np.uint8),
        has_color((77,) * 3),
    ),
    Case("array (H, W, 3)", "the picture", lambda place: np.full((8, 9, 3), 77, dtype=np.uint8), has_color((77,) * 3)),
    Case(
        "tensor (3, H, W)",
        "the picture",
        lambda place: torch.full((3, 8, 9), 77, dtype=torch.uint8),
        has_color((77,) * 3),
    ),
    Case(
        "bfloat16 tensor",
        "the picture",
        lambda place: torch.full((3, 8, 9), 77, dtype=torch.bfloat16),
        has_color((77,) * 3),
    ),
    Case(
        "array (H, W, 1)",
        "three equal channels",
        lambda place: np.full((8, 9, 1), 77, dtype=np.uint8),
        has_color((77,) * 3),
    ),
    Case(
        "tensor of floats from 0 to 1",
        "the picture",
        lambda place: torch.full((3, 8, 9), 77 / 255),
        has_color((77,) * 3),
    ),
    Case(
        "16-bit array",
        "scaled to 8 bits",
        lambda place: np.full((8, 9, 3), 0x8080, dtype=np.uint16),
        has_color((128,) * 3),
    ),
    Case(
        "array with transparency",
        "transparency on white",
        lambda place: np.zeros((8, 9, 4), dtype=np.uint8),
        has_color(WHITE),
    ),
    Case("boolean mask", "black and white", lambda place: np.ones((8, 9), dtype=bool), has_color(WHITE)),
    Case("animated GIF among the images", "one image", lambda place: place.write("a.gif", frames(3)), has_color(RED)),
    Case(
        "list in a list with a bad one",
        "'missing.png': no such file: check the path.",
        lambda place: [[Image.new("RGB", (8, 8))], ["missing.png"]],
    ),
]

# --- addresses --------------------------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Answers on this machine, as badly as its path says."""

    def do_GET(self):
        body = {"/page": b"<!doctype html>", "/picture.png": saved(Image.new("RGB", (8, 8), BLUE))}.get(self.path)
        self.send_response(404 if self.path == "/missing.png" else 200)
        self.end_headers()
        try:
            while self.path in ("/endless.png", "/dripping.png"):
                self.wfile.write(bytes(1 if self.path == "/dripping.png" else 100_000))
                time.sleep(0.05 if self.path == "/dripping.png" else 0)
            self.wfile.write(body or b"")
        except OSError:  # whoever asked has gone
            pass

    def log_message(self, *_):
        """Says nothing."""


def fetch(_: Place, path: str) -> Image.Image:
    """Loads an image from a server of our own; the limits are lower than in earnest."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            with mock.patch.multiple(image_loading_evotok, MAX_BYTES=1_000_000, MAX_SECONDS=1.0):
                return load_image(f"http://127.0.0.1:{server.server_port}{path}")
        finally:
            server.shutdown()


def address(given: str, gets: str, path: str, good=None) -> Case:
    return Case(given, gets, lambda place: path, good)


ADDRESSES = [
    address("address of a picture", "the picture", "/picture.png", is_color(BLUE)),
    address(
        "address that is not there",
        "'http://127.0.0.1:…/missing.png': cannot be read (…): save the image again.",
        "/missing.png",
    ),
    address(
        "address of a web page",
        "'http://127.0.0.1:…/page': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        "/page",
    ),
    address(
        "address that sends nothing",
        "'http://127.0.0.1:…/nothing.png': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        "/nothing.png",
    ),
    address(
        "address that sends without end",
        "'http://127.0.0.1:…/endless.png': over the limit of 1 MB in 1 s: fetch it first and give the file.",
        "/endless.png",
    ),
    address(
        "address that drips",
        "'http://127.0.0.1:…/dripping.png': over the limit of 1 MB in 1 s: fetch it first and give the file.",
        "/dripping.png",
    ),
    address(
        "address with a port of letters",
        "'http://127.0.0.1:…x:y/a.png': cannot be read (…): save the image again.",
        "x:y/a.png",
    ),
]

GROUPS = [
    Group("Addresses", "`load_image`", fetch, ADDRESSES),
    Group("Images cut short", "`load_image`", lambda place, given: load_image(given), cut_cases()),
    Group("Image bombs", "`load_image`", lambda place, given: load_image(given), BOMBS),
    Group("Files and addresses that are no image", "`load_image`", lambda place, given: load_image(given), LIES),
    Group("Things that are no image", "`load_image`", lambda place, given: load_image(given), THINGS),
    Group("Odd images that are good", "`load_image`", lambda place, given: load_image(given), ODD),
    Group("Images through the processor", "`processor(images=...)`", process, PROCESSED),
]
