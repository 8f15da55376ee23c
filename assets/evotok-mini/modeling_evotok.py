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
import torch.nn.functional as F
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
from .modeling_evotok_depth import EvoTokDepthDecoder, EvoTokDepthLoss
from .modeling_evotok_vq import EvoTokVQModel
from .modeling_outputs_evotok import EvoTokCausalLMOutputWithPast, EvoTokInputs, EvoTokModelOutputWithPast


IGNORE_INDEX = -100

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
image_codes (`torch.LongTensor` of shape `(I, N, d)`, *optional*):
    Images given, as codes, any prefix of the levels; instead of `pixel_values`.
generation_pixel_values (`torch.FloatTensor` of shape `(I, 3, h, w)`, *optional*):
    Images written, in [-1, 1].
generation_codes (`torch.LongTensor` of shape `(I, N, L)`, *optional*):
    Images written, as codes; instead of `generation_pixel_values`.
mm_encoder_outputs (`dict[str, BaseModelOutputWithPooling]`, *optional*):
    `{"image": get_image_features(...)}`, instead of `pixel_values`.
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
    # Half-precision features change codes (4% of them in bf16): the whole tokenizer is loaded in fp32, or not at all.
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

    def __init__(self, config: EvoTokConfig):
        super().__init__(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.vq_model = EvoTokVQModel(config.vq_config).float().eval().requires_grad_(False)
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
        image_codes: torch.LongTensor | None = None,
        generation_pixel_values: torch.FloatTensor | None = None,
        generation_codes: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs,
    ) -> tuple | EvoTokModelOutputWithPast:
        r"""
        Returns:
            [`EvoTokModelOutputWithPast`], or with `return_dict=False` a tuple of its fields that are not None.

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
            generation_mask=None if inputs.generation_codes is None else inputs.generation_mask.long(),
        )


@auto_docstring(
    custom_intro="EvoTok with its two heads: `lm_head` writes text, `depth_decoder` writes the codes of images."
)
class EvoTokForConditionalGeneration(EvoTokPreTrainedModel, EvoTokGenerationMixin):
    _auto_class = "AutoModelForImageTextToText"  # a saved folder carries this code
    # As in `EvoTokModel`; as the list's own name says, the classifiers are fp32 in an fp16 model, too.
    _keep_in_fp32_modules = ["model.vq_model", "depth_decoder.classifiers"]
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
        **kwargs,
    ) -> tuple | EvoTokCausalLMOutputWithPast:
        r"""
        Returns:
            [`EvoTokCausalLMOutputWithPast`], or with `return_dict=False` a tuple of its fields that are not None.

        Raises:
            ValueError: as [`EvoTokModel.forward`].
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

    def _losses(
        self,
        outputs: EvoTokModelOutputWithPast,
        labels: torch.LongTensor,
        shift_labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> dict:
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX) if shift_labels is None else shift_labels
        targets = targets.to(outputs.last_hidden_state.device)
        text_loss, has_text = self._text_loss(outputs.last_hidden_state, targets, **kwargs)
        total = self.config.text_loss_weight * text_loss
        image = self._image_loss(outputs, targets)
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

    def _text_loss(self, hidden_states: torch.Tensor, targets: torch.LongTensor, **kwargs) -> tuple[torch.Tensor, bool]:
        """Cross-entropy of text targets, and whether there are any. The LM head runs only where a target is."""
        mask = targets != IGNORE_INDEX
        for token_id in (self.config.image_token_id, self.config.image_generation_token_id):
            mask = mask & (targets != token_id)
        logits = self.lm_head(hidden_states[mask])  # (targets, V)
        if not logits.shape[0]:
            return logits.float().sum(), False  # zero, and not the NaN of an empty mean
        targets = targets[mask]
        vocab_size = self.config.text_config.vocab_size
        loss = self.loss_function(logits=logits, labels=targets, shift_labels=targets, vocab_size=vocab_size, **kwargs)
        return loss, True

    def _image_loss(self, outputs: EvoTokModelOutputWithPast, targets: torch.LongTensor) -> EvoTokDepthLoss | None:
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
        return self.depth_decoder.loss(hidden_states, embeddings, codes)


__all__ = [
    "EvoTokCausalLMOutputWithPast",
    "EvoTokForConditionalGeneration",
    "EvoTokInputs",
    "EvoTokModel",
    "EvoTokModelOutputWithPast",
    "EvoTokMultiModalProjector",
    "EvoTokPreTrainedModel",
]
