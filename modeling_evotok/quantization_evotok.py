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
"""Residual vector quantization with codebooks updated by EMA (paper, Eq. 1-4 and 7).

`EvoTokCodebook` is one level, `EvoTokResidualVectorQuantizer` the chain of levels. Both compute in fp32 under autocast,
too: in bf16 the distances of near entries tie and codes change.

Shapes: B images, N positions, M = B x N vectors, C codebook width, K codebook size, D levels.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

from .codebook_update_evotok import update_codebooks
from .configuration_evotok import EvoTokVQConfig
from .nearest_code_evotok import find_nearest_codes


def disable_autocast(device_type: str) -> AbstractContextManager:
    """Returns a context without autocast, which is empty where it is off already: an exported graph has no switch."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


def move_without_cast(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Wraps what `Module.to`, `half` and so on apply to each tensor: tensors are moved, and cast to float32 only."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved = function(tensor)
        restored = tensor.is_floating_point() and moved.dtype == torch.float32
        return moved if moved.dtype == tensor.dtype or restored else tensor.to(moved.device)

    return move


def codebook_usage(counts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Computes the share of entries in use and the perplexity of each level.

    Args:
        counts: (D, K) how often each code was chosen.

    Returns:
        `usage` (D,) in [0, 1] and `perplexity` (D,) in [1, K].
    """
    counts = counts.float()
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    entropy = -torch.special.xlogy(share, share).sum(1)
    return {"usage": (counts > 0).float().mean(1), "perplexity": entropy.exp()}


@dataclass
class EvoTokQuantizerOutput(ModelOutput):
    """Output of the residual quantizer.

    Args:
        codes: (B, N, D) int64.
        pixel_features: (B, N, C), the sum of the first `num_pixel_codebooks` levels (straight-through).
        semantic_features: (B, N, C), the sum of all levels (straight-through).
        loss: scalar, Eq. 7.
    """

    codes: torch.Tensor | None = None
    pixel_features: torch.Tensor | None = None
    semantic_features: torch.Tensor | None = None
    loss: torch.Tensor | None = None


class EvoTokCodebook(nn.Module):
    """Codebook of one level: K entries, each the EMA of the vectors that it was chosen for."""

    cluster_size: torch.Tensor  # (K,)
    step: torch.Tensor  # ()
    vector_sum: torch.Tensor | None  # (K, C)

    def __init__(self, config: EvoTokVQConfig):
        super().__init__()
        self.decay = config.codebook_decay
        self.epsilon = config.codebook_epsilon
        self.warmup_steps = config.codebook_warmup_steps
        self.restart_threshold = config.codebook_restart_threshold
        size, dim = config.codebook_size, config.codebook_dim
        # A parameter, so that it is counted, sharded and moved like others; no optimizer updates it.
        self.weight = nn.Parameter(torch.empty(size, dim), requires_grad=False)
        self.register_buffer("cluster_size", torch.zeros(size))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("vector_sum", torch.zeros(size, dim) if config.codebook_keeps_sums else None)

    def train(self, mode: bool = True) -> "EvoTokCodebook":
        """Sets the mode, as in PyTorch, and freezes the entries: `from_pretrained` makes new parameters before it calls
        `eval()`."""
        self.weight.requires_grad_(False)
        return super().train(mode)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the nearest codes (M,) of vectors (M, C) float32, or the entries (..., C) of codes (...) int64.

        One method for both, because Accelerate loads offloaded weights in hooks of `forward`.
        """
        if inputs.is_floating_point():
            return find_nearest_codes(inputs, self.weight)
        return F.embedding(inputs, self.weight)


def _refuse_missing(codes: torch.Tensor) -> None:
    """Raises ValueError for code -1, that of features that are not finite."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or codes.is_meta:
        return
    if (codes < 0).any():
        raise ValueError(
            "The image tokenizer's features are NaN or infinite and have no codes: check weights and precision."
        )


class EvoTokResidualVectorQuantizer(nn.Module):
    """Residual quantizer: each level quantizes the residual of the levels before it (Eq. 2)."""

    codebooks: Sequence[EvoTokCodebook]  # a ModuleList, whose modules have no type

    def __init__(self, config: EvoTokVQConfig):
        super().__init__()
        self.num_pixel_codebooks = config.num_pixel_codebooks
        self.codebook_size = config.codebook_size
        self.loss_reduction = config.vq_loss_reduction
        self.codebooks = nn.ModuleList(EvoTokCodebook(config) for _ in range(config.num_codebooks))

    def _apply(self, fn, recurse=True):
        """Moves the codebooks, as in PyTorch, which casts by this method, too; they stay in fp32."""
        return super()._apply(move_without_cast(fn), recurse)

    def forward(self, features: torch.Tensor) -> EvoTokQuantizerOutput:
        """Quantizes features, and in training mode updates the codebooks.

        Args:
            features: (B, N, C), any floating dtype; computed in float32. Features that are not finite have the code -1
                and update nothing: in training the loss is not finite either, and no step waits for a check.

        Raises:
            ValueError: features that are not finite, in evaluation.
        """
        with torch.autocast(features.device.type, enabled=False):
            target = features.float()
            residual = target.detach()
            approximation = torch.zeros_like(residual)
            vectors, codes, errors, pixel_features = [], [], [], approximation
            for level, codebook in enumerate(self.codebooks, start=1):
                flat = residual.flatten(0, 1)  # (M, C)
                chosen = codebook(flat)
                entries = codebook(chosen.clamp(min=0)).view_as(residual)
                approximation = approximation + entries
                residual = residual - entries
                errors.append((target - approximation).square().mean((0, 1)))  # (C,)
                vectors.append(flat)
                codes.append(chosen)
                if level == self.num_pixel_codebooks:
                    pixel_features = approximation
            if self.training:
                update_codebooks(self.codebooks, torch.stack(vectors), torch.stack(codes))
            else:
                _refuse_missing(codes[0])
            errors = torch.stack(errors)  # (D, C)
            return EvoTokQuantizerOutput(
                codes=torch.stack(codes, dim=-1).view(*features.shape[:2], -1),
                pixel_features=target + (pixel_features - target).detach(),
                semantic_features=target + (approximation - target).detach(),
                loss=errors.mean() if self.loss_reduction == "mean" else errors.sum(),
            )

    @torch.no_grad()
    def encode(self, features: torch.Tensor, depth: int | None = None) -> torch.Tensor:
        """Encodes features without updating the codebooks, at a depth (all levels by default): (B, N, C) -> codes
        (B, N, d) int64.

        Raises:
            ValueError: a depth beyond the levels; features that are not finite, checked at the end so that no level
                waits for the device. In a compiled or exported graph their code is -1.
        """
        depth = len(self.codebooks) if depth is None else depth
        if not 1 <= depth <= len(self.codebooks):
            raise ValueError(f"depth={depth} must be between 1 and the {len(self.codebooks)} levels of the codebooks.")
        with disable_autocast(features.device.type):
            residual, codes = features.float().flatten(0, 1), []
            for level in range(depth):
                codes.append(self.codebooks[level](residual))
                residual = residual - self.codebooks[level](codes[-1].clamp(min=0))
        _refuse_missing(codes[0])
        return torch.stack(codes, dim=-1).view(*features.shape[:2], -1)

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Looks up the entry of every code, not summed: (..., d) int64 -> (..., d, C), at any depth d <= D."""
        self._check_codes(codes)
        return torch.stack([self.codebooks[level](codes[..., level]) for level in range(codes.shape[-1])], dim=-2)

    @torch.no_grad()
    def stack_codebooks(self, levels: int, device: torch.device) -> torch.Tensor:
        """Stacks the entries of the first `levels` levels into one contiguous tensor (levels, K, C).

        Args:
            device: of the codes to look up; weights that Accelerate offloads are on `meta` between calls.
        """
        codes = torch.arange(self.codebook_size, device=device)[:, None].expand(-1, levels)
        return self.embed(codes).transpose(0, 1).contiguous()

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Sums the entries of codes, Eq. 4: (..., d) int64 -> (..., C), at any depth d <= D."""
        self._check_codes(codes)
        total = self.codebooks[0](codes[..., 0])
        for level in range(1, codes.shape[-1]):
            total = total + self.codebooks[level](codes[..., level])
        return total

    def _check_codes(self, codes: torch.Tensor) -> None:
        if codes.dtype not in (torch.int32, torch.int64) or not 1 <= codes.shape[-1] <= len(self.codebooks):
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} and dtype {codes.dtype} must be int64 with 1 to "
                f"{len(self.codebooks)} levels in the last dimension."
            )
