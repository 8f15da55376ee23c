"""Pure functions that score images and features."""

import torch
import torch.nn.functional as F


def psnr(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of every image in dB, data range 1.

    Args:
        images, references: (B, 3, H, W) in [0, 1]; values outside are clamped.

    Returns:
        (B,) float32; an exact copy counts as 100 dB.
    """
    error = (images.float().clamp(0, 1) - references.float().clamp(0, 1)).square().mean((1, 2, 3))
    return -10 * torch.log10(error.clamp(min=1e-10))


def feature_cosine(features: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Mean cosine over the positions of every image: (B, N, S), (B, N, S) -> (B,)."""
    return F.cosine_similarity(features.float(), references.float(), dim=-1).mean(1)
