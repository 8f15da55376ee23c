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
"""EvoTok: one language model that reads images and writes them (paper, Sec. 3.2 and 3.3).

    image given   -> codes (16 levels) -> semantic decoder -> semantic_projector -> language model -> lm_head -> text
    image written -> codes (4 levels)  -> their sum        -> pixel_projector    -> language model -> depth decoder

A position of an image that is given carries `image_token_id`, one of an image that is written carries
`image_generation_token_id`. The frozen tokenizer runs in fp32, without gradients, whatever the autocast.

Shapes: B rows, S tokens, H width, V vocabulary; I images in reading order over the batch, N positions, D and L levels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModel, Cache, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.import_utils import torch_compilable_check

from .configuration_evotok import EvoTokConfig
from .generation_evotok import EvoTokGenerationMixin, image_generation_config
from .modeling_evotok_depth import EvoTokDepthDecoder, EvoTokDepthLoss
from .modeling_evotok_vq import EvoTokVQModel


IGNORE_INDEX = -100


@dataclass
class EvoTokModelOutputWithPast(BaseModelOutputWithPast):
    """What [`EvoTokModel`] returns beside the usual fields.

    Args:
        image_hidden_states: (I, N, H), the given images as the language model sees them.
        generation_codes: (I, N, L) int64, the codes of the images written.
        generation_mask: (B, S) bool, where their positions are.
    """

    image_hidden_states: torch.FloatTensor | None = None
    generation_codes: torch.LongTensor | None = None
    generation_mask: torch.BoolTensor | None = None


@dataclass
class EvoTokCausalLMOutputWithPast(ModelOutput):
    """What [`EvoTokForConditionalGeneration`] returns.

    Args:
        loss: scalar, `text_loss_weight` x `text_loss` + `image_loss_weight` x `image_loss`.
        logits: (B, S, V), or of the positions kept. None in training with labels: the loss needs them only where a
            label is, and computes them there.
        image_hidden_states: (I, N, H), the given images as the language model sees them.
        text_loss, image_loss: scalars; None when the labels hold nothing of that kind.
        image_level_losses: (L,), the image loss of each level, detached.
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
    """Embedded inputs: `inputs_embeds` (B, S, H); the other fields as in [`EvoTokModelOutputWithPast`]."""

    inputs_embeds: torch.Tensor
    image_hidden_states: torch.Tensor | None
    generation_codes: torch.LongTensor | None
    generation_mask: torch.BoolTensor | None


class EvoTokMultiModalProjector(nn.Module):
    """Linear, activation, Linear: image features (..., in_features) -> (..., H)."""

    def __init__(self, config: EvoTokConfig, in_features: int):
        super().__init__()
        hidden_size = config.text_config.hidden_size
        self.linear_1 = nn.Linear(in_features, hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(features.to(self.linear_1.weight.dtype))))


class EvoTokPreTrainedModel(PreTrainedModel):
    """What EvoTok's multimodal models share with every Transformers model."""

    config: EvoTokConfig
    config_class = EvoTokConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    output_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Half-precision features change codes (4% of them in bf16): the whole tokenizer is loaded in fp32, or not at all.
    _keep_in_fp32_modules_strict = ["vq_model"]


