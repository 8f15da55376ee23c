"""Scores of images and features, on values known by hand."""

import pytest
import torch

from evotok.eval.metrics import feature_cosine, psnr


def test_psnr_of_a_constant_error_is_known():
    image = torch.full((3, 3, 4, 4), 0.5)
    error = torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    assert psnr(image + error, image).tolist() == pytest.approx([20.0, 40.0, 100.0], abs=1e-3)


def test_psnr_is_of_each_image_and_clamps():
    black, white = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    scores = psnr(torch.cat([black - 7, white + 7, white]), torch.cat([black, white, black]))
    assert scores.tolist() == pytest.approx([100.0, 100.0, 0.0])
    assert psnr(white.bfloat16(), black.bfloat16()).dtype == torch.float32


def test_feature_cosine_averages_over_positions():
    a = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [1.0, 1.0]]])  # (B, N, S)
    b = torch.tensor([[[5.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [2.0, 0.0]]])
    assert feature_cosine(a, b).tolist() == pytest.approx([0.5, (-1 + 2**-0.5) / 2])
