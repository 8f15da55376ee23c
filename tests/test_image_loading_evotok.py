"""Images of every mode and array of every range load as upright RGB; other input is refused in one line."""

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

from evotok.processing import image_loading_evotok
from evotok.processing.image_loading_evotok import (
    EvoTokImageError,
    check_unit_range,
    convert_to_images,
    find_source,
    load_image,
)


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def plain(mode: str, color, size=(8, 8)) -> Image.Image:
    return Image.new(mode, size, color)


def saved(image, format="PNG", **kwargs) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **kwargs)
    return stream.getvalue()


def palette(color, **kwargs) -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *color])
    return saved(image, **kwargs)


def grey16(value) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, dtype=np.uint16))


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(image_loading_evotok.logger, "warning_once", messages.append)
    return messages


# --- modes and formats ------------------------------------------------------------------------------------------------

MODES = {
    "grey": (plain("L", 77), (77,) * 3),
    "bit": (plain("1", 1), WHITE),
    "palette": (palette(GREEN), GREEN),
    "palette, transparent": (palette(GREEN, transparency=1), WHITE),
    "palette, alpha of each entry": (palette(GREEN, transparency=bytes([255, 0])), WHITE),
    "rgba, half": (saved(plain("RGBA", (0, 0, 0, 128))), (127,) * 3),
    "grey with alpha": (saved(plain("LA", (0, 0))), WHITE),
    "premultiplied": (plain("RGBa", (0, 0, 0, 0)), WHITE),
    "premultiplied grey": (plain("LA", (0, 0)).convert("La"), WHITE),
    "one transparent colour": (saved(plain("RGB", RED), transparency=RED), WHITE),
    "16-bit": (saved(grey16(0x8080)), (128,) * 3),
    "16-bit tiff": (saved(grey16(257), "TIFF"), (1,) * 3),
    "16-bit, big-endian": (Image.frombytes("I;16B", (8, 8), b"\x80\x80" * 64), (128,) * 3),
    "32-bit with 8-bit values": (plain("I", 77), (77,) * 3),
    "float, unit": (plain("F", 0.5), (128,) * 3),
    "float, bytes": (plain("F", 77.0), (77,) * 3),
    "cmyk": (plain("CMYK", (0, 255, 255, 0)), RED),
    "cmyk jpeg": (saved(plain("CMYK", (0, 0, 0, 255)), "JPEG"), (0,) * 3),
    "ycbcr": (plain("RGB", GREEN).convert("YCbCr"), GREEN),
    "hsv": (plain("RGB", BLUE).convert("HSV"), BLUE),
    "lab": (plain("LAB", (255, 128, 128)), WHITE),
    "animated": (saved(plain("RGB", RED), "GIF", save_all=True, append_images=[plain("RGB", BLUE)]), RED),
}


@pytest.mark.parametrize("mode", MODES)
def test_load_image_converts_every_mode(mode):
    source, expected = MODES[mode]
    image = load_image(source)
    assert image.mode == "RGB" and image.size == (8, 8)
    np.testing.assert_allclose(np.asarray(image).mean((0, 1)), expected, atol=2)


def test_load_image_scales_greys_without_a_range(warnings):
    for mode, value, expected in (("F", 300.0, 1), ("I", 40_000, 156), ("F", -2.0, 0)):
        assert load_image(plain(mode, value)).getpixel((0, 0)) == (expected,) * 3
        assert f"image of mode {mode} has no range of its own" in warnings.pop()
    with pytest.raises(EvoTokImageError, match="neither of 0 to 1 nor of 0 to 255"):
        load_image(plain("F", 1.5))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda image: pickle.loads(pickle.dumps(image))])  # noqa: S301
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_load_image_accepts_images_without_their_file(format, copied):
    """Spawned workers receive images in this form."""
    content = saved(Image.radial_gradient("L").convert("RGB").resize((16, 16)), format)
    image = copied(Image.open(io.BytesIO(content)))
    assert not hasattr(image, "fp")
    assert load_image(image).tobytes() == image.convert("RGB").tobytes() == load_image(content).tobytes()


def test_load_image_applies_exif_rotation_to_every_source(tmp_path):
    image = plain("RGB", RED, (20, 10))
    image.paste(BLUE, (10, 0, 20, 10))  # the right half
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees: the right half becomes the lower one
    path = tmp_path / "rotated.png"
    image.save(path, exif=exif)
    content = path.read_bytes()
    text = base64.b64encode(content).decode()
    sources = [path, str(path), content, io.BytesIO(content), Image.open(path), text, f"data:image/png;base64,{text}"]
    for source in [*sources, {"path": str(path), "bytes": None}, {"base64": text}]:
        upright = load_image(source)
        assert upright.size == (10, 20)
        assert upright.getpixel((5, 2)) == RED and upright.getpixel((5, 18)) == BLUE


def test_find_source_finds_the_image_of_a_part():
    assert find_source({"type": "image"}) is None and find_source({"image": None, "text": None}) is None
    assert find_source({"image_url": {"url": "a.png", "detail": "low"}}) == find_source({"path": "a.png"}) == "a.png"
    assert find_source({"bytes": b"a", "path": "a.png"}) == {"bytes": b"a", "path": "a.png"}
    with pytest.raises(EvoTokImageError, match="given as image and as url: give it in one way"):
        find_source({"image": "a.png", "url": "b.png"})


# --- arrays -----------------------------------------------------------------------------------------------------------

