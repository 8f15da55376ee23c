"""The Triton kernels of the search without a GPU: run by Triton's interpreter, and compiled for two GPUs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="torch for CUDA brings Triton along; elsewhere: make test-triton"
)
HERE = Path(__file__).parent

# One process each, because Triton decides on import whether it compiles or interprets.
INTERPRETED = """
import torch
from test_nearest_code_evotok import CASES, check_codes, exact_codes, normal

from evotok.modeling_evotok import nearest_code_evotok
from evotok.modeling_evotok import nearest_code_triton_evotok as kernels

calls = []
nearest_code_evotok._kernels = lambda device, dim: calls.append(dim) or kernels.search
# The interpreter cannot multiply bfloat16, only round to it.
nearest_code_evotok._coarse_dtype = lambda device: torch.float32
kernels._BLOCK = 20
for case, (vectors, codebook) in CASES.items():
    vectors = vectors[:200:8]
    check_codes(nearest_code_evotok.find_nearest_codes(vectors, codebook), vectors, codebook)

vectors, codebook = normal(130, 8, seed=3), normal(1000, 8)
codebook[[100, 200]] = codebook[3].clone()
vectors[5] = codebook[3]
codes = nearest_code_evotok.find_nearest_codes(vectors, codebook)
assert codes[5] == 3 and torch.equal(codes, exact_codes(vectors, codebook))
assert nearest_code_evotok.find_nearest_codes(vectors[:3], codebook[:1].expand(300, 8)).tolist() == [0, 0, 0]

padded = codebook[:992]
keys, queries = nearest_code_evotok._coarse_keys(padded), nearest_code_evotok._queries(vectors)
written = torch.zeros(992, 16)
kernels._write_keys[(16,)](padded, written, 992, 8, 64, 16)
assert torch.equal(written[:, :8], keys[:, :8]) and written[:, 11].eq(1).all() and not written[:, 12:].any()
torch.testing.assert_close(written[:, 8:11].sum(1), padded.square().sum(1) / 2, rtol=1e-6, atol=0)
minima, offsets = kernels.group_minima(vectors, written, 16)
torch.testing.assert_close(offsets, queries[:, -1].float(), rtol=2**-7, atol=0)
scores = queries.double() @ keys.double().t()
torch.testing.assert_close(minima.double(), scores.view(130, 16, 62).amin(1), rtol=2**-7, atol=1e-6)
codes = torch.zeros(130, dtype=torch.long)
kernels.search_groups(vectors, padded, minima.fill_(torch.nan), offsets, codes)
assert codes.unique().tolist() == [992], "no group within the limit, no entry"
assert len(calls) > len(CASES)
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from evotok.modeling_evotok import nearest_code_triton_evotok as kernels

KEYS = {"codebook": "*fp32", "keys": "*bf16", "size": "i32", "dim": "i32"}
MINIMA = {"vectors": "*fp32", "keys": "*bf16", "minima": "*bf16", "offsets": "*fp32"}
MINIMA |= {"rows": "i32", "groups": "i32", "dim": "i32"}
GROUPS = {"vectors": "*fp32", "codebook": "*fp32", "minima": "*bf16", "offsets": "*fp32", "codes": "*i64"}
GROUPS |= {"groups": "i32", "dim": "i32"}
TILE = {"members": 16, "tile_rows": kernels._ROWS, "tile_groups": kernels._GROUPS, "columns": 128}
for architecture in (80, 90):
    for kernel, arguments, sizes in (
        (kernels._write_keys, KEYS, {"tile": kernels._ENTRIES, "columns": 128}),
        (kernels._group_minima, MINIMA, TILE),
        (kernels._search_groups, GROUPS, {"members": 16, "tile_groups": 2048, "columns": 32}),
    ):
        source = ASTSource(fn=kernel, signature=arguments | dict.fromkeys(sizes, "constexpr"), constexprs=sizes)
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
        assert compiled.asm["cubin"] and compiled.metadata.shared <= 99 * 1024  # the least that such GPUs have
"""


@pytest.mark.parametrize(("script", "interpret"), [(INTERPRETED, "1"), (COMPILED, "0")], ids=["run", "compiled"])
def test_kernels_run_and_compile(script, interpret, tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
