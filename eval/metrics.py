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


def ssim(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Structural similarity of every image (Wang et al., 2004), data range 1, Gaussian window of 11 pixels.

    Args:
        images, references: (B, 3, H, W) in [0, 1], sides of at least 11; values outside are clamped.

    Returns:
        (B,) float32, at most 1.

    Raises:
        ImportError: the extra `eval` is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise ImportError("SSIM needs torchmetrics: pip install 'evotok[eval]'.") from None
    pair = (images.float().clamp(0, 1), references.float().clamp(0, 1))
    return structural_similarity_index_measure(*pair, data_range=1.0, reduction="none").reshape(len(images))


def feature_cosine(features: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Mean cosine over the positions of every image: (B, N, S), (B, N, S) -> (B,)."""
    return F.cosine_similarity(features.float(), references.float(), dim=-1).mean(1)
