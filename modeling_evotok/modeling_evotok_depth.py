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
"""EvoTok's depth decoder: a causal transformer over the levels of one position (paper, Sec. 3.3, Eq. 9-11).

    language model's hidden state -> input 1 -> code of level 1
    entry of level 1              -> input 2 -> code of level 2
    sum of entries of levels 1, 2 -> input 3 -> code of level 3, and so on

Two paths over the same weights: `forward` and `loss` are teacher-forced, `step` and `generate_codes` predict one level
at a time with a cache of fixed shape.

Shapes: M positions, L levels, H width of the language model, E width here, C codebook width, K codebook size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, auto_docstring
from transformers.utils.output_capturing import capture_outputs

from .configuration_evotok import EvoTokDepthDecoderConfig
from .decoders_evotok import eager_attention_forward
from .depth_linear_evotok import EvoTokDepthLinear, input_dtype
from .losses_evotok import EvoTokDepthLoss, linear_cross_entropy


@auto_docstring(custom_intro="Output of [`EvoTokDepthDecoder`].")
@dataclass
class EvoTokDepthDecoderOutput(ModelOutput):
    r"""
    logits (`torch.FloatTensor` of shape `(M, L, K)`):
        Logits of the codes of every level.
    hidden_states (`tuple[torch.FloatTensor]`, *optional*):
        `(M, L, E)` before the first layer and after each, with `output_hidden_states=True`.
    attentions (`tuple[torch.FloatTensor]`, *optional*):
        `(M, heads, L, L)` of each layer, with `output_attentions=True` and eager attention.
    """

    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class EvoTokDepthLayerCache(NamedTuple):
    """Cache of one layer: keys and values of every level, each (M, heads, L, head_dim), and its fused projections.

    A level overwrites its own slot and reads no later one, so that the next position needs no reset.
    """

    keys: torch.Tensor
    values: torch.Tensor
    projections: EvoTokDepthLinear | None

    def update(self, key: torch.Tensor, value: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores a level (M, heads, 1, head_dim) and returns all levels so far, (M, heads, level + 1, head_dim)."""
        self.keys[:, :, level : level + 1] = key
        self.values[:, :, level : level + 1] = value
        return self.keys[:, :, : level + 1], self.values[:, :, : level + 1]


class EvoTokDepthCache(NamedTuple):
    """Cache of every layer, allocated once, with the position embeddings (L, E)."""

    layers: tuple[EvoTokDepthLayerCache, ...]
    positions: torch.Tensor


class EvoTokDepthAttention(nn.Module):
    """Multi-head causal attention over levels; all projections have a bias."""

    def __init__(self, config: EvoTokDepthDecoderConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.q_proj = EvoTokDepthLinear(config.hidden_size, config.hidden_size)
        self.k_proj = EvoTokDepthLinear(config.hidden_size, config.hidden_size)
        self.v_proj = EvoTokDepthLinear(config.hidden_size, config.hidden_size)
        self.out_proj = EvoTokDepthLinear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: EvoTokDepthLayerCache | None = None,
        level: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        if cache is None or cache.projections is None:
            projected = [projection(hidden_states) for projection in (self.q_proj, self.k_proj, self.v_proj)]
        else:
            projected = cache.projections(hidden_states).chunk(3, dim=-1)
        query, key, value = (states.view(shape).transpose(1, 2) for states in projected)  # (M, heads, T, head_dim)
        if cache is not None:
            key, value = cache.update(key, value, level)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation,  # pyright: ignore[reportArgumentType]  # None is accepted, too
            eager_attention_forward,
        )
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = attention_interface(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling
        )
        return self.out_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), weights

    def fuse_projections(self) -> EvoTokDepthLinear | None:
        """Builds one layer (..., E) -> (..., 3E) of copies of the weights of `q_proj`, `k_proj` and `v_proj`, which is
        faster for a few rows; None unless all are plain: not replaced, quantized, sharded, offloaded or hooked."""
        projections, width = (self.q_proj, self.k_proj, self.v_proj), self.config.hidden_size
        if not all(_is_plain(projection, width) for projection in projections):
            return None
        if len({(projection.weight.device, projection.weight.dtype) for projection in projections}) > 1:
            return None
        with torch.device("meta"):
            fused = EvoTokDepthLinear(width, 3 * width)
        for name in ("weight", "bias"):
            parts = [getattr(projection, name).detach() for projection in projections]
            setattr(fused, name, nn.Parameter(torch.cat(parts), requires_grad=False))
        return fused


def _is_plain(linear: nn.Module, width: int) -> bool:
    """Returns whether a layer computes the product with its weight (width, width) and nothing else."""
    return (
        type(linear) is EvoTokDepthLinear
        and all(type(each) is nn.Parameter and not each.is_meta for each in (linear.weight, linear.bias))
        and linear.weight.shape == (width, width)
        and not (linear._forward_hooks or linear._forward_pre_hooks)
        and "forward" not in vars(linear)  # Accelerate replaces it to load offloaded weights
    )


