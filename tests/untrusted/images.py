"""Images: damaged files, bombs, files and addresses that are no image, arrays of no known range."""

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
from untrusted.case import Group, Workspace, case, kind


RED, BLUE = (255, 0, 0), (0, 0, 255)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8))


def plain(color: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (8, 8), color)


def saved(image: Image.Image, format: str = "PNG", **kwargs) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **kwargs)
    return stream.getvalue()


def file(name: str, content: bytes):
    return lambda workspace: workspace.write(name, content)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks)


def zeros(count: int) -> bytes:
    """Returns the chunk of so many bytes of pixels."""
    return chunk(b"IDAT", zlib.compress(bytes(count)))


def text_bomb() -> bytes:
    """Returns a PNG with 200 compressed notes of a megabyte each."""
    return png(1, 1, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 200, zeros(4), chunk(b"IEND", b""))


def bmp_of_width(width: int) -> bytes:
    content = saved(noise(), "BMP")
    return content[:18] + struct.pack("<i", width) + content[22:]


def cyclic_tiff() -> bytes:
    """Returns a TIFF whose first directory is followed by itself."""
    content = bytearray(saved(Image.new("L", (4, 4), 77), "TIFF"))
    start = struct.unpack("<I", content[4:8])[0]
    end = start + 2 + 12 * struct.unpack("<H", content[start : start + 2])[0]
    content[end : end + 4] = struct.pack("<I", start)
    return bytes(content)


def many_frames(count: int) -> bytes:
    """Returns a GIF whose first frame is red, and the others one pixel each."""
    return saved(plain(RED), "GIF")[:-1] + b"\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0" * count + b";"


NO_IMAGE = "{}: not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI."
DAMAGED = "{}: cannot be read (…): save the image again."
PIXELS = "'a.{}': {} over the limit of 64 Mpx: scale the image down{}."
FILES = [
    kind("file of another format", NO_IMAGE)(
        case("text", file("text.png", b"this is no image"), "'text.png'"),
        case("EPS, which starts an interpreter", file("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n"), "'a.eps'"),
        case("pickle", file("a.png", b"\x80\x04cos\nsystem\n(S'touch pickled'\ntR."), "'a.png'"),
    ),
    kind("damaged file", DAMAGED)(
        case("PNG cut in the middle", file("cut.png", saved(noise())[:900]), "'cut.png'"),
        case("PPM header of a million digits", file("bomb.ppm", b"P6 " + b"9" * 1_000_000), "'bomb.ppm'"),
        case("PNG with 200 MB of compressed notes", file("bomb.png", text_bomb()), "'bomb.png'"),
    ),
    kind("number of pixels", PIXELS, limit="64 million pixels")(
        case(
            "PNG of 8001 x 8000",
            file("a.png", png(8001, 8000, zeros(1001 * 8000), depth=1, color=0)),
            *("png", "8001 x 8000 pixels are", ", or raise max_pixels"),
        ),
        case("PNG header of 65535 x 65535", file("a.png", png(65535, 65535, zeros(999))), "png", "far", ""),
        case("BMP header of negative width", file("a.bmp", bmp_of_width(-40)), "bmp", "far", ""),
    ),
    kind("length of a side", "'a.png': a side of 400000 pixels is over the limit of 65536: crop it.", limit="65,536 pixels")(
        file("a.png", saved(Image.new("L", (400_000, 1))))
    ),
]


def is_color(color: tuple[int, int, int]):
    """Checks that an image is RGB of that colour, to 2 of 255."""

    def check(image: Image.Image) -> None:
        assert image.mode == "RGB" and np.abs(np.subtract(image.getpixel((0, 0)), color)).max() <= 2

    return check


