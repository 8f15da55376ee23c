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
"""Exact nearest-neighbour search as three Triton kernels: no score of a single entry is written to memory.

How many groups of a row are searched again is decided on the device: nothing waits for it, and every shape is fixed, so
that a CUDA graph can hold the search. The bound is that of `nearest_code_evotok`, whose names and numbers are used
here; 0.53125 is the share of its o, 2^-8 and 2^-23 are its roundings.

Group g has the entries g, G + g, 2 G + g and so on: minima of groups are elementwise minima of whole tiles.

Shapes: M vectors, R of them in a block, C codebook width, W width of keys and queries (C + 4 and zeros), K entries, G
groups of K / G members.
"""

# Triton is not installed where types are checked; kernels are plain functions there, which have no index.
# pyright: reportMissingImports=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl


# Rows of a block, whose minima are kept in memory; rows and groups of one tile of minima; entries of one program that
# writes keys. With at most 128 columns all fit into registers and shared memory of any GPU since 2020.
_BLOCK, _ROWS, _GROUPS, _ENTRIES = 4096, 128, 64, 64


def search(vectors: torch.Tensor, codebook: torch.Tensor, members: int, dtype: torch.dtype) -> torch.Tensor:
    """Finds the index (M,) int64 of the nearest entry, the first one on ties.

    Args:
        vectors, codebook: (M, C), (K, C) float32; distances are sums of squared differences.
        members: entries of a group; K is a multiple of it.
        dtype: of the matmul; values are rounded to bfloat16 in any case.
    """
    vectors, codebook = vectors.contiguous(), codebook.contiguous()
    size, dim = codebook.shape
    columns = max(16, triton.next_power_of_2(dim + 4))  # as products of tiles require
    keys = codebook.new_empty(size, columns, dtype=dtype)
    codes = torch.empty(len(vectors), dtype=torch.long, device=vectors.device)
    with torch.cuda.device_of(vectors):
        _write_keys[(triton.cdiv(size, _ENTRIES),)](codebook, keys, size, dim, _ENTRIES, columns)
        for block, of_block in zip(vectors.split(_BLOCK), codes.split(_BLOCK), strict=True):
            minima, offsets = group_minima(block, keys, members)
            search_groups(block, codebook, minima, offsets, of_block)
    return codes


