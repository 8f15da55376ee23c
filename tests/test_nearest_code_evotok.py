"""The search: the codes of a float64 search, whatever the data, the block sizes and the dtype of the coarse pass."""

import pytest
import torch

from evotok.modeling_evotok import nearest_code_evotok
from evotok.modeling_evotok.nearest_code_evotok import find_nearest_codes


def nearest(vectors, codebook):
    return torch.cdist(vectors.double(), codebook.double()).argmin(1)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[torch.bfloat16, torch.float32])
def coarse(request, monkeypatch):
    """Both dtypes of the coarse pass, on any machine."""
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
    "an entry far out": (normal(100, 16), entries_with_an_outlier()),
    "nothing": (torch.zeros(0, 16), normal(512, 16)),
}


@pytest.mark.parametrize("case", CASES)
def test_codes_are_those_of_double_precision(case, coarse):
    vectors, codebook = CASES[case]
    codes, expected = find_nearest_codes(vectors, codebook), nearest(vectors, codebook)
    assert codes.dtype == torch.long and codes.shape == (len(vectors),)
    distances = torch.cdist(vectors.double(), codebook.double())
    chosen, least = (distances.gather(1, c[:, None]) for c in (codes, expected))
    assert (chosen <= least * (1 + 1e-6)).all()
    assert (codes != expected).sum() <= 1, "ties in float32 are rare"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nothing_is_near_to_what_is_not_finite(value, coarse):
    vectors, codebook = normal(300, 16), normal(4096, 16, seed=2)
    expected = find_nearest_codes(vectors, codebook)
    vectors[7, 3] = vectors[200] = value
    codes = find_nearest_codes(vectors, codebook)
    assert codes[7] == codes[200] == -1
    codes[[7, 200]] = expected[[7, 200]]
    assert torch.equal(codes, expected)
    traced = torch.jit.trace(find_nearest_codes, (vectors, codebook), check_trace=False)
    assert traced(vectors, codebook)[7] == -1


def test_the_coarse_pass_alone_would_be_wrong(coarse):
    """What the second look is for."""
    vectors, codebook = CASES["plain"]
    alone = (codebook.square().sum(1) / 2 - vectors.bfloat16().float() @ codebook.bfloat16().float().t()).bfloat16()
    assert (alone.argmin(1) != nearest(vectors, codebook)).sum() > 3


def test_the_first_of_equal_entries_is_taken(coarse):
    codebook = normal(256, 8)
    codebook[[100, 200]] = codebook[3].clone()
    assert find_nearest_codes(codebook[3:4], codebook).item() == 3
    assert find_nearest_codes(normal(40, 8), codebook[:1].expand(300, 8)).unique().tolist() == [0]
    assert find_nearest_codes(torch.zeros(40, 8), torch.zeros(300, 8)).unique().tolist() == [0]


def test_block_sizes_change_nothing(monkeypatch, coarse):
    vectors, codebook = CASES["plain"]
    whole = find_nearest_codes(vectors, codebook)
    monkeypatch.setitem(nearest_code_evotok._BLOCK, "cpu", (7, 48))
    assert torch.equal(find_nearest_codes(vectors, codebook), whole)


def test_no_tensor_has_all_distances(monkeypatch):
    """Many copies are many candidates: they are met in halves."""
    monkeypatch.setitem(nearest_code_evotok._BLOCK, "cpu", (64, 64))
    seen = []
    monkeypatch.setattr(
        torch, "cdist", lambda a, b, cdist=torch.cdist, **kw: seen.append(b.numel()) or cdist(a, b, **kw)
    )
    codebook = normal(16, 4).repeat(64, 1)  # 64 groups, each the same
    assert torch.equal(
        find_nearest_codes(normal(64, 4, seed=3), codebook), nearest(normal(64, 4, seed=3), codebook[:16])
    )
    assert max(seen) <= 8 * 64 * 16 * 4 and len(seen) > 1


def test_a_graph_searches_with_fixed_shapes():
    vectors, codebook = CASES["plain"]
    compiled = torch.compile(find_nearest_codes, fullgraph=True, backend="eager")
    assert torch.equal(compiled(vectors, codebook), nearest(vectors, codebook))


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU has a search of its own")


@on_a_gpu
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_finds_the_nearest(case, kernels, monkeypatch):
    vectors, codebook = (tensor.cuda() for tensor in CASES[case])
    if not kernels:
        monkeypatch.setattr(nearest_code_evotok, "_kernels", lambda device, width: None)
    codes, distances = find_nearest_codes(vectors, codebook), torch.cdist(vectors.double(), codebook.double())
    assert (distances.gather(1, codes[:, None])[:, 0] <= distances.amin(1) * (1 + 1e-6)).all()
    assert (codes != distances.argmin(1)).sum() <= 1


@on_a_gpu
def test_a_gpu_holds_a_fraction_of_the_distances_and_records_the_search():
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
