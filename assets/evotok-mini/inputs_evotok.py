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
"""How tokens and images enter the language model: encoding, placeholders, projection (paper, Sec. 3.2).

Shapes: B rows, S tokens, H width; I images in reading order over the batch, N positions, F width of the semantic
features, C codebook width, L levels that are written.
"""

import torch
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.import_utils import torch_compilable_check

from .modeling_outputs_evotok import EvoTokInputs


class EvoTokInputsMixin:
    """For a model with `vq_model`, `language_model`, `semantic_projector` and `pixel_projector`: [`EvoTokModel`]."""

    def _features_of_codes(self, codes: torch.LongTensor) -> BaseModelOutputWithPooling:
        with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
            semantics = self.vq_model.decode_semantics(codes)  # (I, N, F)
        return BaseModelOutputWithPooling(last_hidden_state=semantics, pooler_output=self.semantic_projector(semantics))

    def get_generation_features(self, codes: torch.LongTensor) -> torch.Tensor:
        """Input embeddings of positions that are written: codes (I, N, L) -> (I, N, H), from f_pix of Eq. 4."""
        with torch.no_grad():
            pixel_features = self.vq_model.quantizer.decode_codes(codes)  # (I, N, C)
        return self.pixel_projector(pixel_features)

    def check_generation_codes(self, codes: torch.LongTensor):
        """Raises ValueError unless `codes` are (I, N, L) integers that the tokenizer knows."""
        vq_config = self.config.vq_config
        wanted = (vq_config.num_positions, vq_config.num_pixel_codebooks)
        if codes.ndim != 3 or tuple(codes.shape[1:]) != wanted or codes.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"generation_codes of shape {tuple(codes.shape)} and dtype {codes.dtype} must be integers of shape "
                f"(images, {wanted[0]}, {wanted[1]}), int64: the first {wanted[1]} levels that vq_model.encode gives."
            )
        torch_compilable_check(
            ((codes >= 0) & (codes < vq_config.codebook_size)).all(),
            f"generation_codes must lie between 0 and {vq_config.codebook_size - 1}: give codes that this tokenizer "
            "wrote.",
        )

    def get_placeholder_mask(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor,
        image_features: torch.Tensor | None = None,
        generation_features: torch.Tensor | None = None,
    ) -> tuple[torch.BoolTensor, torch.BoolTensor]:
        """Where the positions of images given and of images written are, (B, S) each.

        Raises:
            ValueError: there are more or fewer placeholders than positions of images. In evaluation, placeholders of
                which no image is given are tokens like others, as in LLaVA; `generate` refuses them.
        """
        masks = []
        for token_id, features in (
            (self.config.image_token_id, image_features),
            (self.config.image_generation_token_id, generation_features),
        ):
            if input_ids is None:
                token = torch.full((), token_id, dtype=torch.long, device=inputs_embeds.device)
                masks.append((inputs_embeds == self.get_input_embeddings()(token)).all(-1))
            else:
                masks.append(input_ids == token_id)
            if features is not None or self.training:
                self.check_placeholders(masks[-1], 0 if features is None else features.shape[0])
        return tuple(masks)

    def check_placeholders(self, mask: torch.BoolTensor, images: int):
        """Raises ValueError unless `mask` marks N positions for each of the images of one kind."""
        positions = self.config.vq_config.num_positions
        torch_compilable_check(
            mask.sum() == images * positions,
            lambda: (
                f"The inputs hold {int(mask.sum())} image placeholders but the {images} images given for them have "
                f"{images * positions} positions: write {positions} placeholders for each image and pass every image "
                "once, in reading order."
            ),
        )

    def embed_inputs(
        self,
        input_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_codes: torch.LongTensor | None = None,
        generation_pixel_values: torch.FloatTensor | None = None,
        generation_codes: torch.LongTensor | None = None,
        mm_encoder_outputs: dict | None = None,
    ) -> EvoTokInputs:
        """Embed tokens and put images of both kinds in their places. Arguments as in `forward`."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        unused = []
        image_features = self._features_given(pixel_values, image_codes, mm_encoder_outputs)
        if image_features is None and self.must_touch(self.semantic_projector):
            unused.append(self._features_of_codes(self._dummy_codes()).pooler_output)
        generation_features, codes = None, self._codes_written(generation_pixel_values, generation_codes)
        if codes is not None:
            generation_features = self.get_generation_features(codes)
        elif self.must_touch(self.pixel_projector):
            unused.append(self.get_generation_features(self._dummy_codes()))

        masks = self.get_placeholder_mask(input_ids, inputs_embeds, image_features, generation_features)
        for mask, features in zip(masks, (image_features, generation_features), strict=True):
            if features is not None:
                inputs_embeds = inputs_embeds.masked_scatter(mask.unsqueeze(-1), features.to(inputs_embeds))
        for features in unused:
            inputs_embeds = inputs_embeds + 0.0 * features.sum().to(inputs_embeds.dtype)
        return EvoTokInputs(inputs_embeds, image_features, codes, masks[1])

    def _features_given(self, pixel_values, image_codes, mm_encoder_outputs) -> torch.Tensor | None:
        encoded = (mm_encoder_outputs or {}).get("image")
        if sum(images is not None for images in (pixel_values, image_codes, encoded)) > 1:
            raise ValueError("Give images as pixel_values, image_codes or mm_encoder_outputs: one of the three.")
        if pixel_values is not None:
            image_codes = self.vq_model.encode(pixel_values)
        if image_codes is not None:
            encoded = self._features_of_codes(image_codes)
        return None if encoded is None else encoded.pooler_output

    def _codes_written(self, generation_pixel_values, generation_codes) -> torch.LongTensor | None:
        if generation_pixel_values is not None:
            if generation_codes is not None:
                raise ValueError("Give images written as generation_pixel_values or as generation_codes, not both.")
            return self.vq_model.encode(generation_pixel_values)[..., : self.config.vq_config.num_pixel_codebooks]
        if generation_codes is not None:
            self.check_generation_codes(generation_codes)
        return generation_codes

    def must_touch(self, module: nn.Module) -> bool:
        """Whether a training batch that has no use for `module` must run it all the same, times zero.

        Processes hold different batches, but ZeRO-3 gathers parameters, and DDP reduces gradients, together: each must
        run the same modules in the same order.
        """
        if not (self.training and torch.is_grad_enabled()):
            return False
        return is_deepspeed_zero3_enabled() or any(p.requires_grad for p in module.parameters())

    def _dummy_codes(self) -> torch.LongTensor:
        """Codes (1, N, 1) of no image; under ZeRO-3 the tokenizer's parameters are gathered too, so it encodes one."""
        vq_config = self.config.vq_config
        if is_deepspeed_zero3_enabled():
            blank = torch.zeros(1, 3, vq_config.image_size, vq_config.image_size, device=self.device)
            return self.vq_model.encode(blank)[..., :1]
        return torch.zeros(1, vq_config.num_positions, 1, dtype=torch.long, device=self.device)


__all__ = ["EvoTokInputsMixin"]