class EvoTokDepthMLP(nn.Module):
    """MLP of the depth decoder: Linear, activation, Linear."""

    def __init__(self, config: EvoTokDepthDecoderConfig):
        super().__init__()
        self.fc1 = EvoTokDepthLinear(config.hidden_size, config.intermediate_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.fc2 = EvoTokDepthLinear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act_fn(self.fc1(hidden_states)))


class EvoTokDepthDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer; dropout after the attention's projection and after the MLP."""

    def __init__(self, config: EvoTokDepthDecoderConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = EvoTokDepthAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = EvoTokDepthMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: EvoTokDepthLayerCache | None = None,
        level: int = 0,
    ) -> torch.Tensor:
        mixed, _ = self.self_attn(self.norm1(hidden_states), attention_mask, cache, level)
        hidden_states = hidden_states + self.dropout(mixed)
        return hidden_states + self.dropout(self.mlp(self.norm2(hidden_states)))


class EvoTokCodeProjection(EvoTokDepthLinear):
    """Linear layer: (..., E) -> logits (..., K), or given targets (M,) int64 the sum of their cross-entropies.

    The loss is computed in the `forward` of the layer that owns the weight, where sharded training (ZeRO-3, FSDP) has
    gathered it.
    """

    def forward(self, hidden_states: torch.Tensor, targets: torch.LongTensor | None = None) -> torch.Tensor:
        if targets is None:
            return super().forward(hidden_states)
        return linear_cross_entropy(hidden_states, self.weight, self.bias, targets)


