"""The search: its codes equal those of a float64 search for any data, block size and dtype of the coarse pass."""

import pytest
import torch

from evotok.modeling_evotok import nearest_code_evotok
from evotok.modeling_evotok.nearest_code_evotok import find_nearest_codes


def exact_codes(vectors, codebook):
    return torch.cdist(vectors.double(), codebook.double()).argmin(1)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check_codes(codes, vectors, codebook):
    """Checks that codes are nearest in float64, but for ties in float32."""
    distances = torch.cdist(vectors.double(), codebook.double())
    assert codes.dtype == torch.long and codes.shape == (len(vectors),)
    assert (distances.gather(1, codes[:, None])[:, 0] <= distances.amin(1) * (1 + 1e-6)).all()
    assert (codes != distances.argmin(1)).sum() <= 1, "ties in float32 are rare"


@pytest.fixture(params=[torch.bfloat16, torch.float32])
def coarse(request, monkeypatch):
    """Selects each dtype of the coarse pass, on any machine."""
    monkeypatch.setattr(nearest_code_evotok, "_coarse_dtype", lambda device: request.param)


def entries_with_an_outlier():
    codebook = normal(512, 16)
    codebook[7] = 1e6
    return codebook


CASES = {
    "plain": (normal(300, 16), normal(4096, 16, seed=2)),
    "no whole groups": (normal(300, 16), normal(100, 16, seed=2)),
    "one entry": (normal(5, 3), normal(1, 3, seed=2)),
    "narrow": (normal(300, 1), normal(64, 1, seed=2)),
    "small": (1e-12 * normal(100, 16), 1e-12 * normal(512, 16, seed=2)),
    "large": (1e6 * normal(100, 16), 1e6 * normal(512, 16, seed=2)),
    "far from zero": (normal(100, 16) + 100, normal(512, 16, seed=2) + 100),
    "much smaller than the entries": (1e-3 * normal(100, 16), normal(512, 16, seed=2)),
    "much larger than the entries": (1e3 * normal(100, 16), normal(512, 16, seed=2)),
    "close to an entry": (normal(512, 16, seed=2)[::5] + 1e-3 * normal(103, 16), normal(512, 16, seed=2)),
    "entries close to each other": (normal(100, 16), 1 + 1e-3 * normal(512, 16, seed=2)),
    "an outlier": (normal(100, 16), entries_with_an_outlier()),
    "no vectors": (torch.zeros(0, 16), normal(512, 16)),
}


@pytest.mark.parametrize("case", CASES)
def test_codes_equal_double_precision(case, coarse):
    vectors, codebook = CASES[case]
    check_codes(find_nearest_codes(vectors, codebook), vectors, codebook)


def test_coarse_pass_alone_has_wrong_codes():
    vectors, codebook = CASES["plain"]
    scores = codebook.square().sum(1) / 2 - vectors.bfloat16().float() @ codebook.bfloat16().float().t()
    assert (scores.bfloat16().argmin(1) != exact_codes(vectors, codebook)).sum() > 3


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_non_finite_vectors_have_code_minus_one(value, coarse):
    vectors, codebook = normal(300, 16), normal(4096, 16, seed=2)
    expected = find_nearest_codes(vectors, codebook)
    vectors[7, 3] = vectors[200] = value
    expected[[7, 200]] = -1
    assert torch.equal(find_nearest_codes(vectors, codebook), expected)


def test_first_of_equal_entries_is_selected(coarse):
    codebook = normal(256, 8)
    codebook[[100, 200]] = codebook[3].clone()
    assert find_nearest_codes(codebook[3:4], codebook).item() == 3
    assert find_nearest_codes(normal(40, 8), codebook[:1].expand(300, 8)).unique().tolist() == [0]


def test_blocks_bound_the_memory_and_keep_the_codes(monkeypatch):
    """With many equal entries the candidates are searched in parts."""
    vectors, codebook = normal(64, 4, seed=3), normal(16, 4).repeat(64, 1)  # 64 equal groups
    monkeypatch.setitem(nearest_code_evotok._BLOCK, "cpu", (48, 48))
    sizes = []
    monkeypatch.setattr(
        torch, "cdist", lambda a, b, cdist=torch.cdist, **kw: sizes.append(b.numel()) or cdist(a, b, **kw)
    )
    codes = find_nearest_codes(vectors, codebook)
    assert max(sizes) <= 8 * 64 * 16 * 4 and len(sizes) > 2
    assert torch.equal(codes, exact_codes(vectors, codebook[:16]))


@pytest.mark.parametrize("graph", ["compiled", "traced"])
def test_graphs_search_with_fixed_shapes(graph):
    vectors, codebook = normal(300, 16), CASES["plain"][1]
    expected = exact_codes(vectors, codebook)
    vectors[7, 3], expected[7] = float("nan"), -1
    if graph == "compiled":
        search = torch.compile(find_nearest_codes, fullgraph=True, backend="eager")
    else:
        search = torch.jit.trace(find_nearest_codes, (vectors, codebook), check_trace=False)
    assert torch.equal(search(vectors, codebook), expected)


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@on_a_gpu
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_gpu_codes_equal_double_precision(case, kernels, monkeypatch):
    vectors, codebook = (tensor.cuda() for tensor in CASES[case])
    if not kernels:
        monkeypatch.setattr(nearest_code_evotok, "_kernels", lambda device, width: None)
    check_codes(find_nearest_codes(vectors, codebook), vectors, codebook)


@on_a_gpu
def test_gpu_search_bounds_the_memory_and_can_be_captured():
    vectors, codebook = normal(16384, 32).cuda(), normal(32768, 32, seed=2).cuda()
    expected = find_nearest_codes(vectors, codebook)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    find_nearest_codes(vectors, codebook)
    assert torch.cuda.max_memory_allocated() - before < len(vectors) * len(codebook) * 4 / 16
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes = find_nearest_codes(vectors, codebook)
    graph.replay()
    assert torch.equal(codes, expected)
