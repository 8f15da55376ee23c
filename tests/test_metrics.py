"""Scores of images and features, on values known by hand."""

import pytest
import torch

from evotok.eval.metrics import feature_cosine, psnr, ssim


def test_psnr_of_a_constant_error_is_known():
    image = torch.full((3, 3, 4, 4), 0.5)
    error = torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    assert psnr(image + error, image).tolist() == pytest.approx([20.0, 40.0, 100.0], abs=1e-3)


def test_psnr_is_of_each_image_and_clamps():
    black, white = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    scores = psnr(torch.cat([black - 7, white + 7, white]), torch.cat([black, white, black]))
    assert scores.tolist() == pytest.approx([100.0, 100.0, 0.0])
    assert psnr(white.bfloat16(), black.bfloat16()).dtype == torch.float32


def test_ssim_of_flat_images_is_known_and_of_each():
    pytest.importorskip("torchmetrics")
    flat = torch.full((2, 3, 16, 16), 0.5)
    other = torch.stack([flat[0], flat[1] + 0.25])
    stabiliser = 0.01**2
    expected = (2 * 0.5 * 0.75 + stabiliser) / (0.5**2 + 0.75**2 + stabiliser)
    assert ssim(other, flat).tolist() == pytest.approx([1.0, expected], rel=1e-3)  # variances of 0 are not quite 0
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert ssim(noise + 2, torch.ones_like(noise)).item() == pytest.approx(1.0)  # clamped
    assert ssim(noise, 1 - noise).item() < 0


def test_feature_cosine_averages_over_positions():
    a = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [1.0, 1.0]]])  # (B, N, S)
    b = torch.tensor([[[5.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [2.0, 0.0]]])
    assert feature_cosine(a, b).tolist() == pytest.approx([0.5, (-1 + 2**-0.5) / 2])
