# Copyright 2026 The EvoTok authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Loads images of any kind as upright 8-bit RGB.

Pillow's plain `convert("RGB")`, which the library's own loader uses, paints transparency black, clips 16-bit greys to
white and ignores EXIF rotation. Every error of untrusted input becomes an [`EvoTokImageError`] of one line that names
the file.

Arrays and tensors have no file format that defines their range:

| dtype | range |
| --- | --- |
| bool | False black, True white |
| uint8 | 0 to 255 |
| uint16 | 0 to 65,535; with a warning 0 to 255 if none is larger |
| other integers | 0 to 255 |
| floats, none over 1 | 0 to 1, as torchvision's `ToTensor` returns them |
| floats, some over 1 | 0 to 255 |

Other values are refused: negative ones (so are `pixel_values`, which lie in [-1, 1]), larger ones, NaN, and floats that
are all under 16 but neither all under 1 nor all whole, such as an image of 0 to 1 that was made brighter.
"""

import base64
import os
import time
import warnings
from collections.abc import Mapping
from io import BytesIO
from typing import Any, cast

import numpy as np
from huggingface_hub.utils import get_session
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from transformers.utils import logging


logger = logging.get_logger(__name__)

MAX_PIXELS = 64_000_000
MAX_SIDE = 65_536  # that of a JPEG
MAX_BYTES = 256_000_000  # of a downloaded image
MAX_SECONDS = 60.0  # of a download: a slow server could extend it without end

# Keys of an image part of a message that may hold the image.
SOURCE_KEYS = ("image", "path", "url", "image_url", "base64")

# Not all formats of Pillow: for EPS, for instance, it starts an interpreter.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF", "TGA", "QOI")
_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_DARKEST = 16.0  # with a lower maximum, floats of 0 to 255 would be an image too dark to see


class EvoTokImageError(ValueError):
    """Error of an image that cannot be used: no image, truncated, over the size limit, not finite. Its message is one
    line with the remedy."""


def find_source(part: Mapping) -> Any:
    """Finds the image of an image part of a message, or of the dict of a data set; None if there is none.

    Args:
        part: `{"image": ...}`, `{"path": ...}`, `{"url": ...}`, `{"image_url": ...}` or `{"base64": ...}`, whose value
            may be such a dict itself (`{"image_url": {"url": ...}}`), or `{"bytes": ...}` with or without a `path`.

    Returns:
        A source for [`load_image`]; bytes and base64 are not decoded here but returned in a dict.

    Raises:
        EvoTokImageError: more than one image.
    """
    if part.get("bytes") is not None:
        return {"bytes": part["bytes"], "path": part.get("path")}
    found = [(key, part[key]) for key in SOURCE_KEYS if part.get(key) is not None]
    if len(found) > 1:
        raise EvoTokImageError(f"an image given as {' and as '.join(key for key, _ in found)}: give it in one way.")
    for key, value in found:
        if isinstance(value, Mapping):
            return find_source(value)
        return {key: value} if key == "base64" else value
    return None


def load_image(source: Any, max_pixels: int = MAX_PIXELS, allow_remote: bool = True) -> Image.Image:
    """Loads `source` as an upright 8-bit RGB image: EXIF rotation applied, transparency on white, the first frame of an
    animation, 16-bit greys scaled to 8.

    Args:
        source: path, `http(s)://` address, `data:` address or base64 text, bytes, file object, a dict for
            [`find_source`], such as that of `datasets.Image(decode=False)`, a PIL image, or an array or tensor
            `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels and values of the table above.
        max_pixels (`int`): limit of width x height, checked before a pixel is decoded.
        allow_remote (`bool`): whether `http(s)://` addresses are fetched, or refused.

    Returns:
        `PIL.Image.Image` of mode RGB.

    Raises:
        EvoTokImageError: a `ValueError` of one line with the source and the remedy.
    """
    if isinstance(source, Mapping):
        source = find_source(source)
        source = _decode_base64(source["base64"]) if isinstance(source, dict) and "base64" in source else source
    if is_array(source):
        return _convert_to_rgb(array_to_image(source))
    if type(source) is Image.Image and source.mode == "RGB" and not source.info and all(source.size):
        return source  # made in memory: nothing to decode, rotate or blend
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of decoders, about images that they decode all the same, or refuse
            return _decode(source, max_pixels, allow_remote)
    except EvoTokImageError:
        raise
    except Image.DecompressionBombError as error:
        limit = f"the limit of {max_pixels / 1e6:g} Mpx"
        raise EvoTokImageError(f"{_name(source)}: far over {limit}: scale the image down.") from error
    except UnidentifiedImageError as error:
        raise EvoTokImageError(f"{_name(source)}: not an image: give one of {', '.join(_FORMATS)}.") from error
    except Exception as error:  # decoders raise nearly every type for untrusted bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise EvoTokImageError(f"{_name(source)}: cannot be read ({reason}): save the image again.") from error


def _decode(source: Any, max_pixels: int, allow_remote: bool) -> Image.Image:
    """Opens, checks and decodes a source of [`load_image`] that is no array."""
    name, image = _open(source, allow_remote)
    if image.width * image.height > max_pixels:
        raise EvoTokImageError(
            f"{name}: {image.width} x {image.height} pixels are over the limit of {max_pixels / 1e6:g} Mpx: "
            "scale the image down, or raise max_pixels."
        )
    if max(image.size) > MAX_SIDE:  # padding it to a square would need its square
        raise EvoTokImageError(f"{name}: a side of {max(image.size)} pixels is over the limit of {MAX_SIDE}: crop it.")
    if not image.width * image.height:
        raise EvoTokImageError(f"{name}: {image.width} x {image.height} pixels are no image: give at least one.")
    # `n_frames` would read all frames to count them. A pickled or copied image has no file, and one frame.
    if hasattr(image, "fp") and image.tell():
        image.seek(0)
    image.load()
    return _convert_to_rgb(_rotate_upright(image))


def flatten_images(images: Any) -> list:
    """Flattens a nested list, a batched array or tensor, or a single image, in order; `None` is no image."""
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [image for group in images for image in flatten_images(group)]
    if getattr(images, "ndim", 0) == 4:
        return list(images)
    return [images]


def _name(source: Any) -> str:
    """Returns the name of a source in error messages."""
    if isinstance(source, dict):
        source = source.get("path")
    if isinstance(source, Image.Image):
        source = getattr(source, "filename", None)
    if isinstance(source, (str, os.PathLike)) and str(source):
        text = str(source)
        return repr(text if len(text) <= 200 else text[:100] + "..." + text[-20:])
    return "image"


def _open(source: Any, allow_remote: bool) -> tuple[str, Image.Image]:
    """Returns the name and the undecoded image of a source."""
    name = _name(source)
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, Image.Image):
        return name, source
    if isinstance(source, (str, os.PathLike)):
        source = _fetch(os.fspath(source), name, allow_remote)
    elif isinstance(source, (bytes, bytearray)):
        source = BytesIO(source)
    elif not hasattr(source, "read"):
        raise EvoTokImageError(f"{type(source).__name__} is no image: give a path, bytes, a PIL image or an array.")
    Image.init()  # Pillow raises KeyError for a format that its build does not have
    return name, Image.open(source, formats=[name for name in _FORMATS if name in Image.OPEN])


def _fetch(text: str, name: str, allow_remote: bool) -> Any:
    """Returns the path, or a stream with the bytes of an address or of base64 text."""
    if text.startswith(("http://", "https://")):
        if not allow_remote:
            raise EvoTokImageError(f"{name}: addresses are not fetched here: give the file, or allow remote images.")
        return BytesIO(_download(text, name))
    if "\0" not in text and len(text) < 4096 and os.path.exists(text):
        if not os.path.isfile(text):  # a folder, or a pipe without end
            raise EvoTokImageError(f"{name}: not a file: give the path of an image.")
        return text
    try:
        data = _decode_base64(text)
    except EvoTokImageError:
        data = b""
    if len(data) < 16:  # short names are valid base64 too
        raise EvoTokImageError(f"{name}: no such file: check the path.")
    return BytesIO(data)


def _decode_base64(text: Any) -> bytes:
    """Decodes base64 text, with or without `data:image/...;base64,` before it."""
    try:
        text = text.decode("ascii") if isinstance(text, (bytes, bytearray)) else text
        return base64.b64decode(text.split(",", 1)[-1] if text.startswith("data:image/") else text, validate=True)
    except (AttributeError, UnicodeDecodeError, ValueError):  # binascii.Error is a ValueError
        raise EvoTokImageError("an image given as base64 that is none: encode the bytes of its file again.") from None


def _download(address: str, name: str) -> bytes:
    """Downloads an image within the limits of bytes and seconds."""
    data, deadline = bytearray(), time.monotonic() + MAX_SECONDS
    with get_session().stream("GET", address, timeout=30) as response:
        response.raise_for_status()
        for piece in response.iter_bytes():
            data += piece
            if len(data) > MAX_BYTES or time.monotonic() > deadline:
                limit = f"{MAX_BYTES / 1e6:g} MB in {MAX_SECONDS:g} s"
                raise EvoTokImageError(f"{name}: over the limit of {limit}: fetch it first and give the file.")
    return bytes(data)


def _rotate_upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation, if its block can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the parser raises many types
        return image


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to 8-bit RGB."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_scale_to_8_bit(np.asarray(image), image.mode)).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
        return cast(Image.Image, ImageCms.applyTransform(image, transform))  # None is for a change in place
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion of premultiplied grey
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bit(values: np.ndarray, mode: str) -> np.ndarray:
    """Scales `(H, W)` greys of more than 8 bits to uint8. `I;16` has a known range; 32-bit integers and floats outside
    the ranges of `scale_to_bytes` are read as 16-bit, or scaled from their extremes, with a warning."""
    if not np.isfinite(values).all():
        raise EvoTokImageError("image holds NaN or infinite values: repair them before giving it.")
    low, high = float(values.min()), float(values.max())
    if mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 255:
        return scale_to_bytes(values, "image")
    else:
        low, high = (0.0, 65535.0) if low >= 0 and high <= 65535 else (low, high)
        logger.warning_once(
            f"image of mode {mode} has no range of its own: it is read as {low:g} (black) to {high:g} (white). Save it "
            "as 8-bit or 16-bit."
        )
    return np.rint((values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)


def is_array(source: Any) -> bool:
    """Returns whether an image is an array or a tensor."""
    return hasattr(source, "__array__") and not isinstance(source, Image.Image)


def check_unit_range(array: Any) -> Any:
    """Checks an array or a tensor of floats from 0 to 1, and repeats greys `(H, W)` to three channels.

    Raises:
        EvoTokImageError: no such array, other values, or another number of channels.
    """
    values: np.ndarray = _values(array) if is_array(array) else np.empty(0, np.uint8)
    if values.dtype.kind != "f" or values.min() < 0 or values.max() > 1:
        raise EvoTokImageError("do_rescale=False is for arrays of floats from 0 to 1 alone: leave it out.")
    if values.ndim == 2:
        return (
            array.expand(3, *values.shape) if hasattr(array, "expand") else np.broadcast_to(array, (3, *values.shape))
        )
    if 3 not in (values.shape[0], values.shape[2]):
        raise EvoTokImageError(f"array of shape {values.shape}: with do_rescale=False give 3 channels, or (H, W).")
    return array


def array_to_image(array: Any) -> Image.Image:
    """Converts an array or a tensor to an 8-bit grey, RGB or RGBA image.

    Args:
        array: `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels and values of the table above. Where both
            of the latter fit, tensors are read with channels first and arrays with channels last, with a warning.

    Raises:
        EvoTokImageError: another shape, or other values.
    """
    values = scale_to_bytes(_channels_last(_values(array), is_tensor=hasattr(array, "detach")))
    mode = _CHANNELS[1 if values.ndim == 2 else values.shape[2]]
    return Image.fromarray(np.ascontiguousarray(values.squeeze(2) if values.ndim == 3 and mode == "L" else values))


def scale_to_bytes(values: np.ndarray, what: str = "array") -> np.ndarray:
    """Scales values of any shape to uint8, by the table above.

    Raises:
        EvoTokImageError: other values; `what` is their name in the message.
    """
    low, high = values.min(), values.max()
    kind = values.dtype.kind
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16 and high > 255:
        return np.rint(values / 257.0).astype(np.uint8)
    if low < 0 or high > 255:
        correction = "give floats from 0 to 1, or integers from 0 to 255 (uint16: to 65535)."
        if low >= -1 and high <= 1:
            correction = "pixel_values go to the model as they are; of an image in [-1, 1] give (x + 1) / 2."
        raise EvoTokImageError(f"{what} holds values from {low} to {high}: {correction}")
    if kind != "f":
        if values.dtype == np.uint16:
            logger.warning_once(
                f"{what} of uint16 holds nothing over 255 and is read as 8-bit: give uint8 if it is, or 0 to 65535."
            )
        return values.astype(np.uint8)
    if high <= 1:
        return np.rint(values.astype(np.float64) * 255.0).astype(np.uint8)
    if high < _DARKEST and (values != np.rint(values)).any():
        raise EvoTokImageError(
            f"{what} holds floats from {low} to {high}, neither of 0 to 1 nor of 0 to 255: clip them to 0 to 1."
        )
    return np.rint(values).astype(np.uint8)


def convert_to_images(pixels: Any) -> list[Image.Image]:
    """Converts pixels `(B, 3, H, W)` or `(3, H, W)`, about [-1, 1] and clipped to it, to RGB images.

    Raises:
        ValueError: for codes instead of pixels, and for NaN.
    """
    if hasattr(pixels, "detach"):
        pixels = pixels.detach().cpu()
        pixels = pixels.float() if pixels.is_floating_point() else pixels  # NumPy has no bfloat16
    pixels = np.asarray(pixels)
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype.kind != "f":
        raise ValueError(
            f"{pixels.dtype} array of shape {pixels.shape} is not pixels (B, 3, H, W): decode codes with the "
            "model's decode_image_tokens first."
        )
    if not np.isfinite(pixels).all():
        raise ValueError("Decoded pixels hold NaN or infinite values: check the checkpoint and its dtype.")
    pixels = np.rint((pixels.transpose(0, 2, 3, 1) + 1.0) * 127.5).clip(0, 255).astype(np.uint8)
    return [Image.fromarray(image) for image in pixels]


def _values(array: Any) -> np.ndarray:
    """Returns the values of an array or a tensor, after checking its shape and that all are finite."""
    shape = tuple(array.shape)
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and not {shape[0], shape[2]} & _CHANNELS.keys()):
        raise EvoTokImageError(
            f"array of shape {shape} is no image: give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels."
        )
    if hasattr(array, "detach") and array.dtype.is_floating_point:
        array = array.float()  # NumPy has no bfloat16
    try:
        values = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    except Exception as error:  # sparse, on no device, quantized
        raise EvoTokImageError(f"array cannot be read ({error}): give a dense one on the CPU.") from error
    if values.dtype.kind not in "buif":
        raise EvoTokImageError(f"array of {values.dtype} is no image: give numbers from 0 to 255.")
    if not np.isfinite(values).all():
        raise EvoTokImageError("array holds NaN or infinite values: repair them before making an image of it.")
    return values


def _channels_last(values: np.ndarray, is_tensor: bool) -> np.ndarray:
    """Moves the channels of `(C, H, W)` last; `(H, W)` and `(H, W, C)` are returned as they are."""
    if values.ndim == 2:
        return values
    first, last = (values.shape[axis] in _CHANNELS for axis in (0, 2))
    if first and last:
        layout = "(C, H, W), as of tensors" if is_tensor else "(H, W, C), as of arrays"
        logger.warning_once(f"array of shape {values.shape} has two possible layouts: it is read as {layout}.")
    return values.transpose(1, 2, 0) if first and (is_tensor or not last) else values


__all__ = [
    "MAX_PIXELS",
    "SOURCE_KEYS",
    "EvoTokImageError",
    "check_unit_range",
    "convert_to_images",
    "find_source",
    "flatten_images",
    "load_image",
]
