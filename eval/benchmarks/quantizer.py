"""Benchmark of residual quantization: search and training step, against a loop of `torch.cdist` and ResidualVQ."""

from collections.abc import Callable, Iterator

import torch

from ...modeling_evotok.configuration_evotok import EvoTokVQConfig
from ...modeling_evotok.quantization_evotok import EvoTokResidualVectorQuantizer
from .meters import Setting, best_seconds, peak_extra_mib, peak_flops, waits_for_device
from .report import Row, comparison


# images, positions, levels, codes, width
SIZES = {"full": (16, 256, 16, 32768, 32), "tiny": (2, 16, 3, 64, 8)}
SHRINKAGE = 0.8  # of the residual's deviation from level to level, at the paper's size
# How often each entry is chosen in a step of the paper's 256 images: enough that no entry restarts in the first steps.
# Restarted entries are vectors of the batch, whose search would find exact copies, as in no training.
CHOSEN = 2
TOLERANCE = 1e-4  # of entries after a step, by the largest value of their level: sums of float32 in any order


def run(setting: Setting) -> Iterator[Row]:
    """Measures the rows `search`, `residual_vq` (with `vector-quantize-pytorch` installed), `train_step`, and on CUDA
    `train_step_graph`, the same step as a CUDA graph."""
    images, positions, levels, codes, width = SIZES[setting.size]
    quantizer = _quantizer(levels, codes, width).to(setting.device).eval()
    features = torch.randn(images, positions, width).to(setting.device)
    flops = peak_flops(torch.float32, setting)
    floor = 2 * images * positions * levels * codes * width / flops

    def search():
        return quantizer.encode(features)

    def reference():
        return search_with_cdist(quantizer, features)

    seconds, reference_seconds = best_seconds(search, reference, setting=setting)
    peak, equal = peak_extra_mib(search, setting.device), is_nearest(quantizer, features, search())
    row = comparison("search", "torch.cdist and argmin", seconds, reference_seconds, floor, peak, equal)
    yield row | {"matmul_gflops": flops / 1e9}
    yield _other_library(features, search, floor, setting, (levels, codes, width))

    @torch.no_grad()
    def step():
        quantizer(features)

    def measured(name: str, function: Callable[[], None]) -> Row:
        seconds, search_seconds = best_seconds(function, search, setting=setting)
        peak, equal = peak_extra_mib(function, setting.device), updates_entries(quantizer, features, function)
        row = comparison(name, "the search alone", seconds, search_seconds, floor, peak, equal)
        return row | {"over_search": seconds / search_seconds}

    quantizer.train()
    row = measured("train_step", step)
    if setting.device == "cpu":
        yield row
        return
    waits = waits_for_device(step)
    yield row | {"synchronizes": waits}
    if waits:
        yield {"name": "train_step_graph", "note": "not measured: the step waits for the device"}
    else:
        yield measured("train_step_graph", _captured(step))


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """Captures a step, which ran before, as a CUDA graph; the returned function replays it."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what libraries set up for a stream must not be captured
        step()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def _quantizer(levels: int, codes: int, width: int) -> EvoTokResidualVectorQuantizer:
    torch.manual_seed(0)
    config = EvoTokVQConfig(
        codebook_size=codes, codebook_dim=width, num_codebooks=levels, num_pixel_codebooks=min(4, levels)
    )
    quantizer = EvoTokResidualVectorQuantizer(config)
    for level, codebook in enumerate(quantizer.codebooks):
        codebook.weight.data.normal_(std=SHRINKAGE**level)
        codebook.cluster_size.fill_(CHOSEN)
    return quantizer


@torch.no_grad()
def search_with_cdist(quantizer: EvoTokResidualVectorQuantizer, features: torch.Tensor) -> torch.Tensor:
    """Searches codes by the distances to all entries of a level and their argmin: (B, N, C) -> (B, N, D)."""
    residual, codes = features.flatten(0, 1), []
    for codebook in quantizer.codebooks:
        codes.append(torch.cdist(residual, codebook.weight).argmin(1))
        residual = residual - codebook.weight[codes[-1]]
    return torch.stack(codes, dim=-1).view(*features.shape[:2], -1)


@torch.no_grad()
def is_nearest(quantizer: EvoTokResidualVectorQuantizer, features: torch.Tensor, codes: torch.Tensor) -> bool:
    """Returns whether each code is the nearest in float64 to the residual of its level, ties within 1e-6 included."""
    residual = features.flatten(0, 1)
    for codebook, chosen in zip(quantizer.codebooks, codes.flatten(0, 1).unbind(1), strict=True):
        entries = codebook.weight.double()
        for vectors, code in zip(residual.double().split(256), chosen.split(256), strict=True):
            distances = torch.cdist(vectors, entries)
            least = distances.amin(1)
            if (distances.gather(1, code[:, None]).squeeze(1) > least * (1 + 1e-6)).any():
                return False
        residual = residual - codebook.weight[chosen]
    return True


@torch.no_grad()
def updates_entries(
    quantizer: EvoTokResidualVectorQuantizer, features: torch.Tensor, step: Callable[[], object]
) -> bool:
    """Takes a training step; returns whether the entries of every level are those of the EMA in float64."""
    for codebook in quantizer.codebooks:  # in place: a graph keeps their addresses
        codebook.cluster_size.fill_(CHOSEN)
        codebook.step.fill_(codebook.warmup_steps)
    residual, expected, tolerances = features.flatten(0, 1), [], []
    for codebook in quantizer.codebooks:
        codes, entries = codebook(residual), codebook.weight.double()
        counts = torch.bincount(codes, minlength=len(entries)).double()[:, None]  # (K, 1)
        sums = torch.zeros_like(entries).index_add_(0, codes, residual.double())  # (K, C)
        old, new = codebook.decay * CHOSEN, 1 - codebook.decay
        expected.append((old * entries + new * sums) / (old + new * counts))
        tolerances.append(TOLERANCE * residual.abs().amax())
        residual = residual - codebook.weight[codes]
    step()
    return all(
        bool((codebook.weight - entries).abs().amax() <= tolerance)
        for codebook, entries, tolerance in zip(quantizer.codebooks, expected, tolerances, strict=True)
    )


def _other_library(features: torch.Tensor, search, floor: float, setting: Setting, shape: tuple[int, ...]) -> Row:
    """Measures the same work by another library with its own codebooks; returns a note where it is not installed."""
    levels, codes, width = shape
    try:
        from vector_quantize_pytorch import ResidualVQ
    except ImportError:
        return {"name": "residual_vq", "note": "not measured: pip install vector-quantize-pytorch"}
    other = ResidualVQ(dim=width, num_quantizers=levels, codebook_size=codes).to(setting.device).eval()
    with torch.no_grad():
        seconds, reference_seconds = best_seconds(search, lambda: other(features), setting=setting)
        peak = peak_extra_mib(lambda: other(features), setting.device)
    return {
        "name": "residual_vq",
        "reference": "ResidualVQ of vector-quantize-pytorch",
        "seconds": seconds,
        "reference_seconds": reference_seconds,
        "ratio": reference_seconds / seconds,
        "floor_seconds": floor,
        "reference_peak_extra_mib": peak,
    }
