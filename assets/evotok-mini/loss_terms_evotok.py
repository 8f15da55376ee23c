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
"""The training loss: cross-entropy of text and of codes, each the mean over its own targets (paper, Sec. 3.3).

A mean over the rows of one forward pass is not the mean over a step: rows are split over processes and accumulated
batches, each with another number of targets. Whoever knows the numbers of the whole step gives them, and each pass
returns its share; shares add up to the same loss for any split.

Shapes: B rows, S tokens, H width, V vocabulary; M positions, L levels, C codebook width.
"""

import torch
import torch.nn.functional as F
from transformers.utils import logging

from .modeling_evotok_depth import EvoTokDepthLoss
from .modeling_outputs_evotok import EvoTokModelOutputWithPast


logger = logging.get_logger(__name__)

IGNORE_INDEX = -100


class EvoTokLossMixin:
    """For a model with `model` (an [`EvoTokModel`]), `lm_head` and `depth_decoder`: both terms of its loss."""

    def count_targets(
        self, input_ids: torch.LongTensor, labels: torch.LongTensor, shift_labels: torch.LongTensor | None = None
    ) -> torch.LongTensor:
        """Number of text targets and of positions of images written that labels (B, S) ask for: (2,) int64.

        Summed over processes and accumulated batches they are `num_items_in_batch` and `num_image_positions_in_batch`.
        """
        targets = _shift(labels) if shift_labels is None else shift_labels
        written = (input_ids == self.config.image_generation_token_id)[:, 1:] & (targets[:, :-1] != IGNORE_INDEX)
        return torch.stack([self._is_text(targets).sum(), written.sum()])

    def _is_text(self, targets: torch.LongTensor) -> torch.BoolTensor:
        """Which targets (B, S) the LM head is to predict: no placeholder is one."""
        mask = targets != IGNORE_INDEX
        for token_id in (self.config.image_token_id, self.config.image_generation_token_id):
            mask = mask & (targets != token_id)
        return mask

    def _losses(
        self,
        outputs: EvoTokModelOutputWithPast,
        labels: torch.LongTensor,
        num_items: torch.Tensor | int | None,
        num_positions: torch.Tensor | int | None,
        shift_labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> dict:
        targets = _shift(labels) if shift_labels is None else shift_labels
        targets = targets.to(outputs.last_hidden_state.device)
        num_items, num_positions = (_scalar(count, targets.device) for count in (num_items, num_positions))
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
        elif self.model.must_touch(self.depth_decoder):
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
        self, hidden_states: torch.Tensor, targets: torch.LongTensor, num_items: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, bool]:
        """Cross-entropy of text targets, and whether there are any. The LM head runs only where a target is."""
        mask = self._is_text(targets)
        logits = self.lm_head(hidden_states[mask])  # (targets, V)
        if not logits.shape[0]:
            return logits.float().sum(), False  # zero, and not the NaN of an empty mean
        targets = targets[mask]
        kwargs |= {"vocab_size": self.config.text_config.vocab_size, "num_items_in_batch": num_items}
        return self.loss_function(logits=logits, labels=targets, shift_labels=targets, **kwargs), True

    def _image_loss(
        self, outputs: EvoTokModelOutputWithPast, targets: torch.LongTensor, num_positions: torch.Tensor | None
    ) -> EvoTokDepthLoss | None:
        """Eq. 11 over the labelled positions of images written; each is predicted from the position before it."""
        if outputs.generation_codes is None:
            return None
        written = outputs.generation_mask.bool()
        before = written[:, 1:] & (targets[:, :-1] != IGNORE_INDEX)  # (B, S - 1), the positions predicted from
        hidden_states = outputs.last_hidden_state[:, :-1][before]  # (M, H)
        if not hidden_states.shape[0]:
            return None
        labelled = F.pad(before, (1, 0))[written]  # nothing comes before the first position
        codes = outputs.generation_codes.flatten(0, 1)[labelled]  # (M, L)
        with torch.no_grad():
            embeddings = self.model.vq_model.quantizer.embed(codes)  # (M, L, C)
        return self.depth_decoder.loss(hidden_states, embeddings, codes, num_positions)


def _shift(labels: torch.LongTensor) -> torch.LongTensor:
    """What each position (B, S) is to predict: the label of the one after it."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def _scalar(count: torch.Tensor | int | None, device: torch.device) -> torch.Tensor | None:
    """A count on a device; `DataParallel` hands a tensor of one value to each replica."""
    return None if count is None else torch.as_tensor(count, device=device).flatten()[0]


__all__ = ["EvoTokLossMixin"]
