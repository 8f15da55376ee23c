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
"""Pixel decoder and semantic decoder of the image tokenizer (paper, Sec. 3.1).

Shapes: B images, N = h x w positions, C codebook width, S width of the semantic features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_evotok import EvoTokVQConfig


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
    """Computes attention: query, key, value (B, heads, N, head_dim) -> (B, N, heads, head_dim) and weights."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class EvoTokResidualBlock(nn.Module):
    """Residual block of two 3x3 convolutions, each after GroupNorm and swish."""

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
    """Residual single-head attention over all positions of a feature map."""

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
    """Residual blocks of one resolution, with attention at the lowest, and an upsampling by 2 except at the last."""

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
    """Pixel decoder: a 1x1 convolution, then the convolutional decoder of VQGAN."""

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
        """Decodes an image: (B, C, h, w) -> (B, 3, H, W), about [-1, 1], not clamped."""
        hidden = self.conv_in(self.latent_proj(features))
        hidden = self.mid_resnet_2(self.mid_attention(self.mid_resnet_1(hidden)))
        for block in self.up_blocks:
            hidden = block(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class EvoTokSemanticAttention(nn.Module):
    """Multi-head attention without a bias of the keys. The heads are `hidden_size // num_heads` wide, which need not
    divide the width: 12 heads of 85 for a width of 1024."""

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
            self.config._attn_implementation,  # pyright: ignore[reportArgumentType]  # None is accepted, too
            eager_attention_forward,
        )
        mixed, _ = attention_interface(
            self, query, key, value, None, scaling=self.scaling, dropout=0.0, is_causal=self.is_causal
        )
        return self.out_proj(mixed.reshape(*x.shape[:-1], -1))


class EvoTokSemanticMLP(nn.Module):
    """MLP of the semantic decoder: Linear, exact GELU, Linear."""

    def __init__(self, config: EvoTokVQConfig):
        super().__init__()
        width, inner = config.semantic_hidden_size, int(config.semantic_hidden_size * config.semantic_mlp_ratio)
        self.fc1 = nn.Linear(width, inner)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class EvoTokTanhProjection(nn.Module):
    """Linear, Tanh, Linear: encoder to latent space, and semantic decoder to the teacher's features."""

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
    """Semantic decoder: a shallow ViT over the grid, then Linear, Tanh, Linear to the teacher's features."""

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
        """Decodes semantics: (B, N, C) -> (B, N, S)."""
        tokens = self.patch_proj(features)
        tokens = torch.cat([self.class_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = tokens + self.position_embedding.to(tokens.dtype)  # (B, N + 1, width)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(self.norm(tokens[:, 1:]))


__all__ = ["EvoTokPixelDecoder", "EvoTokSemanticDecoder", "EvoTokTanhProjection", "eager_attention_forward"]
