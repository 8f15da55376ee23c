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
"""Exact nearest-neighbour search in one codebook, at the speed of a bfloat16 matmul.

A coarse pass scores all entries with inputs rounded to bfloat16 and keeps the minimum of each group of entries only. A
group whose minimum lies within a proven error bound of the best is searched again with float32 differences. The
rounding therefore adds a second search of a few groups, but no wrong code.

The bound. With hats for values rounded to bfloat16, u = 2^-8, and o a constant of the vector that keeps scores above 0,

    c_j = o - x.e_j + |e_j|^2 / 2        is half the squared distance, up to a constant
    |coarse_j - c_j| <= E + u coarse_j   where E = r (|x - x^| + |x^| u) + 3 g r^2

for every entry with |e_j| <= r, by Cauchy-Schwarz; g = (C + 5) 2^-23 bounds the error of the float32 sum relative to
its terms, for units that truncate, too. Let b be the coarse best and w the true nearest. |e_w| and |e_b| are at most
|x| + d_b, with d_b the distance to b, which the coarse score gives up to its own error: E + u coarse_b < 0.013 r^2, so
that r = 1.2 (|x| + d_b^) is large enough. Now c_w <= c_b, and rounding is monotonic:
coarse_w <= (1 + 1.01 u) coarse_b + 2 E.

On a GPU with Triton the kernels of `nearest_code_triton_evotok` compute it, elsewhere torch does.

Shapes: M vectors, R of them in a block, C codebook width, K codebook size, G = K / 16 groups, P pairs of group and row.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F


_GROUP = 16
# Rows and entries of one block, whose scores fit into the second-level cache of one core or of the GPU.
_BLOCK = {"cpu": (512, 1024), "cuda": (4096, 4096)}
_MAX_KEY_WIDTH = 128  # up to which tiles of keys fit into a GPU's shared memory
# Groups per row that are searched again at once. There are more where many entries are about as near as the nearest: in
# codebooks with equal entries, and for vectors far from all entries.
_MAX_PAIRS = 8


@torch.no_grad()
def find_nearest_codes(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Finds the nearest codebook entry in Euclidean distance, Eq. 3; the first one on ties.

    Two entries tie if their distances, summed from float32 differences, are equal, that is, to about 1e-7.

    Args:
        vectors: (M, C) float32.
        codebook: (K, C) float32, or of lower precision in a model that was cast after loading.

    Returns:
        (M,) int64, -1 for a vector that is not finite. Memory beyond the result is O(K + M C) plus a constant, not
        M x K; but in a compiled or exported graph it is M x K, and the search one float32 matmul.
    """
    finite = is_finite(vectors)
    # A vector that is not finite would be compared with every entry.
    codes = _search_finite(vectors.masked_fill(~finite[:, None], 0.0), codebook.float())
    return codes.masked_fill(~finite, -1)


