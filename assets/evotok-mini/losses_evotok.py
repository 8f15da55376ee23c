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
"""Cross-entropy over many classes that never holds all logits.

The gradient of a cross-entropy is known as soon as its logits are. So the forward pass makes it at once, block of rows
by block of rows, and drops the logits; the backward pass only scales it. No matmul is done twice, as it would be if the
logits were computed again in the backward pass.

Shapes: M rows, E width, K classes.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


# Rows whose logits are alive at once: 128 MiB in float32 at K = 32,768. With fewer, sums of gradients take longer.
_BLOCK_ROWS = 1024


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, bias, targets, with_gradients):
        wanted = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        loss = torch.zeros((), dtype=torch.float32, device=states.device)
        of_states = torch.empty_like(states) if wanted[0] else None
        of_weight = of_bias = None
        for start in range(0, len(states), _BLOCK_ROWS):
            rows, classes = (tensor[start : start + _BLOCK_ROWS] for tensor in (states, targets[:, None]))
            # (rows, K), changed in place from logits to their gradient: there is never a second one in float32.
            block = F.linear(rows, weight, bias).float()
            highest, correct = block.amax(1, keepdim=True), block.gather(1, classes)
            total = block.sub_(highest).exp_().sum(1, keepdim=True)
            loss += (total.log() + highest - correct).sum()
            if any(wanted):  # probabilities, less 1 at the target
                block.div_(total).scatter_add_(1, classes, block.new_full(classes.shape, -1.0))
            if wanted[2]:
                of_bias = _sum(of_bias, block.sum(0))
            block = block.to(states.dtype)
            if wanted[0]:
                of_states[start : start + _BLOCK_ROWS] = block @ weight
            if wanted[1]:
                of_weight = _sum(of_weight, block.t() @ rows)
            del block  # before the next one is made
        if of_weight is not None:
            of_weight = of_weight.to(weight.dtype)
        if of_bias is not None:
            of_bias = of_bias.to(bias.dtype)
        ctx.save_for_backward(of_states, of_weight, of_bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, scale):
        gradients = [None if gradient is None else gradient * scale for gradient in ctx.saved_tensors]
        return *gradients, None, None


def _sum(total: torch.Tensor | None, term: torch.Tensor) -> torch.Tensor:
    """A running sum in float32."""
    return term.float() if total is None else total.add_(term)


def linear_cross_entropy(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.LongTensor
) -> torch.Tensor:
    """Sum over rows of the cross-entropy of `F.linear(states, weight, bias)`, in float32.

    Args:
        states: (M, E).
        weight, bias: (K, E) and (K,) or None.
        targets: (M,) int64, each in [0, K).

    Returns:
        Scalar. Its gradient is made along with it, unless gradients are off, and can be taken once only.
    """
    return _LinearCrossEntropy.apply(states, weight, bias, targets, torch.is_grad_enabled())
