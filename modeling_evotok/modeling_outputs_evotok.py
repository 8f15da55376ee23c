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
"""What EvoTok's models return.

Shapes: B images or rows, S tokens, H width, V vocabulary; I images in reading order over the batch, N positions of an
image, D levels of the trajectory, L levels that are written, F width of the semantic features.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput, auto_docstring


@auto_docstring(custom_intro="What [`EvoTokVQModel`] returns: one pass through the image tokenizer.")
@dataclass
class EvoTokVQOutput(ModelOutput):
    r"""
    vq_loss (`torch.FloatTensor` of shape `()`):
        Vector quantisation loss, Eq. 7.
    codes (`torch.LongTensor` of shape `(B, N, D)`):
        Codes, row-major positions, levels in depth order.
    reconstruction (`torch.FloatTensor` of shape `(B, 3, height, width)`):
        Image decoded of the first `num_pixel_codebooks` levels, about [-1, 1].
    semantic_features (`torch.FloatTensor` of shape `(B, N, F)`):
        Semantics decoded of all levels, to be compared with the teacher's.
    hidden_states (`tuple[torch.FloatTensor]`, *optional*):
        Those of the encoder, with `output_hidden_states=True`.
    attentions (`tuple[torch.FloatTensor]`, *optional*):
        Those of the encoder, with `output_attentions=True` and eager attention.
    """

    vq_loss: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    semantic_features: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="What [`EvoTokDepthDecoder`] returns; E is its width.")
@dataclass
class EvoTokDepthDecoderOutput(ModelOutput):
    r"""
    logits (`torch.FloatTensor` of shape `(M, L, K)`):
        Scores of the codes of every level.
    hidden_states (`tuple[torch.FloatTensor]`, *optional*):
        `(M, L, E)` before the first layer and after each, with `output_hidden_states=True`.
    attentions (`tuple[torch.FloatTensor]`, *optional*):
        `(M, heads, L, L)` of each layer, with `output_attentions=True` and eager attention.
    """

    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="What [`EvoTokModel`] returns beside the usual fields.")
@dataclass
class EvoTokModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    image_hidden_states (`torch.FloatTensor` of shape `(I, N, H)`, *optional*):
        The given images as the language model sees them.
    generation_codes (`torch.LongTensor` of shape `(I, N, L)`, *optional*):
        The codes of the images written.
    generation_mask (`torch.LongTensor` of shape `(B, S)`, *optional*):
        1 where the positions of the images written are.
    """

    image_hidden_states: torch.FloatTensor | None = None
    generation_codes: torch.LongTensor | None = None
    generation_mask: torch.LongTensor | None = None


@auto_docstring(custom_intro="What [`EvoTokForConditionalGeneration`] returns.")
@dataclass
class EvoTokCausalLMOutputWithPast(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` is provided):
        `text_loss_weight` x `text_loss` + `image_loss_weight` x `image_loss`.
    logits (`torch.FloatTensor` of shape `(B, S, V)`, *optional*):
        Scores of text tokens at all positions, or at those kept. None in training with labels: the loss needs them
        only where a label is, and computes them there.
    image_hidden_states (`torch.FloatTensor` of shape `(I, N, H)`, *optional*):
        The given images as the language model sees them.
    text_loss (`torch.FloatTensor` of shape `()`, *optional*):
        Cross-entropy of text; None when the labels hold none.
    image_loss (`torch.FloatTensor` of shape `()`, *optional*):
        Cross-entropy of codes, Eq. 11; None when the labels hold no position of an image written.
    image_level_losses (`torch.FloatTensor` of shape `(L,)`, *optional*):
        The image loss of each level, detached. Given `num_items_in_batch`, all losses are this batch's share of those
        of the global batch: shares add up.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None
    text_loss: torch.FloatTensor | None = None
    image_loss: torch.FloatTensor | None = None
    image_level_losses: torch.FloatTensor | None = None


class EvoTokInputs(NamedTuple):
    """Embedded inputs: `inputs_embeds` (B, S, H), `generation_mask` (B, S) bool, and the rest as in
    [`EvoTokModelOutputWithPast`]."""

    inputs_embeds: torch.Tensor
    image_hidden_states: torch.Tensor | None
    generation_codes: torch.LongTensor | None
    generation_mask: torch.BoolTensor


__all__ = [
    "EvoTokCausalLMOutputWithPast",
    "EvoTokDepthDecoderOutput",
    "EvoTokInputs",
    "EvoTokModelOutputWithPast",
    "EvoTokVQOutput",
]