class EvoTokModel(EvoTokPreTrainedModel):
    """Image tokenizer, language model and the two projectors, without heads."""

    def __init__(self, config: EvoTokConfig):
        super().__init__(config)
        self.vq_model = EvoTokVQModel(config.vq_config).float().eval().requires_grad_(False)
        self.language_model = AutoModel.from_config(config.text_config)
        self.semantic_projector = EvoTokMultiModalProjector(config, config.vq_config.semantic_feature_dim)
        self.pixel_projector = EvoTokMultiModalProjector(config, config.vq_config.codebook_dim)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def train(self, mode: bool = True):
        """As in PyTorch, but the tokenizer, which was trained before, on its own, stays in evaluation mode and frozen.

        In training mode its codebooks would move, and DDP would wait for its gradients. Freezing it at construction
        is not enough: `from_pretrained` makes new parameters, and then calls `eval()`.
        """
        super().train(mode)
        self.vq_model.eval().requires_grad_(False)
        return self

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        """Images that are given, as the language model sees them.

        Args:
            pixel_values: (I, 3, S, S) in [-1, 1], of the tokenizer's image size.

        Returns:
            `last_hidden_state` (I, N, F), the decoded semantic features, and `pooler_output` (I, N, H), projected; with
            `output_hidden_states` or `output_attentions`, those of the tokenizer's encoder.
        """
        features = self._features_of_codes(self.vq_model.encode(pixel_values))
        asked = {name: True for name in ("output_hidden_states", "output_attentions") if kwargs.get(name)}
        if asked:
            encoder = self.vq_model.vision_tower(pixel_values, **asked)
            features.hidden_states, features.attentions = encoder.hidden_states, encoder.attentions
        return features

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
        if codes.ndim != 3 or tuple(codes.shape[1:]) != wanted or codes.is_floating_point():
            raise ValueError(
                f"generation_codes of shape {tuple(codes.shape)} and dtype {codes.dtype} must be integers of shape "
                f"(images, {wanted[0]}, {wanted[1]}): the first {wanted[1]} levels of vq_model.encode(pixel_values)."
            )
        torch_compilable_check(
            ((codes >= 0) & (codes < vq_config.codebook_size)).all(),
            f"generation_codes must lie between 0 and {vq_config.codebook_size - 1}: were they written by another "
            "tokenizer?",
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
                inputs_embeds = inputs_embeds.masked_scatter(mask.unsqueeze(-1), features.to(inputs_embeds.dtype))
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

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_codes: torch.LongTensor | None = None,
        generation_pixel_values: torch.FloatTensor | None = None,
        generation_codes: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs,
    ) -> tuple | EvoTokModelOutputWithPast:
        """Hidden states of the language model.

        Args:
            input_ids: (B, S), with N placeholders for each image.
            pixel_values: (I, 3, h, w) in [-1, 1], images given.
            image_codes: (I, N, d), the same as codes, any prefix of the levels; instead of `pixel_values`.
            generation_pixel_values: (I, 3, h, w) in [-1, 1], images written.
            generation_codes: (I, N, L), the same as codes; instead of `generation_pixel_values`.
            mm_encoder_outputs: `{"image": get_image_features(...)}`, instead of `pixel_values`.

        Raises:
            ValueError: placeholders and images do not match; images or codes of the wrong shape or range; an image
                given in two ways.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        inputs = self.embed_inputs(
            input_ids,
            inputs_embeds,
            pixel_values,
            image_codes,
            generation_pixel_values,
            generation_codes,
            mm_encoder_outputs,
        )
        outputs = self.language_model(
            inputs_embeds=inputs.inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return EvoTokModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=inputs.image_hidden_states,
            generation_codes=inputs.generation_codes,
            generation_mask=inputs.generation_mask,
        )


class EvoTokForConditionalGeneration(EvoTokPreTrainedModel, EvoTokGenerationMixin):
    """EvoTok with its two heads: `lm_head` writes text, `depth_decoder` writes the codes of images."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    # Trainer would divide by a count that mixes text labels with image positions; both losses are means already.
    accepts_loss_kwargs = False

    def __init__(self, config: EvoTokConfig):
        super().__init__(config)
        self.model = EvoTokModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.depth_decoder = EvoTokDepthDecoder(config.depth_decoder_config)
        embeddings = self.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        # Fresh, because one that Transformers derives from the config drops the image fields when loaded.
        self.generation_config = image_generation_config(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module):
        self.lm_head = new_embeddings

    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> tuple | BaseModelOutputWithPooling:
        """As [`EvoTokModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values=pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        image_codes: torch.LongTensor | None = None,
        generation_pixel_values: torch.FloatTensor | None = None,
        generation_codes: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> tuple | EvoTokCausalLMOutputWithPast:
        """Logits, and with labels the losses of both heads.

        Args:
            labels: (B, S), -100 where nothing is learned. At positions of images written, anything but -100 asks for
                the image loss (Eq. 11); other placeholders are never a target of the text loss.

        The other arguments, and the errors raised, are those of [`EvoTokModel.forward`].
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_codes=image_codes,
            generation_pixel_values=generation_pixel_values,
            generation_codes=generation_codes,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        losses = {} if labels is None else self._losses(outputs, labels, **kwargs)
        logits = None
        if labels is None or not self.training:
            logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))
        return EvoTokCausalLMOutputWithPast(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            **losses,
        )

    def _losses(self, outputs: EvoTokModelOutputWithPast, labels: torch.LongTensor, **kwargs) -> dict:
        labels = labels.to(outputs.last_hidden_state.device)
        text_loss, has_text = self._text_loss(outputs.last_hidden_state, labels, **kwargs)
        total = self.config.text_loss_weight * text_loss
        image = self._image_loss(outputs, labels)
        if image is not None:
            total = total + self.config.image_loss_weight * image.loss
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

    def _text_loss(self, hidden_states: torch.Tensor, labels: torch.LongTensor, **kwargs) -> tuple[torch.Tensor, bool]:
        """Cross-entropy of text labels, and whether there are any. The LM head runs only where a label is."""
        targets = labels[:, 1:]
        mask = targets != IGNORE_INDEX
        for token_id in (self.config.image_token_id, self.config.image_generation_token_id):
            mask = mask & (targets != token_id)
        logits = self.lm_head(hidden_states[:, :-1][mask])  # (labels, V)
        if not logits.shape[0]:
            return logits.float().sum(), False  # zero, and not the NaN of an empty mean
        targets = targets[mask]
        vocab_size = self.config.text_config.vocab_size
        loss = self.loss_function(logits=logits, labels=targets, shift_labels=targets, vocab_size=vocab_size, **kwargs)
        return loss, True

    def _image_loss(self, outputs: EvoTokModelOutputWithPast, labels: torch.LongTensor) -> EvoTokDepthLoss | None:
        """Eq. 11 over the labelled positions of images written; each is predicted from the position before it."""
        if outputs.generation_codes is None:
            return None
        mask = outputs.generation_mask & (labels != IGNORE_INDEX)
        mask[:, 0] = False  # nothing comes before it
        hidden_states = outputs.last_hidden_state[:, :-1][mask[:, 1:]]  # (M, H)
        if not hidden_states.shape[0]:
            return None
        codes = outputs.generation_codes.flatten(0, 1)[mask[outputs.generation_mask]]  # (M, L)
        with torch.no_grad():
            embeddings = self.model.vq_model.quantizer.embed(codes)  # (M, L, C)
        return self.depth_decoder.loss(hidden_states, embeddings, codes)


__all__ = ["EvoTokForConditionalGeneration", "EvoTokModel", "EvoTokMultiModalProjector", "EvoTokPreTrainedModel"]