def _search_finite(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        # A graph needs shapes that do not depend on the data; those of the candidates do.
        return (codebook.square().sum(1) / 2 - vectors @ codebook.t()).argmin(1)
    size = codebook.shape[0]
    padded = F.pad(codebook.t(), (0, -size % _GROUP), mode="replicate").t() if size % _GROUP else codebook
    if kernels := _kernels(vectors.device, padded.shape[1]):
        return kernels(vectors, padded, _GROUP, _coarse_dtype(vectors.device)).clamp(max=size - 1)
    keys = _coarse_keys(padded)
    rows, _ = _BLOCK.get(vectors.device.type, _BLOCK["cpu"])
    codes = [_search_block(block, padded, keys) for block in vectors.split(rows)]
    return torch.cat(codes).clamp(max=size - 1)


def is_finite(vectors: torch.Tensor) -> torch.Tensor:
    """Returns which vectors (..., C) hold neither NaN nor an infinity, (...), by operations that any graph can hold."""
    total = vectors.sum(-1)
    return total - total == 0


def _coarse_dtype(device: torch.device) -> torch.dtype:
    """Returns bfloat16 where its matmuls are fast, else float32; values are rounded to bfloat16 in both cases."""
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return torch.bfloat16 if able.get("amx_tile") or able.get("avx512_bf16") else torch.float32
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _coarse_keys(codebook: torch.Tensor) -> torch.Tensor:
    """Builds rows [e^, three parts of |e|^2 / 2, 1]: (K, C) -> (K, C + 4) in the coarse dtype."""
    size, dim = codebook.shape
    keys = codebook.new_empty(size, dim + 4, dtype=torch.bfloat16)
    keys[:, :dim] = codebook
    rest = torch.linalg.vector_norm(codebook, dim=1).square() / 2
    for part in range(3):  # 24 bits as three parts of 8
        keys[:, dim + part] = rest
        rest = rest - keys[:, dim + part]
    keys[:, -1] = 1
    return keys.to(_coarse_dtype(codebook.device))


def _search_block(vectors: torch.Tensor, codebook: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Finds the nearest codes of one block, (R, C) -> (R,) int64, in a codebook of whole groups."""
    rows, dim = vectors.shape
    queries = _queries(vectors)  # (R, C + 4)
    minima = _group_minima(keys, queries.t().contiguous().to(keys.dtype))  # (G, R)
    limits = _limits(vectors, queries, minima.amin(0).view(keys.dtype).float())
    group, row = _within(minima, limits.to(keys.dtype).view(minima.dtype))  # (P,)
    shortest = vectors.new_full((rows,), torch.inf)
    codes = torch.full_like(shortest, len(codebook), dtype=torch.long)
    share = max(1, _MAX_PAIRS * rows)
    for groups, of in zip(group.split(share), row.split(share), strict=True):
        entries = codebook.view(-1, _GROUP, dim)[groups]  # (P, 16, C)
        distances = torch.cdist(vectors[of][:, None], entries, compute_mode="donot_use_mm_for_euclid_dist")
        distance, index = distances.squeeze(1).min(1)  # (P,)
        before = shortest
        shortest = before.scatter_reduce(0, of, distance, "amin")
        codes.masked_fill_(shortest < before, len(codebook))  # codes found before are farther away
        code = (groups * _GROUP + index).masked_fill(distance > shortest[of], len(codebook))
        codes.scatter_reduce_(0, of, code, "amin")
    return codes


def _queries(vectors: torch.Tensor) -> torch.Tensor:
    """Builds rows [-x^, 1, 1, 1, o]: (R, C) -> (R, C + 4) bfloat16; the product with a key is the coarse score."""
    offset = (0.5 + 2**-5) * torch.linalg.vector_norm(vectors, dim=1, keepdim=True).square()
    return torch.cat([-vectors, vectors.new_ones(len(vectors), 3), offset], dim=1).bfloat16()


def _limits(vectors: torch.Tensor, queries: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Computes the bound (R,) on the coarse score of the true nearest from the best coarse score (R,) of each row."""
    dim = vectors.shape[1]
    length = torch.linalg.vector_norm(vectors, dim=1)  # (R,)
    nearest = (2 * (best - queries[:, -1]) + length.square()).clamp(min=0).sqrt()
    radius = 1.2 * (length + nearest)
    lost = torch.linalg.vector_norm(vectors + queries[:, :dim], dim=1)
    error = radius * (lost + 1.01 * 2**-8 * length) + 3 * (dim + 5) * 2**-23 * radius.square()
    return 1.004 * best + 2 * error


def _kernels(device: torch.device, dim: int) -> Callable | None:
    """Returns the search by Triton kernels, for GPUs with bfloat16 units and keys up to `_MAX_KEY_WIDTH`, else None."""
    if device.type != "cuda" or dim + 4 > _MAX_KEY_WIDTH or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        from .nearest_code_triton_evotok import search
    except ImportError:
        return None
    return search


def _within(minima: torch.Tensor, limit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the groups and rows (P,) of minima (G, R) within the row's limit (R,), by stretches of groups first."""
    stretch = math.gcd(len(minima), 32)
    stretches = minima.view(len(minima) // stretch, stretch, minima.shape[1])
    which, row = (stretches.amin(1) <= limit).nonzero(as_tuple=True)
    pair, inside = (stretches[which, :, row] <= limit[row, None]).nonzero(as_tuple=True)
    return which[pair] * stretch + inside, row[pair]


def _group_minima(keys: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Computes the least coarse score of every group: (K, C + 4), (C + 4, R) -> (G, R).

    Scores in bfloat16 are returned as int16: positive floats have the order of their bits, and torch reduces integers
    with vector instructions.
    """
    rows, columns = queries.shape[1], _BLOCK.get(keys.device.type, _BLOCK["cpu"])[1]
    as_bits = keys.dtype == torch.bfloat16
    dtype = torch.int16 if as_bits else keys.dtype
    minima = torch.empty(len(keys) // _GROUP, rows, dtype=dtype, device=keys.device)
    scores = keys.new_empty(min(columns, len(keys)), rows)
    for start in range(0, len(keys), columns):
        block = keys[start : start + columns]
        block_scores = torch.mm(block, queries, out=scores[: len(block)]).view(dtype)
        first = start // _GROUP
        out = minima[first : first + len(block) // _GROUP]
        torch.amin(block_scores.view(len(out), _GROUP, rows), 1, out=out)
    return minima