def group_minima(vectors: torch.Tensor, keys: torch.Tensor, members: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the least coarse score (R, G) bfloat16 of every group and o (R,) float32 of every row."""
    (rows, dim), groups = vectors.shape, len(keys) // members
    minima = keys.new_empty(rows, groups, dtype=torch.bfloat16)
    offsets = vectors.new_empty(rows)
    grid = (triton.cdiv(groups, _GROUPS), triton.cdiv(rows, _ROWS))
    _group_minima[grid](vectors, keys, minima, offsets, rows, groups, dim, members, _ROWS, _GROUPS, keys.shape[1])
    return minima, offsets


def search_groups(
    vectors: torch.Tensor, codebook: torch.Tensor, minima: torch.Tensor, offsets: torch.Tensor, codes: torch.Tensor
) -> None:
    """Writes into codes (R,) the nearest entry of the groups within the bound: (R, C), (K, C), (R, G), (R,)."""
    (rows, groups), dim = minima.shape, codebook.shape[1]
    sizes = (len(codebook) // groups, triton.next_power_of_2(groups), triton.next_power_of_2(dim))
    _search_groups[(rows,)](vectors, codebook, minima, offsets, codes, groups, dim, *sizes)


@triton.jit
def _write_keys(codebook, keys, size, dim, tile: tl.constexpr, columns: tl.constexpr):
    """Writes rows [e^, three parts of |e|^2 / 2, 1, 0 ...] of one tile of entries."""
    row, column = tl.program_id(0) * tile + tl.arange(0, tile), tl.arange(0, columns)
    inside = row[:, None] < size
    entry = tl.load(codebook + row[:, None] * dim + column[None, :], mask=inside & (column[None, :] < dim), other=0.0)
    rest = tl.sum(entry * entry, 1) / 2
    key = tl.where(column[None, :] == dim + 3, 1.0, entry.to(tl.bfloat16).to(tl.float32))
    for part in tl.static_range(3):  # 24 bits as three parts of 8
        rounded = rest.to(tl.bfloat16).to(tl.float32)
        key = tl.where(column[None, :] == dim + part, rounded[:, None], key)
        rest -= rounded
    tl.store(keys + row[:, None] * columns + column[None, :], key.to(keys.dtype.element_ty), mask=inside)


@triton.jit
def _group_minima(
    vectors, keys, minima, offsets, rows, groups, dim,
    members: tl.constexpr, tile_rows: tl.constexpr, tile_groups: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Computes one tile (rows, groups) of the minima, by products with one member of each group after another."""
    group = tl.program_id(0) * tile_groups + tl.arange(0, tile_groups)
    row = tl.program_id(1) * tile_rows + tl.arange(0, tile_rows)
    column = tl.arange(0, columns)
    inside = (row[:, None] < rows) & (column[None, :] < dim)
    vector = tl.load(vectors + row[:, None] * dim + column[None, :], mask=inside, other=0.0)
    offset = (0.53125 * tl.sum(vector * vector, 1)).to(tl.bfloat16).to(tl.float32)
    tl.store(offsets + row, offset, mask=row < rows)  # all tiles of these rows store the same
    query = tl.where(column[None, :] < dim, -vector, tl.where(column[None, :] < dim + 3, 1.0, 0.0))
    query = tl.where(column[None, :] == dim + 3, offset[:, None], query)
    query = query.to(tl.bfloat16).to(keys.dtype.element_ty)  # rows [-x^, 1, 1, 1, o, 0 ...]
    least = tl.full((tile_rows, tile_groups), float("inf"), tl.float32)
    for member in range(members):
        entry = member * groups + group
        key = tl.load(keys + entry[None, :] * columns + column[:, None], mask=group[None, :] < groups, other=0.0)
        least = tl.minimum(least, tl.dot(query, key))
    inside = (row[:, None] < rows) & (group[None, :] < groups)
    tl.store(minima + row[:, None] * groups + group[None, :], least.to(tl.bfloat16), mask=inside)


@triton.jit
def _search_groups(
    vectors, codebook, minima, offsets, codes, groups, dim,
    members: tl.constexpr, tile_groups: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Searches the groups of one row within its bound, in order."""
    row = tl.program_id(0)
    group, member, column = tl.arange(0, tile_groups), tl.arange(0, members), tl.arange(0, columns)
    vector = tl.load(vectors + row * dim + column, mask=column < dim, other=0.0)
    least = tl.load(minima + row * groups + group, mask=group < groups, other=float("inf")).to(tl.float32)
    best, square = tl.min(least, 0), tl.sum(vector * vector, 0)
    lost = vector - vector.to(tl.bfloat16).to(tl.float32)
    nearest = tl.sqrt(tl.maximum(2 * (best - tl.load(offsets + row)) + square, 0.0))
    radius = 1.2 * (tl.sqrt(square) + nearest)
    error = radius * (tl.sqrt(tl.sum(lost * lost, 0)) + 1.01 / 256 * tl.sqrt(square))
    error += 3.0 / 8388608 * (dim + 5) * radius * radius
    within = (least <= 1.004 * best + 2 * error) & (group < groups)
    code = tl.full((), members * groups, tl.int32)
    shortest = tl.full((), float("inf"), tl.float32)
    current = tl.min(tl.where(within, group, groups), 0)
    while current < groups:
        entry = member * groups + current
        entries = tl.load(codebook + entry[:, None] * dim + column[None, :], mask=column[None, :] < dim, other=0.0)
        difference = entries - vector[None, :]
        distance = tl.sum(difference * difference, 1)  # (members,)
        nearest = tl.min(distance, 0)
        first = tl.min(tl.where(distance == nearest, entry, members * groups), 0)
        code = tl.where(nearest < shortest, first, tl.where(nearest == shortest, tl.minimum(code, first), code))
        shortest = tl.minimum(shortest, nearest)
        current = tl.min(tl.where(within & (group > current), group, groups), 0)
    tl.store(codes + row, code)