SHAPE = "array of shape (2, 8, 8, 3) is no image: give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels"
IN_MINUS_ONE_TO_ONE = "values from -1.0 to 0.0: pixel_values go to the model as they are; of an image in [-1, 1] give (x + 1) / 2"
LOADED = [
    *FILES,
    kind("path of no file", "{}: no such file: check the path.")(
        case("link to itself", lambda workspace: workspace.link("a.png", "a.png"), "'a.png'"),
        case("line breaks", lambda _: "line\nbreak\r.png", r"'line\nbreak\r.png'"),
        case("file:// address", lambda _: "file:///outside/a.png", "'file:///outside/a.png'"),
    ),
    kind("pipe or device", "'{}': not a file: give the path of an image.")(
        case("pipe", lambda workspace: os.mkfifo(workspace.path / "pipe.png") or "pipe.png", "pipe.png"),
        case("device", lambda workspace: workspace.link("zero.png", "/dev/zero"), "zero.png"),
    ),
    kind("object or array that is no image", "{}.", limit="1, 3 or 4 channels")(
        case("number", lambda _: 3, "int is no image: give a path, bytes, a PIL image or an array"),
        case("no pixels", lambda _: Image.new("RGB", (0, 0)), "image: 0 x 0 pixels are no image: give at least one"),
        case("four dimensions", lambda _: np.zeros((2, 8, 8, 3)), SHAPE),
        case("objects", lambda _: np.full((8, 8, 3), None), "array of object is no image: give numbers from 0 to 255"),
        case("no memory", lambda _: torch.zeros(3, 8, 8, device="meta"), "array cannot be read (…): give a dense one on the CPU"),
    ),
    kind("values of an array", "array holds {}.", limit="0 to 1, 0 to 255, or uint16")(
        case("NaN", lambda _: torch.full((3, 8, 8), torch.nan), "NaN or infinite values: repair them before making an image of it"),
        case("pixel values of the model", lambda _: torch.linspace(-1, 0, 192).view(3, 8, 8), IN_MINUS_ONE_TO_ONE),
    ),
    kind("odd file that can be read", "its first frame in RGB, by its content")(
        case("GIF of 200,000 frames", file("a.gif", many_frames(200_000)), check=is_color(RED)),
        case("TIFF whose pages form a cycle", file("a.tif", cyclic_tiff()), check=is_color((77,) * 3)),
        case("EXIF block of garbage", file("a.jpg", saved(plain(BLUE), "JPEG", exif=b"Exif\0\0" + b"\xff" * 50)), check=is_color(BLUE)),
        case("PNG named .jpg, with a tail", file("a.jpg", saved(plain(BLUE)) + b"tail"), check=is_color(BLUE)),
    ),
]


class Server(http.server.BaseHTTPRequestHandler):
    """Server on this machine; the path selects the response."""

    def do_GET(self):
        self.send_response(404 if self.path == "/missing.png" else 200)
        self.end_headers()
        try:
            while self.path in ("/endless.png", "/slow.png"):
                self.wfile.write(bytes(1 if self.path == "/slow.png" else 100_000))
                time.sleep(0.05 if self.path == "/slow.png" else 0)
            self.wfile.write(saved(plain(BLUE)) if self.path == "/image.png" else b"")
        except OSError:  # the client has closed the connection
            pass

    def log_message(self, *_):
        pass


def fetch(_: Workspace, name: str) -> Image.Image:
    """Loads an image from `Server`, under a lower limit than the real one."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            with mock.patch.object(image_loading_evotok, *(("MAX_SECONDS", 0.5) if name == "slow.png" else ("MAX_BYTES", 1_000_000))):
                return load_image(f"http://127.0.0.1:{server.server_port}/{name}")
        finally:
            server.shutdown()


FETCHED = [
    kind("address of an image", "the image")(lambda _: "image.png", check=is_color(BLUE)),
    kind("address that is not found", DAMAGED)(case("", lambda _: "missing.png", "'http://127.0.0.1:…/missing.png'")),
    kind(
        "download that is large or slow",
        "'http://127.0.0.1:…/{}': over the limit of {}: fetch it first and give the file.",
        limit=f"{image_loading_evotok.MAX_BYTES // 10**6} MB, {image_loading_evotok.MAX_SECONDS:.0f} s",
    )(case("endless", lambda _: "endless.png", "endless.png", "1 MB in 60 s"), case("slow", lambda _: "slow.png", "slow.png", "256 MB in 0.5 s")),
]

GROUPS = [Group("Images", "`load_image`", lambda _, given: load_image(given), LOADED), Group("Images", "`load_image`", fetch, FETCHED)]
