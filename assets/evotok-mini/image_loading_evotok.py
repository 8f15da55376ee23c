# Copyright 2026 The EvoTok contributors. All rights reserved.
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
"""Opens images of any kind as upright 8-bit RGB.

Pillow's plain `convert("RGB")` paints transparency black, clips 16-bit greys to white and ignores EXIF rotation; the
library's own loader does the same. Everything that a stranger's file can do wrong becomes an [`EvoTokImageError`]
of one line that names the file.
"""

import base64
import binascii
import os
import time
import warnings
from io import BytesIO
from typing import Any

import numpy as np
from huggingface_hub.utils import get_session
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError


MAX_PIXELS = 64_000_000
MAX_SIDE = 65_536  # as much as a JPEG has
MAX_BYTES = 256_000_000  # of an image behind an address
MAX_SECONDS = 60.0  # for fetching it: a server that drips would never end

# Not everything that Pillow knows: EPS, for one, starts an interpreter of its own.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF", "TGA", "QOI")


class EvoTokImageError(ValueError):
    """An image that cannot be used: no image, truncated, over the size limit, not finite. One line with the remedy."""


def load_image(source: Any, max_pixels: int = MAX_PIXELS) -> Any:
    """Opens `source` as an upright 8-bit RGB image: EXIF rotation applied, transparency on white, the first frame of
    an animation, 16-bit greys scaled to 8.

    Args:
        source: path, `http(s)://` address, `data:` address or base64 text, bytes, file object, the
            `{"path": ..., "bytes": ...}` of `datasets.Image(decode=False)`, or a PIL image. Arrays and tensors,
            `(H, W)`, `(H, W, C)` or `(C, H, W)`, are only checked.
        max_pixels (`int`): limit of width x height, looked at before a pixel is decoded.

    Returns:
        `PIL.Image.Image` of mode RGB; the array or tensor itself where one was given.

    Raises:
        EvoTokImageError: a `ValueError` of one line that names the source and what to do.
    """
    if hasattr(source, "__array__") and not isinstance(source, Image.Image):
        return _check_array(source)
    if type(source) is Image.Image and source.mode == "RGB" and not source.info and all(source.size):
        return source  # made in memory: nothing to decode, rotate or blend
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders remark on what they take all the same, or refuse
            return _decode(source, max_pixels)
    except EvoTokImageError:
        raise
    except Image.DecompressionBombError as error:
        limit = f"the limit of {max_pixels / 1e6:g} Mpx"
        raise EvoTokImageError(f"{_name(source)}: far over {limit}: scale the image down.") from error
    except UnidentifiedImageError as error:
        raise EvoTokImageError(f"{_name(source)}: not an image: give one of {', '.join(_FORMATS)}.") from error
    except Exception as error:  # decoders of hostile bytes raise nearly every type there is
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise EvoTokImageError(f"{_name(source)}: cannot be read ({reason}): save the image again.") from error


def _decode(source: Any, max_pixels: int) -> Image.Image:
    name, image = _open(source)
    if image.width * image.height > max_pixels:
        raise EvoTokImageError(
            f"{name}: {image.width} x {image.height} pixels are over the limit of {max_pixels / 1e6:g} Mpx: "
            "scale the image down, or raise max_pixels."
        )
    if max(image.size) > MAX_SIDE:  # what makes a square of it would need its square
        raise EvoTokImageError(f"{name}: a side of {max(image.size)} pixels is over the limit of {MAX_SIDE}: crop it.")
    if not image.width * image.height:
        raise EvoTokImageError(f"{name}: {image.width} x {image.height} pixels are no image: give at least one.")
    if image.tell():  # n_frames would read them all to count them
        image.seek(0)
    image.load()
    return _convert_to_rgb(_rotate_upright(image))


def flatten_images(images: Any) -> list:
    """Images of a nested list, a batched array or tensor, or a single one, in order; `None` counts as no image."""
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [image for group in images for image in flatten_images(group)]
    if getattr(images, "ndim", 0) == 4:
        return list(images)
    return [images]


