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
"""EvoTok's image tokenizer: encoder, residual quantizer, pixel decoder and semantic decoder (paper, Sec. 3.1).

    pixels -> vision tower -> to_latent -> quantizer -> codes (B, N, 16)
                                             |-> sum of levels 1..4  -> pixel decoder    -> pixels
                                             `-> sum of levels 1..16 -> semantic decoder -> SigLIP2 features

Shapes: B images, N = h x w positions, C codebook width, D levels, S width of the semantic features.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, auto_docstring, logging
from transformers.utils.generic import can_return_tuple
from transformers.utils.import_utils import torch_compilable_check

from .configuration_evotok import EvoTokVQConfig
from .decoders_evotok import EvoTokPixelDecoder, EvoTokSemanticDecoder, EvoTokTanhProjection
from .quantization_evotok import EvoTokCodebook, EvoTokResidualVectorQuantizer, disable_autocast, move_without_cast


logger = logging.get_logger(__name__)

# Resizing filters overshoot [-1, 1] by less than the first limit; bytes that were never scaled exceed the second.
_WARN_ABOVE, _REFUSE_ABOVE = 1.5, 16.0


@auto_docstring(custom_intro="Output of [`EvoTokVQModel`]: one pass through the image tokenizer.")
@dataclass
class EvoTokVQOutput(ModelOutput):
    r"""
    vq_loss (`torch.FloatTensor` of shape `()`):
        Vector quantization loss, Eq. 7.
    codes (`torch.LongTensor` of shape `(B, N, D)`):
        Codes, positions in row-major order.
    reconstruction (`torch.FloatTensor` of shape `(B, 3, height, width)`):
        Pixels decoded at depth `num_pixel_codebooks`, about [-1, 1].
    semantic_features (`torch.FloatTensor` of shape `(B, N, S)`):
        Semantics decoded at full depth, to be aligned with the teacher's features.
    hidden_states (`tuple[torch.FloatTensor]`, *optional*):
        Those of the encoder, with `output_hidden_states=True`.
    attentions (`tuple[torch.FloatTensor]`, *optional*):
        Those of the encoder, with `output_attentions=True` and eager attention.
    """

    vq_loss: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    semantic_features: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@auto_docstring(custom_intro="Base class of the image tokenizer: loading, saving, initialization.")
class EvoTokVQPreTrainedModel(PreTrainedModel):
    config: EvoTokVQConfig
    config_class = EvoTokVQConfig
    base_model_prefix = "vq_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # pyright: ignore[reportAssignmentType]  # a tuple, as in Transformers
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["EvoTokResidualBlock", "EvoTokSemanticLayer", "EvoTokResidualVectorQuantizer"]
    # In half precision the distances of near entries tie: the codebooks are always loaded in fp32.
    _keep_in_fp32_modules_strict = ["quantizer"]

    if TYPE_CHECKING:  # `PreTrainedModel.to` has lost its type to a decorator

        def to(self, *args, **kwargs) -> Self: ...

    @classmethod
    def is_custom_code(cls) -> bool:
        """Returns False, so that weights are initialized as for the models of Transformers.

        Transformers skips modules without parameters of their own when it initializes custom code, but SigLIP
        initializes its layers from such modules.
        """
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, EvoTokCodebook):
            size = module.weight.shape[0]
            init.uniform_(module.weight, -1.0 / size, 1.0 / size)
            init.zeros_(module.cluster_size)
            init.zeros_(module.step)
            if module.vector_sum is not None:
                init.zeros_(module.vector_sum)
        elif isinstance(module, EvoTokSemanticDecoder):
            init.normal_(module.class_token, std=self.config.initializer_range)
            init.normal_(module.position_embedding, std=self.config.initializer_range)
        elif isinstance(module, nn.Conv2d):
            # With a fixed small deviation the signal vanishes in a deep stack of convolutions.
            init.lecun_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)


@auto_docstring(
    custom_intro="""
    Image tokenizer: encodes images to codes, and decodes codes to pixels and semantics at any depth.
    """
)
class EvoTokVQModel(EvoTokVQPreTrainedModel):
    _auto_class = "AutoModel"  # a saved folder carries this code
    stays_in_fp32 = False  # set by a model that contains this one, and that may be cast when this one must not be

    def __init__(self, config: EvoTokVQConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.encoder_config)
        # The last layer's output is used without the layernorm after it.
        self.vision_tower.post_layernorm = nn.Identity()
        self.to_latent = EvoTokTanhProjection(config.encoder_config.hidden_size, config.codebook_dim)
        self.quantizer = EvoTokResidualVectorQuantizer(config)
        self.pixel_decoder = EvoTokPixelDecoder(config)
        self.semantic_decoder = EvoTokSemanticDecoder(config)
        self.post_init()

    @classmethod
    def from_pretrained_encoder(cls, encoder: str, **config_kwargs) -> Self:
        """Builds a new tokenizer whose encoder is initialized from a SigLIP or SigLIP2 checkpoint, less its last layer.

        Args:
            encoder: hub id or folder of a fixed-resolution SigLIP checkpoint, such as
                `google/siglip2-large-patch16-256`.
            config_kwargs: fields of [`EvoTokVQConfig`] that differ from the default.
        """
        source = AutoModel.from_pretrained(encoder)
        source = getattr(source, "vision_model", source)
        encoder_config = source.config.to_dict() | {
            "num_hidden_layers": source.config.num_hidden_layers - 1,
            "vision_use_head": False,
        }
        config_kwargs.setdefault("semantic_feature_dim", source.config.hidden_size)
        model = cls(EvoTokVQConfig(encoder_config=encoder_config, **config_kwargs))
        wanted = model.vision_tower.state_dict().keys()
        model.vision_tower.load_state_dict({k: v for k, v in source.state_dict().items() if k in wanted})
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_tower.get_input_embeddings()

    def _apply(self, fn, recurse=True):
        """Moves or casts the tensors, as in PyTorch; with `stays_in_fp32` only moves them."""
        return super()._apply(move_without_cast(fn) if self.stays_in_fp32 else fn, recurse)

    def _encode_features(self, pixel_values: torch.Tensor, **kwargs) -> tuple[torch.Tensor, BaseModelOutputWithPooling]:
        """Encodes features before quantization: (B, 3, H, W) in [-1, 1] -> (B, N, C), and the encoder's output."""
        size = self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)} must be (batch, 3, {size}, {size}): "
                "resize the images, for instance with the checkpoint's own processor."
            )
        _check_pixel_range(pixel_values, self.training)
        dtype = self.vision_tower.embeddings.patch_embedding.weight.dtype
        if dtype in (torch.float16, torch.bfloat16):
            logger.warning_once(
                f"The image tokenizer's weights are {dtype}: some of its codes differ from those of float32, for which "
                "its decoders, and language models, were trained. Load it in float32; where an engine or a library "
                "casts parameters one by one, keep it out, or give codes instead of pixels."
            )
        pixels = pixel_values.to(dtype).clamp(-1, 1)
        encoded = self.vision_tower(pixels, **kwargs)
        return self.to_latent(encoded.last_hidden_state), encoded

    @can_return_tuple
    @auto_docstring(
        custom_intro="""
        Encodes, quantizes and decodes images. In training mode the codebooks are updated.
        """
    )
    def forward(self, pixel_values: torch.FloatTensor, **kwargs) -> EvoTokVQOutput | tuple:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`):
            Images in [-1, 1].

        Returns:
            [`EvoTokVQOutput`], or with `return_dict=False` a tuple of its fields that are not None.

        Raises:
            ValueError: the images are not of the configured size, or hold NaN or values far outside [-1, 1].
        """
        features, encoded = self._encode_features(pixel_values, **kwargs)
        quantized = self.quantizer(features)
        return EvoTokVQOutput(
            vq_loss=quantized.loss,
            codes=quantized.codes,
            reconstruction=self._to_pixels(quantized.pixel_features),
            semantic_features=self._to_semantics(quantized.semantic_features),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor, depth: int | None = None) -> torch.Tensor:
        """Encodes images at a depth (all levels by default): (B, 3, H, W) in [-1, 1] -> codes (B, N, d) int64,
        positions in row-major order.

        Autocast is switched off, because in half precision the features, and so the codes, would differ.

        Raises:
            ValueError: the images are not of the configured size, or hold NaN or values far outside [-1, 1]; the
                features are not finite.
        """
        with disable_autocast(pixel_values.device.type):
            return self.quantizer.encode(self._encode_features(pixel_values)[0], depth)

    def decode_pixels(self, codes: torch.Tensor, depth: int | None = None) -> torch.Tensor:
        """Decodes pixels at a depth (`num_pixel_codebooks` by default): (B, N, d) -> (B, 3, H, W)."""
        return self._to_pixels(self._sum_levels(codes, depth or min(self.config.num_pixel_codebooks, codes.shape[-1])))

    def decode_semantics(self, codes: torch.Tensor, depth: int | None = None) -> torch.Tensor:
        """Decodes semantics at a depth (all levels by default): (B, N, d) -> (B, N, S)."""
        return self._to_semantics(self._sum_levels(codes, depth or codes.shape[-1]))

    def _sum_levels(self, codes: torch.Tensor, depth: int) -> torch.Tensor:
        """Checks codes and sums the entries of their first `depth` levels: (B, N, d) -> (B, N, C)."""
        if codes.ndim != 3 or codes.shape[1] != self.config.num_positions:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} must be (batch, {self.config.num_positions}, levels)."
            )
        if not 1 <= depth <= codes.shape[-1]:
            raise ValueError(f"depth={depth} must be between 1 and the {codes.shape[-1]} levels that codes have.")
        size = self.config.codebook_size
        if not torch.compiler.is_exporting():  # ONNX has no such check; its lookup fails for codes that are too large
            torch_compilable_check(
                ((codes >= 0) & (codes < size)).all(),
                lambda: (
                    f"codes run from {int(codes.min())} to {int(codes.max())} but the codebooks hold {size} entries, 0 "
                    f"to {size - 1}: give codes of this tokenizer."
                ),
            )
        return self.quantizer.decode_codes(codes[..., :depth])

    def _to_pixels(self, features: torch.Tensor) -> torch.Tensor:
        side = self.config.grid_size
        grid = features.transpose(1, 2).unflatten(2, (side, side))  # (B, C, h, w)
        pixels = self.pixel_decoder(grid.to(self.pixel_decoder.latent_proj.weight.dtype))
        size = (self.config.image_size, self.config.image_size)
        if pixels.shape[-2:] != size:  # with pixel_resize only
            pixels = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False)
        return pixels

    def _to_semantics(self, features: torch.Tensor) -> torch.Tensor:
        return self.semantic_decoder(features.to(self.semantic_decoder.patch_proj.weight.dtype))


def _check_pixel_range(pixel_values: torch.Tensor, in_training: bool) -> None:
    """Warns about pixels outside [-1, 1], which are clamped.

    In training on a GPU the assertion runs on the device, so that no step waits for it.

    Raises:
        ValueError: NaN, or pixels that were never scaled.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or pixel_values.is_meta or not len(pixel_values):
        return
    highest = pixel_values.detach().abs().amax()
    text = "pixel_values hold NaN or values far outside [-1, 1]: scale 0..255 by x / 127.5 - 1, 0..1 by 2 x - 1."
    if in_training and highest.is_cuda:
        torch._assert_async(highest <= _REFUSE_ABOVE, text)
    elif not highest <= _REFUSE_ABOVE:
        raise ValueError(text)
    elif highest > _WARN_ABOVE:
        logger.warning_once("pixel_values outside [-1, 1] are clamped to it: were they scaled by 2 x - 1?")


__all__ = ["EvoTokVQModel", "EvoTokVQOutput", "EvoTokVQPreTrainedModel"]
