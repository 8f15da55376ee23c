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
"""EvoTok: one language model that understands and generates images (paper, Sec. 3.2 and 3.3).

    input image     -> codes (16 levels) -> semantic decoder -> semantic_projector -> language model -> lm_head -> text
    generated image -> codes (4 levels)  -> their sum        -> pixel_projector    -> language model -> depth decoder

A position of an input image has the token `image_token_id`, one of a generated image `image_generation_token_id`. The
frozen tokenizer runs in fp32 and without gradients, under autocast, too.

Shapes: B rows, S tokens, H width, V vocabulary; I images in reading order over the batch, N positions, D levels, L
levels of generated images, F width of the semantic features, C codebook width.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import nn
from transformers import AutoModel, Cache, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import ModelOutput, auto_docstring
from transformers.utils.generic import can_return_tuple
from transformers.utils.import_utils import torch_compilable_check

from .configuration_evotok import EvoTokConfig
from .depth_linear_evotok import input_dtype
from .generation_evotok import EvoTokGenerationMixin
from .int8_evotok import EvoTokInt8Config
from .losses_evotok import EvoTokLossMixin
from .modeling_evotok_depth import EvoTokDepthDecoder
from .modeling_evotok_vq import EvoTokVQModel
from .sampling_evotok import image_generation_config


# Arguments of both models; the one without heads has no labels.
_FORWARD_ARGS = r"""
input_ids (`torch.LongTensor` of shape `(B, S)`, *optional*):
    Tokens, with N placeholders for each image. Exactly one of `input_ids` and `inputs_embeds` is given.
pixel_values (`torch.FloatTensor` of shape `(I, 3, h, w)`, *optional*):
    Input images in [-1, 1], of the tokenizer's image size.
labels (`torch.LongTensor` of shape `(B, S)`, *optional*):
    Targets; -100 for none. At positions of generated images any other value selects the image loss (Eq. 11); other
    placeholders are never targets of the text loss. With `shift_labels`, which are labels shifted by one position
    already, as parallel training over the sequence passes them, `labels` only switch the loss on.
num_items_in_batch (`torch.Tensor` or `int`, *optional*):
    Divisor of sums of losses instead of the number of their own targets: text targets of the global batch, over all
    processes and accumulated batches, so that the loss is the same however rows are split. `Trainer` passes it.
num_image_positions_in_batch (`torch.Tensor` or `int`, *optional*):
    The same for the image loss: positions of generated images, see `count_targets`. Without it `num_items_in_batch`
    counts both kinds of targets, as `Trainer` does, and divides both losses.
image_codes (`torch.LongTensor` of shape `(I, N, d)`, *optional*):
    Input images as codes at any depth d; instead of `pixel_values`.
generation_pixel_values (`torch.FloatTensor` of shape `(I, 3, h, w)`, *optional*):
    Generated images in [-1, 1].
generation_codes (`torch.LongTensor` of shape `(I, N, L)`, *optional*):
    Generated images as codes; instead of `generation_pixel_values`.
mm_encoder_outputs (`dict[str, BaseModelOutputWithPooling]`, *optional*):
    `{"image": get_image_features(...)}`, instead of `pixel_values`.
"""
_IMAGE_LOSS_ARG = r"""with_image_loss (`bool`, *optional*, defaults to `False`):
    Whether the caller computes the image loss from the hidden states, as the model with heads does.
"""


@auto_docstring(custom_intro="Output of [`EvoTokModel`].")
@dataclass
class EvoTokModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    image_hidden_states (`torch.FloatTensor` of shape `(I, N, H)`, *optional*):
        Projected features of the input images.
    generation_codes (`torch.LongTensor` of shape `(I, N, L)`, *optional*):
        Codes of the generated images.
    generation_mask (`torch.LongTensor` of shape `(B, S)`, *optional*):
        1 at the positions of the generated images.
    """

    image_hidden_states: torch.Tensor | None = None
    generation_codes: torch.Tensor | None = None
    generation_mask: torch.Tensor | None = None


