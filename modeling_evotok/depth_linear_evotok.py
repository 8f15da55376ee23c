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
"""Linear layer of the depth decoder, fast for the few rows of generation on a CPU; the dtype of any layer's input."""

from typing import cast

import torch
from torch import nn


# Numbers of rows with which a matmul on a CPU is bound by reading the weight, and faster with the operands exchanged.
_FEW_ROWS = range(1 if torch.cpu.get_capabilities().get("amx_tile") else 9, 33)


class EvoTokDepthLinear(nn.Linear):
    """Linear layer that multiplies a few rows in bfloat16 on a CPU as weight times rows, the order of its memory.

    The time of generating codes is that of reading weights, and rows times weight reads them a third slower or worse;
    but with up to eight rows on a CPU without matrix units (AMX) it is faster.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # a graph may have shapes without numbers
            return super().forward(states)
        few = states.device.type == "cpu" and states.shape[:-1].numel() in _FEW_ROWS
        half = states.dtype == self.weight.dtype == torch.bfloat16
        plain = type(self.weight) is nn.Parameter  # quantized weights of TorchAO are of another type
        if not (few and half and plain):
            return super().forward(states)
        product = torch.mm(self.weight, states.flatten(0, -2).t()).t().contiguous()  # (rows, features)
        return product.add_(self.bias).unflatten(0, states.shape[:-1])


def input_dtype(layer: nn.Module) -> torch.dtype:
    """Returns the dtype of a linear layer's input: that of its weight, or of its bias where the weight is quantized.

    The bias alone does not tell: vLLM turns it into float32 for some of its kernels.
    """
    weight = getattr(layer, "weight", None)  # some quantized layers have none
    if weight is not None and weight.is_floating_point() and weight.itemsize > 1:
        return weight.dtype
    return cast(torch.Tensor, layer.bias).dtype


__all__ = ["EvoTokDepthLinear"]
