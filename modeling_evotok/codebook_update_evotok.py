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
"""Training of codebooks: one step of the EMA of all levels at once (paper, Sec. 3.1), and restarts of unused entries.

On a GPU the levels are stacked, so that the number of kernels does not depend on their number. There is one message to
the other processes, and nothing waits for the device, so that a CUDA graph can hold the step.

Shapes: D levels, M vectors of this process, C codebook width, K codebook size.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F

from .nearest_code_evotok import is_finite


@torch.no_grad()
def update_codebooks(codebooks: Sequence, vectors: torch.Tensor, codes: torch.Tensor) -> None:
    """Updates the EMA of every level with the global batch, then restarts unused entries.

    The sums of vectors need no buffer: but for the smoothing they are `weight * cluster_size`; a buffer of a converted
    checkpoint is updated all the same. Before `warmup_steps` only restarts change entries.

    An entry is the mean of its vectors even if fewer than one a step are assigned to it, which happens where restarts
    are off or have a low threshold. The paper's release divides by at least one there, so that such entries shrink
    towards the origin and are chosen ever less.

    Args:
        codebooks: D [`EvoTokCodebook`]s with equal settings.
        vectors: (D, M, C) float32, residuals of this process; those that are not finite are ignored.
        codes: (D, M) int64, the entries they are assigned to.
    """
    codebooks = list(codebooks)
    # On a CPU the tensors of one level stay in its cache; elsewhere the number of kernels and messages counts.
    alone = vectors.device.type == "cpu" and _rank_and_world()[1] == 1
    at_once = 1 if alone else len(codebooks)
    for start in range(0, len(codebooks), at_once):
        levels = slice(start, start + at_once)
        _update(codebooks[levels], vectors[levels], codes[levels])


def _sums_and_counts(vectors: torch.Tensor, codes: torch.Tensor, size: int) -> torch.Tensor:
    """Sums the vectors of each entry and counts them: (D, M, C), (D, M) -> (D, K, C + 1)."""
    levels, _, dim = vectors.shape
    statistics = vectors.new_zeros(levels * size, dim + 1)
    learned = is_finite(vectors) & (codes >= 0)
    counted = F.pad(vectors, (0, 1), value=1.0).masked_fill(~learned[..., None], 0.0)
    rows = codes.clamp(min=0) + size * torch.arange(levels, device=codes.device)[:, None]
    return statistics.index_add_(0, rows.flatten(), counted.flatten(0, 1)).view(levels, size, dim + 1)


def _sample(vectors: torch.Tensor, size: int) -> torch.Tensor:
    """Samples the share of this process in K vectors of the global batch: (D, M, C) -> (D, K, C).

    Process r fills rows r, r + world, ..., and others with zeros. A level samples without repetition where it has
    enough vectors.
    """
    rank, world = _rank_and_world()
    (levels, count, dim), share = vectors.shape, len(range(rank, size, world))
    if share <= count:
        chosen = torch.rand(levels, count, device=vectors.device).argsort(dim=1)[:, :share]
    else:
        chosen = torch.randint(count, (levels, share), device=vectors.device)
    first = count * torch.arange(levels, device=vectors.device)[:, None]
    sampled = vectors.flatten(0, 1)[(first + chosen).flatten()].view(levels, share, dim)
    if world == 1:
        return sampled
    samples = vectors.new_zeros(levels, size, dim)
    samples[:, rank::world] = sampled
    return samples


def _rank_and_world() -> tuple[int, int]:
    ready = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)


def _add_up(statistics: torch.Tensor, samples: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Adds up the tensors of all processes, in one message."""
    if _rank_and_world()[1] == 1:
        return statistics, samples
    if samples is None:
        dist.all_reduce(statistics)
        return statistics, None
    message = torch.cat([statistics, samples], dim=-1)
    dist.all_reduce(message)
    statistics, samples = message.split([statistics.shape[-1], samples.shape[-1]], dim=-1)
    return statistics, samples


def _update(codebooks: list, vectors: torch.Tensor, codes: torch.Tensor) -> None:
    """Takes the step of some levels, as `update_codebooks`."""
    first = codebooks[0]
    size, dim = first.weight.shape
    statistics = _sums_and_counts(vectors, codes, size)  # (D, K, C + 1)
    samples = _sample(vectors, size) if first.restart_threshold else None  # (D, K, C)
    statistics, samples = _add_up(statistics, samples)
    sums, counts = statistics.split([dim, 1], dim=-1)
    weights = torch.stack([codebook.weight for codebook in codebooks])  # (D, K, C)
    old_size = torch.stack([codebook.cluster_size for codebook in codebooks])[..., None]
    steps = torch.stack([codebook.step for codebook in codebooks])[:, None, None]
    keeps_sums = first.vector_sum is not None
    old_sum = torch.stack([codebook.vector_sum for codebook in codebooks]) if keeps_sums else old_size * weights
    new_size = first.decay * old_size + (1 - first.decay) * counts  # (D, K, 1)
    new_sum = old_sum.mul_(first.decay).add_(sums.mul_(1 - first.decay))  # (D, K, C)
    total = new_size.sum(1, keepdim=True)
    smoothed = (new_size + first.epsilon) / (total + size * first.epsilon) * total
    # An entry that was never chosen has no mean.
    moves = (new_size > 0) & (steps >= first.warmup_steps)
    weights = torch.where(moves, new_sum / smoothed.clamp(min=first.epsilon), weights)
    if samples is not None:
        unused = (new_size < first.restart_threshold) & is_finite(samples)[..., None]
        weights = torch.where(unused, samples, weights)
        new_size = new_size.masked_fill(unused, first.restart_threshold)
        moves = moves & ~unused
    if keeps_sums:
        kept = torch.where(moves, new_sum, weights * new_size)
        torch._foreach_copy_([codebook.vector_sum for codebook in codebooks], kept.unbind())
    torch._foreach_copy_([codebook.weight for codebook in codebooks], weights.unbind())
    torch._foreach_copy_([codebook.cluster_size for codebook in codebooks], new_size.squeeze(-1).unbind())
    torch._foreach_add_([codebook.step for codebook in codebooks], 1)
