"""Benchmark of residual quantization: search and training step, against a loop of `torch.cdist` and ResidualVQ."""

import torch

from ...modeling_evotok.configuration_evotok import EvoTokVQConfig
from ...modeling_evotok.quantization_evotok import EvoTokResidualVectorQuantizer
from .meters import Setting, best_seconds, peak_extra_mib, peak_flops
from .report import Row, comparison


# images, positions, levels, codes, width
SIZES = {"full": (16, 256, 16, 32768, 32), "tiny": (2, 16, 3, 64, 8)}
SHRINKAGE = 0.8  # of the residual's deviation from level to level, at the paper's size
# How often each entry is chosen in a step of the paper's 256 images: enough that no entry restarts in the first steps.
# Restarted entries are vectors of the batch, whose search would find exact copies, as in no training.
CHOSEN = 2


def run(setting: Setting) -> list[Row]:
    """Measures the rows `search`, `residual_vq` (with `vector-quantize-pytorch` installed) and `train_step`."""
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
    rows = [comparison("search", "torch.cdist and argmin", seconds, reference_seconds, floor, peak, equal)]
    rows[0]["matmul_gflops"] = flops / 1e9
    rows.append(_other_library(features, search, floor, setting, (levels, codes, width)))
    quantizer.train()
    with torch.no_grad():
        step_seconds, seconds = best_seconds(lambda: quantizer(features), search, setting=setting)
        peak = peak_extra_mib(lambda: quantizer(features), setting.device)
    rows.append(
        {
            "name": "train_step",
            "seconds": step_seconds,
            "search_seconds": seconds,
            "over_search": step_seconds / seconds,
            "peak_extra_mib": peak,
        }
    )
    return rows


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
