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
"""The two passes of the search as kernels for GPUs: no score of a single entry reaches memory.

How many groups a row looks at again is known to the device alone: nothing waits for it, and every shape is fixed, so
that a CUDA graph can hold the search. The bound that makes it exact is that of `search_evotok`.

Group g has the entries g, G + g, 2 G + g and so on: its minimum is that of whole tiles, element by element.

Shapes: R vectors, C codebook width, W = C + 4 width of keys and queries, K entries, G groups of K / G members.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl


# Of one tile of minima; with at most 128 columns it fits into the memory of any GPU since 2020.
_ROWS, _GROUPS = 128, 64


def group_minima(queries: torch.Tensor, keys: torch.Tensor, members: int) -> torch.Tensor:
    """Least coarse score of every group of so many members: (R, W), (K, W) -> (R, G) bfloat16.

    Keys and queries have values of bfloat16, and that dtype for the sake of speed.
    """
    columns = max(16, triton.next_power_of_2(keys.shape[1]))  # what a product of tiles asks for
    queries, keys = (F.pad(rows, (0, columns - rows.shape[1])).to(keys.dtype) for rows in (queries, keys))
    rows, groups = len(queries), len(keys) // members
    minima = keys.new_empty(rows, groups, dtype=torch.bfloat16)
    grid = (triton.cdiv(groups, _GROUPS), triton.cdiv(rows, _ROWS))
    with torch.cuda.device_of(keys):
        _group_minima[grid](queries, keys, minima, rows, groups, members, _ROWS, _GROUPS, columns)
    return minima


def search_groups(
    vectors: torch.Tensor, codebook: torch.Tensor, minima: torch.Tensor, limits: torch.Tensor
) -> torch.Tensor:
    """Index (R,) int64 of the nearest entry among the groups within the row's limit, the first on ties; K without any.

    Args:
        vectors, codebook: (R, C), (K, C) float32; distances are sums of squared differences.
        minima, limits: (R, G) of `group_minima`, (R,) float32.
    """
    vectors, codebook = vectors.contiguous(), codebook.contiguous()
    (rows, groups), dim = minima.shape, codebook.shape[1]
    codes = torch.empty(rows, dtype=torch.long, device=vectors.device)
    sizes = (len(codebook) // groups, triton.next_power_of_2(groups), triton.next_power_of_2(dim))
    with torch.cuda.device_of(vectors):
        _search_groups[(rows,)](vectors, codebook, minima, limits, codes, groups, dim, *sizes)
    return codes


@triton.jit
def _group_minima(
    queries, keys, minima, rows, groups,
    members: tl.constexpr, tile_rows: tl.constexpr, tile_groups: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """One tile (rows, groups) of the minima: products of the rows with one member of each group after another."""
    group = tl.program_id(0) * tile_groups + tl.arange(0, tile_groups)
    row = tl.program_id(1) * tile_rows + tl.arange(0, tile_rows)
    column = tl.arange(0, columns)
    query = tl.load(queries + row[:, None] * columns + column[None, :], mask=row[:, None] < rows, other=0.0)
    least = tl.full((tile_rows, tile_groups), float("inf"), tl.float32)
    for member in range(members):
        entry = member * groups + group
        key = tl.load(keys + entry[None, :] * columns + column[:, None], mask=group[None, :] < groups, other=0.0)
        least = tl.minimum(least, tl.dot(query, key))
    inside = (row[:, None] < rows) & (group[None, :] < groups)
    tl.store(minima + row[:, None] * groups + group[None, :], least.to(tl.bfloat16), mask=inside)


@triton.jit
def _search_groups(
    vectors, codebook, minima, limits, codes, groups, dim,
    members: tl.constexpr, tile_groups: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """One row: its groups within the limit, in order."""
    row = tl.program_id(0)
    group, member, column = tl.arange(0, tile_groups), tl.arange(0, members), tl.arange(0, columns)
    vector = tl.load(vectors + row * dim + column, mask=column < dim, other=0.0)
    least = tl.load(minima + row * groups + group, mask=group < groups, other=float("inf")).to(tl.float32)
    within = (least <= tl.load(limits + row)) & (group < groups)
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