NOISE = Image.effect_noise((9, 7), 60).convert("RGB")
BYTES = np.asarray(NOISE)  # (H, W, C)
TENSOR = torch.from_numpy(BYTES.copy()).permute(2, 0, 1)  # (C, H, W)
FORMS = {
    "uint8 (3, H, W)": BYTES.transpose(2, 0, 1),
    "uint8 (H, W, 4), opaque": np.concatenate([BYTES, np.full((7, 9, 1), 255, np.uint8)], axis=2),
    "uint16 to 65535": BYTES.astype(np.uint16) * 257,
    "int64": BYTES.astype(np.int64),
    "float32 0 to 255": BYTES.astype(np.float32),
    "float16 0 to 1": (BYTES / 255.0).astype(np.float16),
    "tensor uint8": TENSOR,
    "tensor uint8 (H, W, 3)": torch.from_numpy(BYTES.copy()),
    "tensor float64 0 to 1": TENSOR.double() / 255,
    "tensor bfloat16 0 to 255": TENSOR.bfloat16(),
    "parameter": torch.nn.Parameter(TENSOR.float().div(255)),
}


@pytest.mark.parametrize("form", FORMS)
def test_load_image_converts_arrays_of_every_range(form, warnings):
    image = load_image(FORMS[form])
    assert image.mode == "RGB" and image.tobytes() == NOISE.tobytes() and not warnings


def test_load_image_converts_greys_masks_and_transparency():
    for grey in (BYTES[..., 0], BYTES[..., :1] / 255.0, torch.from_numpy(BYTES[..., 0].copy()) / 255):
        assert np.array_equal(np.asarray(load_image(grey)), BYTES[..., :1].repeat(3, axis=2))
    assert load_image(np.eye(8, dtype=bool)).getextrema() == ((0, 255),) * 3
    assert load_image(np.zeros((7, 9, 4), dtype=np.float32)).getextrema() == ((255, 255),) * 3


def test_load_image_warns_about_ambiguous_arrays(warnings):
    load_image(BYTES.astype(np.uint16))
    assert "uint16 holds nothing over 255" in warnings.pop()
    square = np.zeros((3, 5, 3), dtype=np.uint8)
    assert load_image(square).size == (5, 3) and "as (H, W, C)" in warnings.pop()
    assert load_image(torch.from_numpy(square)).size == (3, 5) and "as (C, H, W)" in warnings.pop()


def test_check_unit_range_accepts_floats_from_0_to_1():
    unit = TENSOR.float() / 255
    assert check_unit_range(unit) is unit
    assert check_unit_range(unit[0]).shape == check_unit_range(unit[0].numpy()).shape == (3, 7, 9)
    for other in (TENSOR, NOISE, unit * 2, unit - 1, unit[:1]):
        with pytest.raises(EvoTokImageError, match="do_rescale=False"):
            check_unit_range(other)


def test_convert_to_images_refuses_other_tensors():
    for pixels in (torch.zeros(1, 4, 16, dtype=torch.long), torch.zeros(2, 4, 8, 8), torch.full((3, 2, 2), np.nan)):
        with pytest.raises(ValueError, match="not pixels|NaN"):
            convert_to_images(pixels)


# --- errors -----------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """Returns a PNG that ends where its pixels begin."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 9) + b"IDAT"


BAD_FILES = {
    "text.jpg": (b"this is no image", "not an image"),
    "truncated.jpg": (saved(NOISE.resize((64, 64)), "JPEG")[:600], "cannot be read"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
    "large.png": (saved(plain("1", 0, (8001, 8000))), "over the limit of 64 Mpx"),
    "larger.png": (png_header(65535, 65535), "over the limit of 64 Mpx"),
    "folder.png": (None, "not a file"),
    "missing.png": (None, "no such file"),
    "nul\0l.png": (None, "no such file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_load_image_refuses_bad_files_in_one_line(tmp_path, name):
    content, reason = BAD_FILES[name]
    path = str(tmp_path / name)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    elif name == "folder.png":
        (tmp_path / name).mkdir()
    with pytest.raises(EvoTokImageError, match=reason) as error:
        load_image(path)
    assert str(error.value).startswith(repr(path)) and len(str(error.value).splitlines()) == 1


BAD_SOURCES = [
    (3, "int is no image"),
    ({"path": None}, "NoneType is no image"),
    ({"base64": "no base64"}, "base64 that is none"),
    ({"base64": 3}, "base64 that is none"),
    (plain("F", float("nan")), "NaN or infinite"),
    (plain("RGB", 0, (0, 4)), "at least one"),
    (plain("L", 0, (70_000, 1)), "a side of 70000 pixels"),
    (torch.full((3, 8, 8), float("nan")), "NaN or infinite"),
    (np.zeros((0, 4)), "is no image"),
    (np.zeros((2, 8, 8), np.uint8), "with 1, 3 or 4 channels"),
    (np.zeros((4, 4), complex), "array of complex128 is no image"),
    (TENSOR.to_sparse(), "cannot be read"),
    (BYTES / 127.5 - 1, "pixel_values go to the model as they are"),
    (BYTES.astype(np.int64) * 257, "uint16: to 65535"),
    (BYTES / 255.0 * 3, "neither of 0 to 1 nor of 0 to 255: clip them to 0 to 1"),
]


@pytest.mark.parametrize(("source", "reason"), BAD_SOURCES, ids=[reason for _, reason in BAD_SOURCES])
def test_load_image_refuses_bad_sources_in_one_line(source, reason):
    with pytest.raises(EvoTokImageError, match=reason) as error:
        load_image(source)
    assert len(str(error.value).splitlines()) == 1


def test_load_image_accepts_another_limit():
    content = saved(plain("RGB", RED, (16, 16)))
    with pytest.raises(EvoTokImageError, match="limit of 0.000255 Mpx"):
        load_image(content, max_pixels=255)
    assert load_image(content, max_pixels=256).size == (16, 16)
