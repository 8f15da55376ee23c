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

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import auto_docstring
from transformers.utils.generic import can_return_tuple
from transformers.utils.import_utils import torch_compilable_check

from .configuration_evotok import EvoTokVQConfig
from .input_checks_evotok import check_pixel_range, warn_of_half_precision
from .modeling_outputs_evotok import EvoTokVQOutput
from .quantization_evotok import EvoTokCodebook, EvoTokResidualVectorQuantizer, moved_only, without_autocast


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention spelled out: query, key, value (B, heads, N, head_dim) -> (B, N, heads, head_dim), weights."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class EvoTokResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and swish, around a skip."""

    def __init__(self, in_channels: int, out_channels: int, config: EvoTokVQConfig):
        super().__init__()
        groups, eps = config.pixel_norm_groups, config.layer_norm_eps
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.shortcut(x) + hidden


class EvoTokPixelAttention(nn.Module):
    """Single-head attention over all positions of a feature map, around a skip."""

    def __init__(self, channels: int, config: EvoTokVQConfig):
        super().__init__()
        self.norm = nn.GroupNorm(config.pixel_norm_groups, channels, eps=config.layer_norm_eps)
        self.q_proj = nn.Conv2d(channels, channels, 1)
        self.k_proj = nn.Conv2d(channels, channels, 1)
        self.v_proj = nn.Conv2d(channels, channels, 1)
        self.out_proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        query, key, value = (
            proj(normed).flatten(2).transpose(1, 2)[:, None] for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, 1, h w, channels)
        return x + self.out_proj(mixed[:, 0].transpose(1, 2).reshape_as(x))