class EvoTokCodeClassifier(nn.Module):
    """Head of one level: the final LayerNorm and a Linear layer, (..., E) -> logits (..., K)."""

    def __init__(self, config: EvoTokDepthDecoderConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.proj = EvoTokCodeProjection(config.hidden_size, config.codebook_size)

    def forward(self, hidden_states: torch.Tensor, targets: torch.LongTensor | None = None) -> torch.Tensor:
        """Computes logits, or given targets (M,) the sum of their cross-entropies in float32."""
        states = self.norm(hidden_states.to(self.norm.weight.dtype))
        if targets is None:
            return self.proj(states)
        if isinstance(self.proj, EvoTokCodeProjection):
            return self.proj(states, targets)
        # An adapter or a quantized layer has replaced the projection.
        return F.cross_entropy(self.proj(states).float(), targets, reduction="sum")


@auto_docstring(
    custom_intro="""
    Depth decoder: predicts the codes of one position, level by level, from the language model's hidden state.
    """
)
class EvoTokDepthDecoder(PreTrainedModel):
    config: EvoTokDepthDecoderConfig
    config_class = EvoTokDepthDecoderConfig
    base_model_prefix = "depth_decoder"
    _auto_class = "AutoModel"  # a saved folder carries this code
    main_input_name = "hidden_states"
    supports_gradient_checkpointing = True
    # `step` calls the submodules without the hooks of the whole.
    _no_split_modules = ["EvoTokDepthDecoder", "EvoTokDepthDecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": EvoTokDepthDecoderLayer, "attentions": EvoTokDepthAttention}
    _input_embed_layer = "position_embeddings"

    if TYPE_CHECKING:  # `PreTrainedModel.to` has lost its type to a decorator

        def to(self, *args, **kwargs) -> Self: ...

    def __init__(self, config: EvoTokDepthDecoderConfig):
        super().__init__(config)
        self.backbone_projection = nn.Linear(config.backbone_hidden_size, config.hidden_size)
        self.code_projection = nn.Linear(config.codebook_dim, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.num_codebooks, config.hidden_size)
        self.layers = nn.ModuleList(EvoTokDepthDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.classifiers = nn.ModuleList(EvoTokCodeClassifier(config) for _ in range(config.num_codebooks))
        self.post_init()

    def encode_levels(self, hidden_states: torch.Tensor, code_embeddings: torch.Tensor) -> torch.Tensor:
        """Computes teacher-forced states of every level before its classifier: (M, H), (M, L, C) -> (M, L, E)."""
        first = self.backbone_projection(hidden_states.to(input_dtype(self.backbone_projection)))  # (M, E)
        sums = code_embeddings[:, :-1].cumsum(dim=1)  # (M, L - 1, C), sums of the levels before each
        rest = self.code_projection(sums.to(input_dtype(self.code_projection)))
        states = torch.cat([first[:, None], rest], dim=1)
        levels = torch.arange(states.shape[1], device=states.device)
        states = states + self.position_embeddings(levels)
        mask = create_causal_mask(config=self.config, inputs_embeds=states, attention_mask=None, past_key_values=None)
        for layer in self.layers:
            states = layer(states, mask)
        return states

    @capture_outputs
    @auto_docstring(
        custom_intro="""
        Computes teacher-forced logits of all levels.
        """
    )
    def forward(
        self, hidden_states: torch.Tensor, code_embeddings: torch.Tensor, **kwargs
    ) -> tuple | EvoTokDepthDecoderOutput:
        r"""
        hidden_states (`torch.FloatTensor` of shape `(M, H)`):
            The language model's output at the position before the predicted one.
        code_embeddings (`torch.FloatTensor` of shape `(M, L, C)`):
            Entries of the target codes, not summed; that of the last level is not used.

        Returns:
            [`EvoTokDepthDecoderOutput`], or with `return_dict=False` a tuple of its fields that are not None. Training
            uses `loss`, which does not hold all logits at once.
        """
        states = self.encode_levels(hidden_states, code_embeddings)
        logits = torch.stack([head(states[:, level]) for level, head in enumerate(self.classifiers)], dim=1)
        return EvoTokDepthDecoderOutput(logits=logits)

    def loss(
        self,
        hidden_states: torch.Tensor,
        code_embeddings: torch.Tensor,
        codes: torch.Tensor,
        num_positions: torch.Tensor | int | None = None,
    ) -> EvoTokDepthLoss:
        """Computes the cross-entropy of the target codes, mean over M x L (Eq. 11).

        Logits exist for one level and a block of positions at a time, see `linear_cross_entropy`.

        Args:
            hidden_states: (M, H), M at least 1.
            code_embeddings: (M, L, C), not summed.
            codes: (M, L) int64.
            num_positions: divisor of sums over positions instead of M: their number in the global batch.
        """
        states = self.encode_levels(hidden_states, code_embeddings)
        sums = [head(states[:, level], codes[:, level]) for level, head in enumerate(self.classifiers)]
        level_losses = torch.stack(sums) / (codes.shape[0] if num_positions is None else num_positions)
        return EvoTokDepthLoss(level_losses.mean(), level_losses.detach())

    def new_cache(
        self, batch_size: int, device: torch.device | None = None, fuse_projections: bool = True
    ) -> EvoTokDepthCache:
        """Allocates a cache for `step`, which serves any number of positions, until weights change.

        Args:
            batch_size: M.
            device: used where Accelerate has offloaded the weights, so that they have none of their own.
            fuse_projections: copies the weights of queries, keys and values, 3E x E for each layer, where
                `EvoTokDepthAttention.fuse_projections` can; not worth it for one position.
        """
        config, embeddings = self.config, self.position_embeddings
        device = device if embeddings.weight.is_meta else embeddings.weight.device
        positions = embeddings(torch.arange(config.num_codebooks, device=device))  # (L, E)
        head_dim = config.hidden_size // config.num_attention_heads
        shape = (batch_size, config.num_attention_heads, config.num_codebooks, head_dim)
        layers = []
        for layer in self.layers:
            fused = layer.self_attn.fuse_projections() if fuse_projections else None  # pyright: ignore[reportCallIssue]
            layers.append(EvoTokDepthLayerCache(positions.new_zeros(shape), positions.new_zeros(shape), fused))
        return EvoTokDepthCache(tuple(layers), positions)

    @torch.no_grad()
    def step(self, inputs: torch.Tensor, level: int, cache: EvoTokDepthCache) -> torch.Tensor:
        """Computes the logits (M, K) of one level, with the levels before it in the cache.

        Args:
            inputs: (M, H) the language model's hidden states for the first level, then (M, C) the sum of the entries of
                all levels before.
            level: its index, from 0 to L - 1; a Python number, so that all levels compile into one graph.
            cache: of `new_cache(M)`; changed in place.
        """
        projection = self.code_projection if level else self.backbone_projection
        state = projection(inputs.to(cache.positions)) + cache.positions[level]
        state = state[:, None]  # (M, 1, E)
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            state = layer(state, None, layer_cache, level)
        return self.classifiers[level](state[:, 0])

    @torch.no_grad()
    def generate_codes(
        self,
        hidden_states: torch.Tensor,
        codebooks: torch.Tensor,
        sample: Callable[..., torch.Tensor],
        cache: EvoTokDepthCache | None = None,
        noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Generates the codes of one position.

        Args:
            hidden_states: (M, H).
            codebooks: (L, K, C), the entries of all levels as one contiguous tensor.
            sample: function of the logits (M, K) of a level, and of its noise if there is any, to its codes (M,).
            cache: of `new_cache(M)`; a new one if None.
            noise: one tensor a level, for instance of `EvoTokCodeSampler.fill_noise`.

        Returns:
            codes (M, L) int64 and the sum of their entries (M, C).
        """
        if cache is None:
            cache = self.new_cache(hidden_states.shape[0], hidden_states.device, fuse_projections=False)
        inputs, codes = hidden_states, []
        for level in range(self.config.num_codebooks):
            logits = self.step(inputs, level, cache)
            codes.append(sample(logits) if noise is None else sample(logits, noise[level]))
            embedding = F.embedding(codes[-1], codebooks[level])  # (M, C)
            inputs = inputs + embedding if level else embedding
        return torch.stack(codes, dim=1), inputs


__all__ = ["EvoTokDepthDecoder", "EvoTokDepthDecoderOutput"]
