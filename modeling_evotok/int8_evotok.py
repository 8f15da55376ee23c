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
"""Weight-only int8 for generation on CPUs: `quantization_config=EvoTokInt8Config()` of `from_pretrained`.

The time of a position is that of reading weights; int8 halves the bytes of bfloat16. Each output feature has a scale of
its own, activations keep their dtype. Quantized are the linear layers that Transformers' quantizers select, so not the
image tokenizer, the classifiers of codes and the text head. A quantized model is saved and loaded as any other.

TorchAO, without a compiler, writes the whole weight in bfloat16 in each call (3 to 8 times the time of bfloat16), and
Quanto calls the same kernel of PyTorch as this file, in twice the time for layers of this model's width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin


QUANT_METHOD = "evotok_int8"
_MAX_ROWS = 16  # with more, converting the weight costs less than the kernel's slower multiplication
_KERNEL_WIDTH = 16  # the kernel reads beyond a row of the weight whose length is no multiple of it


class EvoTokInt8Config(QuantizationConfigMixin):
    """Config of weight-only int8.

    Args:
        modules_to_not_convert: names or prefixes of more modules that keep their dtype.
    """

    def __init__(self, modules_to_not_convert: list[str] | None = None, **kwargs):
        self.quant_method = QUANT_METHOD
        self.modules_to_not_convert = modules_to_not_convert


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes a weight (out, in) to int8 of the same shape, in [-127, 127], and scales (out,) in its own dtype."""
    scale = weight.abs().amax(dim=1) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    # Divided by the scale as rounded to the dtype, so that its rounding is no error.
    quantized = (weight.float() / scale.float()[:, None]).round().clamp(-127, 127)
    return quantized.to(torch.int8), scale


class EvoTokInt8Linear(nn.Module):
    """Linear layer with an int8 weight (out, in) and scales (out,): (..., in) -> (..., out)."""

    def __init__(self, in_features: int, out_features: int, bias: bool, weight_dtype: torch.dtype | None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=weight_dtype), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        rows = states.shape[:-1].numel()
        half = states.dtype == self.weight_scale.dtype == torch.bfloat16
        fits = states.device.type == "cpu" and self.in_features % _KERNEL_WIDTH == 0 and not states.requires_grad
        if half and fits and 1 <= rows <= _MAX_ROWS:
            product = torch._weight_int8pack_mm(states.reshape(rows, -1), self.weight, self.weight_scale)
            product = product.view(*states.shape[:-1], -1)
        else:
            product = F.linear(states, self.weight.to(states.dtype)) * self.weight_scale
        return product if self.bias is None else product + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class EvoTokInt8Quantize(ConversionOps):
    """Quantizes a weight while it is loaded."""

    def convert(self, input_dict: dict[str, Any], *patterns, full_layer_name: str = "", **kwargs) -> dict[str, Any]:
        [[weight]] = input_dict.values()
        quantized, scale = quantize_weight(weight)
        return {full_layer_name: quantized, f"{full_layer_name}_scale": scale}


class EvoTokInt8Quantizer(HfQuantizer):
    """Replaces linear layers by [`EvoTokInt8Linear`] before the weights are loaded."""

    quantization_config: EvoTokInt8Config

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True

    @property
    def quantized_element_size(self) -> float:
        return 1

    def param_needs_quantization(self, model, param_name: str, **kwargs) -> bool:
        module, name = get_module_from_name(model, param_name)
        return not self.pre_quantized and isinstance(module, EvoTokInt8Linear) and name == "weight"

    def _process_model_before_weight_loading(self, model, **kwargs):
        skipped = self.get_modules_to_not_convert(
            model, self.quantization_config.modules_to_not_convert, model._keep_in_fp32_modules
        )
        selected = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and should_convert_module(name, skipped)
        }
        # A weight that is quantized while it is loaded arrives in the dtype of the model.
        dtype = torch.int8 if self.pre_quantized else None
        for name, module in selected.items():
            with torch.device("meta"):
                layer = EvoTokInt8Linear(module.in_features, module.out_features, module.bias is not None, dtype)
            model.set_submodule(name, layer)
        return model

    def get_quantize_ops(self) -> EvoTokInt8Quantize:
        return EvoTokInt8Quantize()


# Not by decorators of Transformers: they refuse a second registration, by the copy of this file in a checkpoint.
AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(QUANT_METHOD, EvoTokInt8Config)
AUTO_QUANTIZER_MAPPING.setdefault(QUANT_METHOD, EvoTokInt8Quantizer)


__all__ = ["EvoTokInt8Config", "EvoTokInt8Linear"]