class EvoTokUpBlock(GradientCheckpointingLayer):
    """The residual blocks of one resolution, attention after each at the lowest; then a doubling, but at the last."""

    def __init__(self, in_channels: int, out_channels: int, attention: bool, upsample: bool, config: EvoTokVQConfig):
        super().__init__()
        widths = [in_channels] + [out_channels] * config.pixel_num_res_blocks
        self.resnets = nn.ModuleList(EvoTokResidualBlock(width, out_channels, config) for width in widths)
        self.attentions = nn.ModuleList(
            EvoTokPixelAttention(out_channels, config) if attention else nn.Identity() for _ in widths
        )
        self.upsample = nn.Conv2d(out_channels, out_channels, 3, padding=1) if upsample else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x))
        return x if self.upsample is None else self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class EvoTokPixelDecoder(nn.Module):
    """Decodes pixel features to an image: 1x1 convolution, then the convolutional decoder of VQGAN."""

    def __init__(self, config: EvoTokVQConfig):
        super().__init__()
        widths = [config.pixel_base_channels * multiplier for multiplier in reversed(config.pixel_channel_multipliers)]
        self.latent_proj = nn.Conv2d(config.codebook_dim, config.pixel_latent_channels, 1)
        self.conv_in = nn.Conv2d(config.pixel_latent_channels, widths[0], 3, padding=1)
        self.mid_resnet_1 = EvoTokResidualBlock(widths[0], widths[0], config)
        self.mid_attention = EvoTokPixelAttention(widths[0], config)
        self.mid_resnet_2 = EvoTokResidualBlock(widths[0], widths[0], config)
        last = len(widths) - 1
        self.up_blocks = nn.ModuleList(
            EvoTokUpBlock(widths[max(i - 1, 0)], width, attention=i == 0, upsample=i != last, config=config)
            for i, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(config.pixel_norm_groups, widths[-1], eps=config.layer_norm_eps)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, 3, H, W), about [-1, 1]: nothing clamps it."""
        hidden = self.conv_in(self.latent_proj(features))
        hidden = self.mid_resnet_2(self.mid_attention(self.mid_resnet_1(hidden)))
        for block in self.up_blocks:
            hidden = block(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class EvoTokSemanticAttention(nn.Module):
    """Multi-head attention whose keys have no bias, with heads of `hidden_size // num_heads` even if that does not
    divide: 12 heads of 85 on a width of 1024."""

    def __init__(self, config: EvoTokVQConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.semantic_hidden_size // config.semantic_num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        inner = self.head_dim * config.semantic_num_attention_heads
        self.q_proj = nn.Linear(config.semantic_hidden_size, inner)
        self.k_proj = nn.Linear(config.semantic_hidden_size, inner, bias=False)
        self.v_proj = nn.Linear(config.semantic_hidden_size, inner)
        self.out_proj = nn.Linear(inner, config.semantic_hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        query, key, value = (
            proj(x).view(shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, heads, N + 1, head_dim)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, _ = attention_interface(
            self, query, key, value, None, scaling=self.scaling, dropout=0.0, is_causal=self.is_causal
        )
        return self.out_proj(mixed.reshape(*x.shape[:-1], -1))


class EvoTokSemanticMLP(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, config: EvoTokVQConfig):
        super().__init__()
        width, inner = config.semantic_hidden_size, int(config.semantic_hidden_size * config.semantic_mlp_ratio)
        self.fc1 = nn.Linear(width, inner)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class EvoTokTanhProjection(nn.Module):
    """Linear, Tanh, Linear: into the latent space, and out of it to the teacher's."""

    def __init__(self, width: int, out_features: int):
        super().__init__()
        self.linear_1 = nn.Linear(width, width)
        self.act = nn.Tanh()
        self.linear_2 = nn.Linear(width, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class EvoTokSemanticLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer of the semantic decoder."""

    def __init__(self, config: EvoTokVQConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.semantic_hidden_size, eps=config.layer_norm_eps)
        self.self_attn = EvoTokSemanticAttention(config)
        self.norm2 = nn.LayerNorm(config.semantic_hidden_size, eps=config.layer_norm_eps)
        self.mlp = EvoTokSemanticMLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class EvoTokSemanticDecoder(nn.Module):
    """Decodes semantic features to the teacher's space: a shallow ViT over the grid, then Linear, Tanh, Linear."""

    def __init__(self, config: EvoTokVQConfig):
        super().__init__()
        width = config.semantic_hidden_size
        self.patch_proj = nn.Linear(config.codebook_dim, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, config.num_positions + 1, width))
        self.layers = nn.ModuleList(EvoTokSemanticLayer(config) for _ in range(config.semantic_num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = EvoTokTanhProjection(width, config.semantic_feature_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, N, S)."""
        tokens = self.patch_proj(features)
        tokens = torch.cat([self.class_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = tokens + self.position_embedding.to(tokens.dtype)  # (B, N + 1, width)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(self.norm(tokens[:, 1:]))


@auto_docstring(
    custom_intro="What the tokenizer shares with every Transformers model: loading, saving, initialisation."
)
class EvoTokVQPreTrainedModel(PreTrainedModel):
    config: EvoTokVQConfig
    config_class = EvoTokVQConfig
    base_model_prefix = "vq_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["EvoTokResidualBlock", "EvoTokSemanticLayer", "EvoTokResidualVectorQuantizer"]
    # In half precision near codes tie: the codebooks are never loaded in less than fp32.
    _keep_in_fp32_modules_strict = ["quantizer"]

    @classmethod
    def is_custom_code(cls) -> bool:
        """False, although this is no file of Transformers'. Custom code is taken to draw weights without regard to what
        was loaded, and is kept from modules without parameters of their own; but SigLIP draws its layers from such."""
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
            # A deep stack of convolutions dies at a fixed small deviation.
            init.lecun_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)


@auto_docstring(
    custom_intro="""
    The image tokenizer: `encode` an image to codes, `decode_pixels` and `decode_semantics` any prefix of them.
    """
)
class EvoTokVQModel(EvoTokVQPreTrainedModel):
    _auto_class = "AutoModel"  # a saved folder carries this code
    stays_in_fp32 = False  # set by a model that it is part of, which may be cast when this one must not be

    def __init__(self, config: EvoTokVQConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.encoder_config)
        # The last layer's output is taken as it comes.
        self.vision_tower.post_layernorm = nn.Identity()
        self.to_latent = EvoTokTanhProjection(config.encoder_config.hidden_size, config.codebook_dim)
        self.quantizer = EvoTokResidualVectorQuantizer(config)
        self.pixel_decoder = EvoTokPixelDecoder(config)
        self.semantic_decoder = EvoTokSemanticDecoder(config)
        self.post_init()

    @classmethod
    def from_pretrained_encoder(cls, encoder: str, **config_kwargs) -> "EvoTokVQModel":
        """A fresh tokenizer whose encoder starts from a SigLIP or SigLIP2 checkpoint, without its last layer.

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
        """As in PyTorch; as a part of a model it moves with the rest of it, but is not cast."""
        return super()._apply(moved_only(fn) if self.stays_in_fp32 else fn, recurse)

    def _encode_features(self, pixel_values: torch.Tensor, **kwargs) -> tuple[torch.Tensor, BaseModelOutputWithPooling]:
        """(B, 3, H, W) in [-1, 1] -> (B, N, C), before quantisation, and what the encoder returned."""
        size = self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)} must be (batch, 3, {size}, {size}): "
                "resize the images, for instance with the checkpoint's own processor."
            )
        check_pixel_range(pixel_values, self.training)
        dtype = self.vision_tower.embeddings.patch_embedding.weight.dtype
        warn_of_half_precision(dtype)
        pixels = pixel_values.to(dtype).clamp(-1, 1)
        encoded = self.vision_tower(pixels, **kwargs)
        return self.to_latent(encoded.last_hidden_state), encoded

    @can_return_tuple
    @auto_docstring(
        custom_intro="""
        Encode, quantise and decode both ways. In training mode the codebooks take a step.
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
    def encode(self, pixel_values: torch.FloatTensor) -> torch.LongTensor:
        """Codes of images: (B, 3, H, W) in [-1, 1] -> (B, N, D) int64, row-major positions, D in depth order.

        Autocast is switched off, because in half precision the features, and so the codes, would differ.

        Raises:
            ValueError: the images are not of the configured size, or hold NaN or values far outside [-1, 1]; the
                features that the weights make of them are not finite.
        """
        with without_autocast(pixel_values.device.type):
            return self.quantizer.encode(self._encode_features(pixel_values)[0])

    def decode_pixels(self, codes: torch.LongTensor, depth: int | None = None) -> torch.FloatTensor:
        """Image of the first `depth` levels (`num_pixel_codebooks` by default): (B, N, d) -> (B, 3, H, W)."""
        return self._to_pixels(self._prefix(codes, depth or min(self.config.num_pixel_codebooks, codes.shape[-1])))

    def decode_semantics(self, codes: torch.LongTensor, depth: int | None = None) -> torch.FloatTensor:
        """Semantics of the first `depth` levels (all by default): (B, N, d) -> (B, N, S)."""
        return self._to_semantics(self._prefix(codes, depth or codes.shape[-1]))

    def _prefix(self, codes: torch.LongTensor, depth: int) -> torch.Tensor:
        if codes.ndim != 3 or codes.shape[1] != self.config.num_positions:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} must be (batch, {self.config.num_positions}, levels)."
            )
        if not 1 <= depth <= codes.shape[-1]:
            raise ValueError(f"depth={depth} must be between 1 and the {codes.shape[-1]} levels that codes have.")
        size = self.config.codebook_size
        if not torch.compiler.is_exporting():  # ONNX cannot say it; its lookup refuses what is too large
            torch_compilable_check(
                ((codes >= 0) & (codes < size)).all(),
                lambda: (
                    f"codes run from {int(codes.min())} to {int(codes.max())} but the codebooks hold {size} entries, 0 "
                    f"to {size - 1}: give codes that this tokenizer wrote."
                ),
            )
        return self.quantizer.decode_codes(codes[..., :depth])

    def _to_pixels(self, features: torch.Tensor) -> torch.Tensor:
        side = self.config.grid_size
        grid = features.transpose(1, 2).unflatten(2, (side, side))  # (B, C, h, w)
        pixels = self.pixel_decoder(grid.to(self.pixel_decoder.latent_proj.weight.dtype))
        size = (self.config.image_size, self.config.image_size)
        if pixels.shape[-2:] != size:  # only where the config says pixel_resize
            pixels = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False)
        return pixels

    def _to_semantics(self, features: torch.Tensor) -> torch.Tensor:
        return self.semantic_decoder(features.to(self.semantic_decoder.patch_proj.weight.dtype))


__all__ = ["EvoTokVQModel", "EvoTokVQOutput", "EvoTokVQPreTrainedModel"]