@auto_docstring(custom_intro="Output of [`EvoTokForConditionalGeneration`].")
@dataclass
class EvoTokCausalLMOutputWithPast(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` is provided):
        `text_loss_weight` x `text_loss` + `image_loss_weight` x `image_loss`.
    logits (`torch.FloatTensor` of shape `(B, S, V)`, *optional*):
        Logits of text tokens at all positions, or at those of `logits_to_keep`. None in training with labels: the loss
        computes logits of the targets only.
    image_hidden_states (`torch.FloatTensor` of shape `(I, N, H)`, *optional*):
        Projected features of the input images.
    text_loss (`torch.FloatTensor` of shape `()`, *optional*):
        Cross-entropy of text; None without text targets.
    image_loss (`torch.FloatTensor` of shape `()`, *optional*):
        Cross-entropy of codes, Eq. 11; None without a target position of a generated image.
    image_level_losses (`torch.FloatTensor` of shape `(L,)`, *optional*):
        The image loss of each level, detached. With `num_items_in_batch` all losses are this batch's share of those of
        the global batch: shares add up.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    image_loss: torch.Tensor | None = None
    image_level_losses: torch.Tensor | None = None


class EvoTokInputs(NamedTuple):
    """Embedded inputs: `inputs_embeds` (B, S, H), `generation_mask` (B, S) bool, and the rest as in
    [`EvoTokModelOutputWithPast`]."""

    inputs_embeds: torch.Tensor
    image_hidden_states: torch.Tensor | None
    generation_codes: torch.Tensor | None
    generation_mask: torch.Tensor


class EvoTokMultiModalProjector(nn.Module):
    """Projector: Linear, activation, Linear, image features (..., in_features) -> (..., H)."""

    def __init__(self, config: EvoTokConfig, in_features: int):
        super().__init__()
        hidden_size = config.text_config.hidden_size
        self.linear_1 = nn.Linear(in_features, hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(features.to(input_dtype(self.linear_1)))))


@auto_docstring(custom_intro="Base class of the multimodal models: loading, saving, initialization.")
class EvoTokPreTrainedModel(PreTrainedModel):
    config: EvoTokConfig
    config_class = EvoTokConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")  # pyright: ignore[reportAssignmentType]  # a tuple, as in Transformers
    output_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Half-precision features change codes (4% of them in bf16): the whole tokenizer is loaded in fp32, and
    # `EvoTokVQModel._apply` keeps it so when the model is cast later.
    _keep_in_fp32_modules_strict = ["vq_model"]
    _no_split_modules = ["EvoTokVQModel"]  # `encode` and `decode_*` call submodules without the hooks of the whole

    if TYPE_CHECKING:  # `PreTrainedModel.to` has lost its type to a decorator

        def to(self, *args, **kwargs) -> Self: ...

    @classmethod
    def is_custom_code(cls) -> bool:
        """Returns False, for the reason given in [`EvoTokVQPreTrainedModel.is_custom_code`]."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """Returns the dtype of the tokenizer, to which generic code casts images."""
        return self.base_model.vq_model.dtype  # pyright: ignore[reportReturnType]  # `base_model` is any module


@auto_docstring(custom_intro="Image tokenizer, language model and the two projectors, without heads.")
class EvoTokModel(EvoTokPreTrainedModel):
    _auto_class = "AutoModel"  # a saved checkpoint carries this code
    # Quantization leaves these out, whatever its config contains; names are matched from the start. They are the
    # tokenizer's submodules because no name may be in the strict list as well.
    _keep_in_fp32_modules = [
        "vq_model.vision_tower",
        "vq_model.to_latent",
        "vq_model.quantizer",
        "vq_model.pixel_decoder",
        "vq_model.semantic_decoder",
    ]
    # Engines that build this model from a whole checkpoint, to understand images, refuse unexpected weights.
    _keys_to_ignore_on_load_unexpected = [r"^depth_decoder\."]

    def __init__(self, config: EvoTokConfig):
        super().__init__(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.vq_model = EvoTokVQModel(config.vq_config).float().eval().requires_grad_(False)
        self.vq_model.stays_in_fp32 = True  # after loading, too
        self.semantic_projector = EvoTokMultiModalProjector(config, config.vq_config.semantic_feature_dim)
        self.pixel_projector = EvoTokMultiModalProjector(config, config.vq_config.codebook_dim)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def train(self, mode: bool = True):
        """Sets the mode, as in PyTorch, but keeps the tokenizer in evaluation mode and frozen.

        In training mode its codebooks would be updated, and DDP would wait for its gradients. Freezing it in the
        constructor is not enough: `from_pretrained` makes new parameters and then calls `eval()`.
        """
        super().train(mode)
        self.vq_model.eval().requires_grad_(False)
        return self

    @can_return_tuple
    @auto_docstring(custom_intro="Encodes and projects input images.")
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(I, 3, h, w)`):
            Images in [-1, 1], of the tokenizer's image size.

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` `(I, N, F)`, the decoded semantics, and `pooler_output`
            `(I, N, H)`, projected; with `output_hidden_states` or `output_attentions`, those of the tokenizer's
            encoder.

        Raises:
            ValueError: the images are not of the configured size.
        """
        features = self._project_semantics(self.vq_model.encode(pixel_values))
        encoder = self.vq_model.vision_tower
        names = ("output_hidden_states", "output_attentions")
        requested = {name: kwargs.get(name, getattr(encoder.config, name, False)) for name in names}
        if any(requested.values()):
            states = encoder(pixel_values, **requested)
            features.hidden_states, features.attentions = states.hidden_states, states.attentions
        return features

    def _project_semantics(self, codes: torch.Tensor) -> BaseModelOutputWithPooling:
        """Decodes and projects the semantics of codes (I, N, d) of input images."""
        with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
            semantics = self.vq_model.decode_semantics(codes)  # (I, N, F)
        return BaseModelOutputWithPooling(last_hidden_state=semantics, pooler_output=self.semantic_projector(semantics))

    def get_generation_features(self, codes: torch.Tensor) -> torch.Tensor:
        """Embeds codes of generated images: (I, N, L) -> (I, N, H), from f_pix of Eq. 4."""
        with torch.no_grad():
            pixel_features = self.vq_model.quantizer.decode_codes(codes)  # (I, N, C)
        return self.pixel_projector(pixel_features)

    def get_placeholder_mask(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        image_features: torch.Tensor | None = None,
        generation_features: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns masks (B, S) of the positions of input images and of generated images.

        Raises:
            ValueError: there are more or fewer placeholders than positions of images. In evaluation, placeholders
                without any image are embedded as tokens, as in LLaVA; `generate` refuses them.
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

    def check_placeholders(self, mask: torch.Tensor, images: int):
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
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_codes: torch.Tensor | None = None,
        generation_pixel_values: torch.Tensor | None = None,
        generation_codes: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
    ) -> EvoTokInputs:
        """Embeds tokens and images of both kinds. Arguments and errors as in `forward`."""
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        unused = []
        image_features = self._embed_input_images(pixel_values, image_codes, mm_encoder_outputs)
        if image_features is None and self.must_run(self.semantic_projector):
            unused.append(self._project_semantics(self._dummy_codes()).pooler_output)
        generation_features, codes = None, self._encode_generated_images(generation_pixel_values, generation_codes)
        if codes is not None:
            generation_features = self.get_generation_features(codes)
        elif self.must_run(self.pixel_projector):
            unused.append(self.get_generation_features(self._dummy_codes()))

        masks = self.get_placeholder_mask(input_ids, embeds, image_features, generation_features)
        for mask, features in zip(masks, (image_features, generation_features), strict=True):
            if features is not None:
                embeds = embeds.masked_scatter(mask.unsqueeze(-1), features.to(embeds))
        for features in unused:
            embeds = embeds + 0.0 * features.sum().to(embeds.dtype)
        return EvoTokInputs(embeds, image_features, codes, masks[1])

    def _embed_input_images(self, pixel_values, image_codes, mm_encoder_outputs) -> torch.Tensor | None:
        encoded = (mm_encoder_outputs or {}).get("image")
        if sum(images is not None for images in (pixel_values, image_codes, encoded)) > 1:
            raise ValueError("Give images as pixel_values, image_codes or mm_encoder_outputs: one of the three.")
        if pixel_values is not None:
            image_codes = self.vq_model.encode(pixel_values)
        if image_codes is not None:
            encoded = self._project_semantics(image_codes)
        return None if encoded is None else encoded.pooler_output

    def _encode_generated_images(self, pixel_values, codes) -> torch.Tensor | None:
        vq_config = self.config.vq_config
        positions, levels = vq_config.num_positions, vq_config.num_pixel_codebooks
        if pixel_values is not None:
            if codes is not None:
                raise ValueError("Give generated images as generation_pixel_values or as generation_codes, not both.")
            return self.vq_model.encode(pixel_values, levels)
        if codes is None:
            return None
        if codes.ndim != 3 or codes.shape[1:] != (positions, levels) or codes.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"generation_codes of shape {tuple(codes.shape)} and dtype {codes.dtype} must be integers of shape "
                f"(images, {positions}, {levels}), int64: the first {levels} levels that vq_model.encode gives."
            )
        torch_compilable_check(
            ((codes >= 0) & (codes < vq_config.codebook_size)).all(),
            f"generation_codes must lie between 0 and {vq_config.codebook_size - 1}: give codes of this tokenizer.",
        )
        return codes

    def must_run(self, module: nn.Module) -> bool:
        """Returns whether a training batch that does not use `module` must run it all the same, times zero.

        Processes have different batches, but ZeRO-3 gathers parameters, and DDP reduces gradients, together: each must
        run the same modules in the same order.
        """
        if not (self.training and torch.is_grad_enabled()):
            return False
        return is_deepspeed_zero3_enabled() or any(p.requires_grad for p in module.parameters())

    def _dummy_codes(self) -> torch.Tensor:
        """Returns codes (1, N, 1) of no image; under ZeRO-3, which gathers the tokenizer, too, of a blank image."""
        vq_config = self.config.vq_config
        if is_deepspeed_zero3_enabled():
            blank = torch.zeros(1, 3, vq_config.image_size, vq_config.image_size, device=self.device)
            return self.vq_model.encode(blank)[..., :1]
        return torch.zeros(1, vq_config.num_positions, 1, dtype=torch.long, device=self.device)

    @can_return_tuple
    @auto_docstring(
        custom_intro="""
        Computes the hidden states of the language model.
        """,
        custom_args=_FORWARD_ARGS + _IMAGE_LOSS_ARG,
    )
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
        with_image_loss: bool = False,
        **kwargs,
    ) -> tuple | EvoTokModelOutputWithPast:
        r"""
        Returns:
            [`EvoTokModelOutputWithPast`], or with `return_dict=False` a tuple of its fields that are not None.

        Raises:
            ValueError: placeholders and images do not match; images or codes of the wrong shape or range; an image
                given in two ways; generated images in training without the image loss.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        has_generated = generation_pixel_values is not None or generation_codes is not None
        if has_generated and self.training and torch.is_grad_enabled() and not with_image_loss:
            raise ValueError(
                "images in the assistant's messages cannot be learned like this: TRL's trainers, and others that use "
                "hidden states or logits, compute the loss of text alone. Train with evotok's stages or Trainer, which "
                "use the model's loss."
            )
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
            generation_mask=None if inputs.generation_codes is None else inputs.generation_mask.long(),
        )


@auto_docstring(
    custom_intro="EvoTok with its two heads: `lm_head` predicts text, `depth_decoder` the codes of generated images."
)
class EvoTokForConditionalGeneration(EvoTokPreTrainedModel, EvoTokLossMixin, EvoTokGenerationMixin):
    _auto_class = "AutoModelForImageTextToText"  # a saved checkpoint carries this code
    # As in `EvoTokModel`; by this list the classifiers are fp32 in an fp16 model, too.
    _keep_in_fp32_modules = ["model.vq_model", "depth_decoder.classifiers"]
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    lm_head: nn.Linear
    accepts_loss_kwargs = True  # with `num_items_in_batch` both losses are shares of the global batch's

    def __init__(self, config: EvoTokConfig):
        super().__init__(config)
        self.model = EvoTokModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.depth_decoder = EvoTokDepthDecoder(config.depth_decoder_config)
        embeddings = self.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        # A config that Transformers derives from the model's drops the image fields when it is loaded.
        self.generation_config = image_generation_config(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module):
        self.lm_head = new_embeddings

    @auto_docstring(custom_intro="Encodes and projects input images.")
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> tuple | BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(I, 3, h, w)`):
            Images in [-1, 1], of the tokenizer's image size.

        Returns:
            [`BaseModelOutputWithPooling`]: as [`EvoTokModel.get_image_features`].
        """
        return self.model.get_image_features(pixel_values=pixel_values, **kwargs)

    @can_return_tuple
    @auto_docstring(
        custom_intro="""
        Computes logits, and with labels the losses of both heads.
        """,
        custom_args=_FORWARD_ARGS,
    )
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
        num_items_in_batch: torch.Tensor | int | None = None,
        num_image_positions_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> tuple | EvoTokCausalLMOutputWithPast:
        r"""
        Returns:
            [`EvoTokCausalLMOutputWithPast`], or with `return_dict=False` a tuple of its fields that are not None.

        Raises:
            ValueError: as [`EvoTokModel.forward`]; `num_items_in_batch` without labels, which `Trainer` has then
                removed for a loss of its own.
        """
        if labels is None and num_items_in_batch is not None:
            raise ValueError(
                "labels were taken out for a loss on text alone (label_smoothing_factor or compute_loss_func), without "
                "an image loss: leave it out, or override compute_loss and call the model with labels."
            )
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
            with_image_loss=labels is not None,
            **kwargs,
        )
        counts = num_items_in_batch, num_image_positions_in_batch
        losses = {} if labels is None else self._compute_losses(outputs, labels, *counts, **kwargs)
        logits = None
        if labels is None or not self.training:
            logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        return EvoTokCausalLMOutputWithPast(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            **losses,
        )


# `EvoTokInt8Config` so that a saved checkpoint carries its quantizer.
__all__ = [
    "EvoTokCausalLMOutputWithPast",
    "EvoTokForConditionalGeneration",
    "EvoTokInputs",
    "EvoTokInt8Config",
    "EvoTokModel",
    "EvoTokModelOutputWithPast",
    "EvoTokMultiModalProjector",
    "EvoTokPreTrainedModel",
]
