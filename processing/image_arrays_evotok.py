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
"""Reads pixel values of arrays and tensors, whose range no file format states.

| dtype | range |
| --- | --- |
| bool | False black, True white |
| uint8 | 0 to 255 |
| uint16 | 0 to 65,535; with a warning 0 to 255 if none is larger |
| other integers | 0 to 255 |
| floats, none over 1 | 0 to 1, as torchvision's `ToTensor` gives them |
| floats, some over 1 | 0 to 255 |

Anything else is refused: negative values (so are `pixel_values`, which lie in [-1, 1]), larger ones, NaN, and floats
that are all under 16 but not all under 1 and not whole, such as a picture of 0 to 1 that was made brighter.
"""

from typing import Any

import numpy as np
from PIL import Image
from transformers.utils import logging


logger = logging.get_logger(__name__)

_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
# Below it floats are no picture of 0 to 255 that anyone can see.
_DARKEST = 16.0


class EvoTokImageError(ValueError):
    """An image that cannot be used: no image, truncated, over the size limit, not finite. One line with the remedy."""


def is_array(source: Any) -> bool:
    """Whether an image was given as an array or a tensor."""
    return hasattr(source, "__array__") and not isinstance(source, Image.Image)


def check_unit_range(array: Any) -> Any:
    """An array or a tensor of floats from 0 to 1, as it is but for greys `(H, W)`, which get their three channels.

    Raises:
        EvoTokImageError: it is none, holds other values, or has another number of channels.
    """
    values = _values(array) if is_array(array) else np.empty(0, np.uint8)
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
    """An 8-bit image, grey, RGB or RGBA, of an array or a tensor.

    Args:
        array: `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels, of a range in the table above. Where both
            of the latter fit, tensors of PyTorch have their channels first and others last, with a warning.

    Raises:
        EvoTokImageError: another shape, or values of no known range.
    """
    values = scale_to_bytes(_channels_last(_values(array), is_tensor=hasattr(array, "detach")))
    mode = _CHANNELS[1 if values.ndim == 2 else values.shape[2]]
    return Image.fromarray(np.ascontiguousarray(values.squeeze(2) if values.ndim == 3 and mode == "L" else values))


def scale_to_bytes(values: np.ndarray, what: str = "array") -> np.ndarray:
    """Pixel values of any shape as uint8, by the table above.

    Raises:
        EvoTokImageError: values of no known range; `what` is what the message calls them.
    """
    low, high = values.min(), values.max()
    kind = values.dtype.kind
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16 and high > 255:
        return np.rint(values / 257.0).astype(np.uint8)
    if low < 0 or high > 255:
        mend = "give floats from 0 to 1, or integers from 0 to 255 (uint16: to 65535)."
        if low >= -1 and high <= 1:
            mend = "pixel_values go to the model as they are; of an image in [-1, 1] give (x + 1) / 2."
        raise EvoTokImageError(f"{what} holds values from {low} to {high}: {mend}")
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


def _values(array: Any) -> np.ndarray:
    """Finite numbers of an array or a tensor, of a shape that an image may have."""
    shape = tuple(array.shape)
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and not {shape[0], shape[2]} & _CHANNELS.keys()):
        raise EvoTokImageError(
            f"array of shape {shape} is no image: give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels."
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
    return values


def _channels_last(values: np.ndarray, is_tensor: bool) -> np.ndarray:
    """`(H, W)` as it is, `(H, W, C)` or `(C, H, W)` as `(H, W, C)`."""
    if values.ndim == 2:
        return values
    first, last = (values.shape[axis] in _CHANNELS for axis in (0, 2))
    if first and last:
        meant = "(C, H, W), as of tensors" if is_tensor else "(H, W, C), as of arrays"
        logger.warning_once(f"array of shape {values.shape} may be either way round: it is read as {meant}.")
    return values.transpose(1, 2, 0) if first and (is_tensor or not last) else values


__all__ = ["EvoTokImageError", "array_to_image", "check_unit_range", "convert_to_images", "is_array", "scale_to_bytes"]
