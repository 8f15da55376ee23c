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

import torch
from torch import nn
from transformers import AutoModel, Cache, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import auto_docstring
from transformers.utils.generic import can_return_tuple

from .configuration_evotok import EvoTokConfig
from .generation_evotok import EvoTokGenerationMixin, image_generation_config
from .inputs_evotok import EvoTokInputsMixin
from .loss_terms_evotok import EvoTokLossMixin
from .modeling_evotok_depth import EvoTokDepthDecoder
from .modeling_evotok_vq import EvoTokVQModel
from .modeling_outputs_evotok import EvoTokCausalLMOutputWithPast, EvoTokInputs, EvoTokModelOutputWithPast


# Said once for both models; the one without heads takes no labels.
_FORWARD_ARGS = r"""
input_ids (`torch.LongTensor` of shape `(B, S)`, *optional*):
    Tokens, with N placeholders for each image. Exactly one of `input_ids` and `inputs_embeds` is given.
pixel_values (`torch.FloatTensor` of shape `(I, 3, h, w)`, *optional*):
    Images given, in [-1, 1], of the tokenizer's image size.
labels (`torch.LongTensor` of shape `(B, S)`, *optional*):
    -100 where nothing is learned. At positions of images written, anything but -100 asks for the image loss (Eq. 11);
    other placeholders are never a target of the text loss. With `shift_labels`, which are labels moved one position to
    the left already, as parallel training over the sequence passes them, `labels` only ask for a loss.
num_items_in_batch (`torch.Tensor` or `int`, *optional*):
    What sums of losses are divided by, instead of the number of their own targets: text targets of the global batch,
    over all processes and accumulated batches, so that the loss is the same however rows are split. `Trainer` gives it.
num_image_positions_in_batch (`torch.Tensor` or `int`, *optional*):
    The same for the image loss: positions of images written. See `count_targets`. Left out, `num_items_in_batch` is
    taken for the number of both together, which is what `Trainer` counts, and divides both losses.
image_codes (`torch.LongTensor` of shape `(I, N, d)`, *optional*):
    Images given, as codes, any prefix of the levels; instead of `pixel_values`.
generation_pixel_values (`torch.FloatTensor` of shape `(I, 3, h, w)`, *optional*):
    Images written, in [-1, 1].
generation_codes (`torch.LongTensor` of shape `(I, N, L)`, *optional*):
    Images written, as codes; instead of `generation_pixel_values`.
mm_encoder_outputs (`dict[str, BaseModelOutputWithPooling]`, *optional*):
    `{"image": get_image_features(...)}`, instead of `pixel_values`.
"""
_IMAGE_LOSS_ARG = r"""with_image_loss (`bool`, *optional*, defaults to `False`):
    Whether the caller computes the image loss from the hidden states, as the model with heads does.
"""


class EvoTokMultiModalProjector(nn.Module):
    """Linear, activation, Linear: image features (..., in_features) -> (..., H)."""

    def __init__(self, config: EvoTokConfig, in_features: int):
        super().__init__()
        hidden_size = config.text_config.hidden_size
        self.linear_1 = nn.Linear(in_features, hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(features.to(self.linear_1.bias.dtype))))


