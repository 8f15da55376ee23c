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
"""Training losses: cross-entropy of text and of codes, each the mean over its own targets (paper, Sec. 3.3).

A mean over the rows of one forward pass is not the mean over a step: rows are split over processes and accumulated
batches, each with another number of targets. With the numbers of the whole step each pass returns its share; shares add
up to the same loss for any split.

Shapes: B rows, S tokens, H width, V vocabulary; M positions, L levels, C codebook width, E width of the depth decoder,
K classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from transformers.utils import ModelOutput, logging


logger = logging.get_logger(__name__)

IGNORE_INDEX = -100
# Rows whose logits exist at once: 128 MiB in float32 at K = 32,768. With fewer, sums of gradients take longer.
_BLOCK_ROWS = 1024


class EvoTokDepthLoss(NamedTuple):
    """Eq. 11: `loss`, the mean over positions and levels, and `level_losses` (L,), its detached means per level; or
    shares of the means over a global batch."""

    loss: torch.Tensor
    level_losses: torch.Tensor


def linear_cross_entropy(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """Computes the sum over rows of the cross-entropy of `F.linear(states, weight, bias)`, in float32.

    Logits exist for one block of rows at a time. The forward pass computes the gradients, too, and the backward pass
    only scales them: no matmul is done twice, as it would be if the logits were computed again for the backward pass.

    Args:
        states: (M, E).
        weight, bias: (K, E) and (K,) or None.
        targets: (M,) int64, each in [0, K).

    Returns:
        Scalar, which can be differentiated once.
    """
    return _LinearCrossEntropy.apply(states, weight, bias, targets, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, bias, targets, with_gradients):
        needed = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        loss = torch.zeros((), dtype=torch.float32, device=states.device)
        states_grad = torch.empty_like(states) if needed[0] else None
        weight_grad = bias_grad = None
        for start in range(0, len(states), _BLOCK_ROWS):
            rows, classes = (tensor[start : start + _BLOCK_ROWS] for tensor in (states, targets[:, None]))
            # (rows, K), changed in place from logits to their gradient, so that there is one such tensor in float32.
            block = F.linear(rows, weight, bias).float()
            highest, correct = block.amax(1, keepdim=True), block.gather(1, classes)
            total = block.sub_(highest).exp_().sum(1, keepdim=True)
            loss += (total.log() + highest - correct).sum()
            if any(needed):  # probabilities, less 1 at the target
                block.div_(total).scatter_add_(1, classes, block.new_full(classes.shape, -1.0))
            if needed[2]:
                bias_grad = _add(bias_grad, block.sum(0))
            block = block.to(states.dtype)
            if states_grad is not None:
                states_grad[start : start + _BLOCK_ROWS] = block @ weight
            if needed[1]:
                weight_grad = _add(weight_grad, block.t() @ rows)
            del block  # before the next one is allocated
        if weight_grad is not None:
            weight_grad = weight_grad.to(weight.dtype)
        if bias_grad is not None:
            bias_grad = bias_grad.to(bias.dtype)
        ctx.save_for_backward(states_grad, weight_grad, bias_grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, scale):
        gradients = [None if gradient is None else gradient * scale for gradient in ctx.saved_tensors]
        return *gradients, None, None


def _add(total: torch.Tensor | None, term: torch.Tensor) -> torch.Tensor:
    """Adds a term to a sum in float32."""
    return term.float() if total is None else total.add_(term)


class EvoTokLossMixin:
    """Losses of a model with `model` (an [`EvoTokModel`]), `lm_head` and `depth_decoder`."""

    def count_targets(
        self, input_ids: torch.Tensor, labels: torch.Tensor, shift_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Counts text targets and target positions of generated images in labels (B, S): (2,) int64.

        Summed over processes and accumulated batches they are `num_items_in_batch` and `num_image_positions_in_batch`.
        """
        targets = _shift(labels) if shift_labels is None else shift_labels
        generated = input_ids == self.config.image_generation_token_id
        positions = generated[:, 1:] & (targets[:, :-1] != IGNORE_INDEX)
        return torch.stack([self._is_text(targets).sum(), positions.sum()])

    def _is_text(self, targets: torch.Tensor) -> torch.Tensor:
        """Returns which targets (B, S) the LM head predicts: all but placeholders."""
        mask = targets != IGNORE_INDEX
        for token_id in (self.config.image_token_id, self.config.image_generation_token_id):
            mask = mask & (targets != token_id)
        return mask

    def _compute_losses(
        self,
        outputs: ModelOutput,
        labels: torch.Tensor,
        num_items: torch.Tensor | int | None,
        num_positions: torch.Tensor | int | None,
        shift_labels: torch.Tensor | None = None,
        **kwargs,
    ) -> dict:
        """Computes the loss fields of [`EvoTokCausalLMOutputWithPast`] from an [`EvoTokModelOutputWithPast`]."""
        targets = _shift(labels) if shift_labels is None else shift_labels
        targets = targets.to(outputs.last_hidden_state.device)
        num_items, num_positions = (_to_scalar(count, targets.device) for count in (num_items, num_positions))
        text_loss, has_text = self._text_loss(outputs.last_hidden_state, targets, num_items, **kwargs)
        total = self.config.text_loss_weight * text_loss
        image = self._image_loss(outputs, targets, num_items if num_positions is None else num_positions)
        if image is not None:
            total = total + self.config.image_loss_weight * image.loss
            if has_text and num_items is not None and num_positions is None:
                logger.warning_once(
                    "num_items_in_batch is the number of text tokens and image positions together, so that both losses "
                    "are divided by it, instead of each by its own number. evotok.training's MultimodalTrainer counts "
                    "them apart, as does num_image_positions_in_batch."
                )
        elif self.model.must_run(self.depth_decoder):
            row, config = outputs.last_hidden_state[0, :1], self.config.depth_decoder_config
            codes = row.new_zeros(1, config.num_codebooks, dtype=torch.long)
            embeddings = row.new_zeros(*codes.shape, config.codebook_dim)
            total = total + 0.0 * self.depth_decoder.loss(row, embeddings, codes).loss
        return {
            "loss": total,
            "text_loss": text_loss if has_text else None,
            "image_loss": None if image is None else image.loss,
            "image_level_losses": None if image is None else image.level_losses,
        }

    def _text_loss(
        self, hidden_states: torch.Tensor, targets: torch.Tensor, num_items: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, bool]:
        """Computes the cross-entropy of text targets, and whether there are any. The LM head runs on these only."""
        mask = self._is_text(targets)
        logits = self.lm_head(hidden_states[mask])  # (targets, V)
        if not logits.shape[0]:
            return logits.float().sum(), False  # zero, not the NaN of an empty mean
        targets = targets[mask]
        kwargs |= {"vocab_size": self.config.text_config.vocab_size, "num_items_in_batch": num_items}
        return self.loss_function(logits=logits, labels=targets, shift_labels=targets, **kwargs), True

    def _image_loss(
        self, outputs: ModelOutput, targets: torch.Tensor, num_positions: torch.Tensor | None
    ) -> EvoTokDepthLoss | None:
        """Computes Eq. 11 over the target positions of generated images, each predicted from the position before it."""
        if outputs.generation_codes is None:
            return None
        generated = outputs.generation_mask.bool()
        before = generated[:, 1:] & (targets[:, :-1] != IGNORE_INDEX)  # (B, S - 1), the positions predicted from
        hidden_states = outputs.last_hidden_state[:, :-1][before]  # (M, H)
        if not hidden_states.shape[0]:
            return None
        is_target = F.pad(before, (1, 0))[generated]  # nothing precedes the first position of a row
        codes = outputs.generation_codes.flatten(0, 1)[is_target]  # (M, L)
        with torch.no_grad():
            embeddings = self.model.vq_model.quantizer.embed(codes)  # (M, L, C)
        return self.depth_decoder.loss(hidden_states, embeddings, codes, num_positions)


def _shift(labels: torch.Tensor) -> torch.Tensor:
    """Shifts labels (B, S) to the left: the target of each position is the label of the next."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def _to_scalar(count: torch.Tensor | int | None, device: torch.device) -> torch.Tensor | None:
    """Moves a count to a device; `DataParallel` passes a tensor of one value to each replica."""
    return None if count is None else torch.as_tensor(count, device=device).flatten()[0]


__all__ = ["IGNORE_INDEX", "EvoTokDepthLoss", "EvoTokLossMixin", "linear_cross_entropy"]