def convert_to_images(pixels: Any) -> list[Image.Image]:
    """Pixels `(B, 3, H, W)` or `(3, H, W)`, about [-1, 1], as RGB images; what lies outside is clipped.

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


def _name(source: Any) -> str:
    """What an error message calls the source."""
    if isinstance(source, dict):
        source = source.get("path")
    if isinstance(source, Image.Image):
        source = getattr(source, "filename", None)
    if isinstance(source, (str, os.PathLike)) and str(source):
        text = str(source)
        return repr(text if len(text) <= 200 else text[:100] + "..." + text[-20:])
    return "image"


def _open(source: Any) -> tuple[str, Image.Image]:
    """Name and undecoded image of a source."""
    name = _name(source)
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, Image.Image):
        return name, source
    if isinstance(source, (str, os.PathLike)):
        source = _fetch(os.fspath(source), name)
    elif isinstance(source, (bytes, bytearray)):
        source = BytesIO(source)
    elif not hasattr(source, "read"):
        raise EvoTokImageError(f"{type(source).__name__} is no image: give a path, bytes, a PIL image or an array.")
    Image.init()  # formats that this build of Pillow lacks must not be asked for
    return name, Image.open(source, formats=[name for name in _FORMATS if name in Image.OPEN])


def _fetch(text: str, name: str) -> Any:
    """A path, or a stream with the bytes that an address or base64 text stands for."""
    if text.startswith(("http://", "https://")):
        return BytesIO(_download(text, name))
    if "\0" not in text and len(text) < 4096 and os.path.exists(text):
        if not os.path.isfile(text):  # a folder, or a pipe that would never end
            raise EvoTokImageError(f"{name}: not a file: give the path of an image.")
        return text
    try:
        data = base64.b64decode(text.split(",", 1)[-1] if text.startswith("data:image/") else text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) < 16:  # short names are valid base64 too
        raise EvoTokImageError(f"{name}: no such file: check the path.")
    return BytesIO(data)


def _download(address: str, name: str) -> bytes:
    """The bytes behind an address: no more of them, and for no longer, than an image takes."""
    data, deadline = bytearray(), time.monotonic() + MAX_SECONDS
    with get_session().stream("GET", address, timeout=30) as response:
        response.raise_for_status()
        for piece in response.iter_bytes():
            data += piece
            if len(data) > MAX_BYTES or time.monotonic() > deadline:
                limit = f"{MAX_BYTES / 1e6:g} MB in {MAX_SECONDS:g} s"
                raise EvoTokImageError(f"{name}: over the limit of {limit}: fetch it first and give the file.")
    return bytes(data)


def _check_array(array: Any) -> Any:
    """Refuses arrays and tensors that are no image, or hold what no pixel is; gives greys their three channels."""
    shape = tuple(array.shape)
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and not {shape[0], shape[2]} & {1, 3}):
        raise EvoTokImageError(
            f"array of shape {shape} is no image: give (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels."
        )
    if hasattr(array, "detach") and array.dtype.is_floating_point:
        array = array.float()  # NumPy has no bfloat16
    try:
        values = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    except Exception as error:  # sparse, on no device, quantised
        raise EvoTokImageError(f"array cannot be read ({error}): give a dense one on the CPU.") from error
    if values.dtype.kind not in "buif":
        raise EvoTokImageError(f"array of {values.dtype} is no image: give numbers from 0 to 255.")
    if not np.isfinite(values).all():
        raise EvoTokImageError("array holds NaN or infinite values: repair them before making an image of it.")
    if values.min() < -1 or values.max() > 255:
        raise EvoTokImageError(f"array holds values from {values.min()} to {values.max()}: scale them to 0 to 255.")
    if values.dtype.kind == "b":
        array = array * np.uint8(255) if isinstance(array, np.ndarray) else array.byte() * 255
    if len(shape) == 2:
        return array.expand(3, *shape) if hasattr(array, "expand") else np.broadcast_to(array, (3, *shape))
    return array


def _rotate_upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; an unreadable EXIF block is no reason to refuse the picture."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever the parser stumbles over
        return image


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_scale_to_8_bit(np.asarray(image), image.mode)).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
    if image.mode == "La":
        image = image.convert("LA")  # premultiplied grey converts to nothing else
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bit(values: np.ndarray, mode: str) -> np.ndarray:
    """`(H, W)` greys of more than 8 bits -> uint8. `I;16` has a known range; that of 32-bit and float greys is guessed
    from their extremes: unit, 8-bit, 16-bit, else stretched."""
    if not np.isfinite(values).all():
        raise EvoTokImageError("image holds NaN or infinite values: repair them before giving it.")
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 65535:
        limits = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
        low, high = 0.0, next(limit for limit in limits if high <= limit)
    return np.rint((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)


__all__ = ["MAX_PIXELS", "EvoTokImageError", "convert_to_images", "flatten_images", "load_image"]
