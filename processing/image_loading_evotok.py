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
library's own loader does the same. Every fault of an untrusted file becomes an [`EvoTokImageError`] of one line that
names the file.
"""

import base64
import os
import time
import warnings
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from huggingface_hub.utils import get_session
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from transformers.utils import logging

from .image_arrays_evotok import EvoTokImageError, array_to_image, convert_to_images, is_array, scale_to_bytes


logger = logging.get_logger(__name__)

MAX_PIXELS = 64_000_000
MAX_SIDE = 65_536  # as much as a JPEG has
MAX_BYTES = 256_000_000  # of an image behind an address
MAX_SECONDS = 60.0  # for fetching it: a server that drips would never end

# Of a part of a message, where an image may stand.
SOURCE_KEYS = ("image", "path", "url", "image_url", "base64")

# Not everything that Pillow knows: EPS, for one, starts an interpreter of its own.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF", "TGA", "QOI")


def find_source(part: Mapping) -> Any:
    """What an image part of a message, or the dict of a data set, stands for; None where it names no image.

    Args:
        part: `{"image": ...}`, `{"path": ...}`, `{"url": ...}`, `{"image_url": ...}` or `{"base64": ...}`, whose value
            may be such a dict itself (`{"image_url": {"url": ...}}`), or `{"bytes": ...}` with or without a `path`.

    Returns:
        Something that [`load_image`] takes; dicts of bytes or base64 stay dicts, so that nothing is decoded here.

    Raises:
        EvoTokImageError: more than one of them.
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
    """Opens `source` as an upright 8-bit RGB image: EXIF rotation applied, transparency on white, the first frame of
    an animation, 16-bit greys scaled to 8.

    Args:
        source: path, `http(s)://` address, `data:` address or base64 text, bytes, file object, a dict that
            [`find_source`] reads, such as that of `datasets.Image(decode=False)`, a PIL image, or an array or tensor
            `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels: floats from 0 to 1 or from 0 to 255, integers
            from 0 to 255, uint16 to 65535; what fits none of these ranges is refused, see `image_arrays_evotok`.
        max_pixels (`int`): limit of width x height, looked at before a pixel is decoded.
        allow_remote (`bool`): whether `http(s)://` addresses are fetched, or refused.

    Returns:
        `PIL.Image.Image` of mode RGB.

    Raises:
        EvoTokImageError: a `ValueError` of one line that names the source and what to do.
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
            warnings.simplefilter("ignore")  # decoders remark on what they take all the same, or refuse
            return _decode(source, max_pixels, allow_remote)
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


def _decode(source: Any, max_pixels: int, allow_remote: bool) -> Image.Image:
    name, image = _open(source, allow_remote)
    if image.width * image.height > max_pixels:
        raise EvoTokImageError(
            f"{name}: {image.width} x {image.height} pixels are over the limit of {max_pixels / 1e6:g} Mpx: "
            "scale the image down, or raise max_pixels."
        )
    if max(image.size) > MAX_SIDE:  # what makes a square of it would need its square
        raise EvoTokImageError(f"{name}: a side of {max(image.size)} pixels is over the limit of {MAX_SIDE}: crop it.")
    if not image.width * image.height:
        raise EvoTokImageError(f"{name}: {image.width} x {image.height} pixels are no image: give at least one.")
    # n_frames would read them all to count them. A pickled or copied image has lost its file, and all frames but one.
    if hasattr(image, "fp") and image.tell():
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


def _open(source: Any, allow_remote: bool) -> tuple[str, Image.Image]:
    """Name and undecoded image of a source."""
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
    Image.init()  # formats that this build of Pillow lacks must not be asked for
    return name, Image.open(source, formats=[name for name in _FORMATS if name in Image.OPEN])


def _fetch(text: str, name: str, allow_remote: bool) -> Any:
    """A path, or a stream with the bytes that an address or base64 text stands for."""
    if text.startswith(("http://", "https://")):
        if not allow_remote:
            raise EvoTokImageError(f"{name}: addresses are not fetched here: give the file, or allow remote images.")
        return BytesIO(_download(text, name))
    if "\0" not in text and len(text) < 4096 and os.path.exists(text):
        if not os.path.isfile(text):  # a folder, or a pipe that would never end
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
    """The bytes of base64 text, with or without `data:image/...;base64,` before it."""
    try:
        text = text.decode("ascii") if isinstance(text, (bytes, bytearray)) else text
        return base64.b64decode(text.split(",", 1)[-1] if text.startswith("data:image/") else text, validate=True)
    except (AttributeError, UnicodeDecodeError, ValueError):  # binascii.Error is one of the last
        raise EvoTokImageError("an image given as base64 that is none: encode the bytes of its file again.") from None


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
    """`(H, W)` greys of more than 8 bits -> uint8. `I;16` has a known range; 32-bit integers and floats that fit no
    range of `scale_to_bytes` are read as 16-bit, or stretched from their extremes, with a warning."""
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
            "as 8-bit or 16-bit to say which."
        )
    return np.rint((values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)


__all__ = [
    "MAX_PIXELS",
    "SOURCE_KEYS",
    "EvoTokImageError",
    "convert_to_images",
    "find_source",
    "flatten_images",
    "load_image",
]