@auto_docstring(custom_intro="What EvoTok's multimodal models share with every Transformers model.")
class EvoTokPreTrainedModel(PreTrainedModel):
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
    # Half-precision features change codes (4% of them in bf16): the whole tokenizer is loaded in fp32, or not at all,
    # and `EvoTokVQModel._apply` keeps it so whatever the model is cast to later.
    _keep_in_fp32_modules_strict = ["vq_model"]
    _no_split_modules = ["EvoTokVQModel"]  # `encode` and `decode_*` call its parts, past the hooks of the whole

    @classmethod
    def is_custom_code(cls) -> bool:
        """As [`EvoTokVQPreTrainedModel.is_custom_code`]: the whole model is initialised with this one's answer."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """That of the tokenizer: generic code casts images to it."""
        return self.base_model.vq_model.dtype


@auto_docstring(custom_intro="Image tokenizer, language model and the two projectors, without heads.")
class EvoTokModel(EvoTokPreTrainedModel, EvoTokInputsMixin):
    _auto_class = "AutoModel"  # a saved folder carries this code
    # Quantisation passes over these, whatever its config says; names count from the start. No name may stand in the
    # strict list as well, so that the tokenizer's parts stand for it.
    _keep_in_fp32_modules = [
        "vq_model.vision_tower",
        "vq_model.to_latent",
        "vq_model.quantizer",
        "vq_model.pixel_decoder",
        "vq_model.semantic_decoder",
    ]
    # A whole checkpoint has them, and engines that build this model for reading refuse what has no place.
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
        """As in PyTorch, but the tokenizer, which was trained before, on its own, stays in evaluation mode and frozen.

        In training mode its codebooks would move, and DDP would wait for its gradients. Freezing it at construction
        is not enough: `from_pretrained` makes new parameters, and then calls `eval()`.
        """
        super().train(mode)
        self.vq_model.eval().requires_grad_(False)
        return self

    @can_return_tuple
    @auto_docstring(
        custom_intro="""
        Images that are given, as the language model sees them.
        """
    )
    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(I, 3, h, w)`):
            Images in [-1, 1], of the tokenizer's image size.

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` `(I, N, F)`, the decoded semantic features, and
            `pooler_output` `(I, N, H)`, projected; with `output_hidden_states` or `output_attentions`, those of the
            tokenizer's encoder.

        Raises:
            ValueError: the images are not of the configured size.
        """
        features = self._features_of_codes(self.vq_model.encode(pixel_values))
        encoder = self.vq_model.vision_tower
        names = ("output_hidden_states", "output_attentions")
        asked = {name: kwargs.get(name, getattr(encoder.config, name, False)) for name in names}
        if any(asked.values()):
            states = encoder(pixel_values, **asked)
            features.hidden_states, features.attentions = states.hidden_states, states.attentions
        return features

    @can_return_tuple
    @auto_docstring(
        custom_intro="""
        Hidden states of the language model.
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
                given in two ways; images written, in training, for a caller that does not learn them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        written = generation_pixel_values is not None or generation_codes is not None
        if written and self.training and torch.is_grad_enabled() and not with_image_loss:
            raise ValueError(
                "images in assistant turns cannot be learnt like this: TRL's trainers, and others that take hidden "
                "states or logits, score text alone. Train with evotok's stages or Trainer, which take its loss."
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
    custom_intro="EvoTok with its two heads: `lm_head` writes text, `depth_decoder` writes the codes of images."
)
class EvoTokForConditionalGeneration(EvoTokPreTrainedModel, EvoTokLossMixin, EvoTokGenerationMixin):
    _auto_class = "AutoModelForImageTextToText"  # a saved folder carries this code
    # As in `EvoTokModel`; as the list's own name says, the classifiers are fp32 in an fp16 model, too.
    _keep_in_fp32_modules = ["model.vq_model", "depth_decoder.classifiers"]
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    accepts_loss_kwargs = True  # both losses are of the global batch, if `Trainer` says how large it is

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

    @auto_docstring(
        custom_intro="""
        Images that are given, as the language model sees them.
        """
    )
    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> tuple | BaseModelOutputWithPooling:
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
        Logits, and with labels the losses of both heads.
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
            ValueError: as [`EvoTokModel.forward`]; `num_items_in_batch` without labels, which `Trainer` has then taken
                out for a loss of its own.
        """
        if labels is None and num_items_in_batch is not None:
            raise ValueError(
                "labels were taken out for a loss on text alone (label_smoothing_factor or compute_loss_func), which "
                "knows nothing of images: leave it out, or override compute_loss and call the model with labels."
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
        hidden_states = outputs.last_hidden_state
        counts = num_items_in_batch, num_image_positions_in_batch
        losses = {} if labels is None else self._losses(outputs, labels, *counts, **kwargs)
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


__all__ = [
    "EvoTokCausalLMOutputWithPast",
    "EvoTokForConditionalGeneration",
    "EvoTokInputs",
    "EvoTokModel",
    "EvoTokModelOutputWithPast",
    "EvoTokMultiModalProjector",
    "EvoTokPreTrainedModel",
]
