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
"""What is looked at before an image is encoded: whether its pixels were scaled, and the weights' precision."""

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Filters that resize overshoot [-1, 1] by less than the first; beyond the second lie bytes that were never scaled.
_ODD_PIXEL, _NO_PIXEL = 1.5, 16.0


def check_pixel_range(pixel_values: torch.Tensor, in_training: bool) -> None:
    """Warns of pixels outside [-1, 1], which are clamped.

    In training on a GPU no step waits for it: the assertion is the device's own.

    Raises:
        ValueError: NaN, or pixels that were never scaled.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or pixel_values.is_meta or not len(pixel_values):
        return
    highest = pixel_values.detach().abs().amax()
    text = "pixel_values hold NaN or values far outside [-1, 1]: scale 0..255 by x / 127.5 - 1, 0..1 by 2 x - 1."
    if in_training and highest.is_cuda:
        torch._assert_async(highest <= _NO_PIXEL, text)
    elif not highest <= _NO_PIXEL:
        raise ValueError(text)
    elif highest > _ODD_PIXEL:
        logger.warning_once("pixel_values outside [-1, 1] are clamped to it: were they scaled by 2 x - 1?")


def warn_of_half_precision(dtype: torch.dtype) -> None:
    """Warns of weights of the image tokenizer that are not float32."""
    if dtype in (torch.float16, torch.bfloat16):
        logger.warning_once(
            f"The image tokenizer's weights are {dtype}: some of its codes differ from those of float32, for which its "
            "decoders, and language models, were trained. Load it in float32; where an engine or a library casts "
            "parameters one by one, keep it out, or give codes instead of pixels."
        )


__all__ = ["check_pixel_range", "warn_of_half_precision"]
