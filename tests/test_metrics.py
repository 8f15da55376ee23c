"""Metrics of images, features and answers, on values known by hand."""

import pytest
import torch

from evotok.eval.metrics import feature_cosine, normalize_answer, psnr, round_pixels, score_answers, ssim


def test_psnr_is_computed_per_image_in_float32():
    image = torch.full((3, 3, 4, 4), 0.5)
    error = torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    assert psnr(image + error, image).tolist() == pytest.approx([20.0, 40.0, 100.0], abs=1e-3)
    black, white = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    scores = psnr(torch.cat([black - 7, white + 7, white]), torch.cat([black, white, black]))
    assert scores.tolist() == pytest.approx([100.0, 100.0, 0.0])
    assert psnr(white.bfloat16(), black.bfloat16()).dtype == torch.float32


def test_ssim_of_flat_images_equals_the_formula():
    pytest.importorskip("torchmetrics")
    flat = torch.full((2, 3, 16, 16), 0.5)
    other = torch.stack([flat[0], flat[1] + 0.25])
    stabilizer = 0.01**2
    expected = (2 * 0.5 * 0.75 + stabilizer) / (0.5**2 + 0.75**2 + stabilizer)
    assert ssim(other, flat).tolist() == pytest.approx([1.0, expected], rel=1e-3)  # variances of 0 are not quite 0
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert ssim(noise + 2, torch.ones_like(noise)).item() == pytest.approx(1.0)  # clamped
    assert ssim(noise, 1 - noise).item() < 0


def test_feature_cosine_is_the_mean_over_positions():
    a = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [1.0, 1.0]]])  # (B, N, S)
    b = torch.tensor([[[5.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [2.0, 0.0]]])
    assert feature_cosine(a, b).tolist() == pytest.approx([0.5, (-1 + 2**-0.5) / 2])


def test_round_pixels_returns_values_of_eight_bits():
    rounded = round_pixels(torch.tensor([-3.0, -1.0, 0.0001, 0.5, 1.0, 2.0]).bfloat16())
    levels = (rounded + 1) * 127.5
    torch.testing.assert_close(levels, levels.round())
    assert rounded.dtype == torch.float32 and rounded[0] == rounded[1] == -1 and rounded[-1] == rounded[-2] == 1


@pytest.mark.parametrize(
    ("text", "expected"), [("Food & Drink.", "food drink"), ("  the\tCAT \n", "the cat"), ("\uff13", "3"), ("", "")]
)
def test_normalize_answer_removes_case_space_and_punctuation(text, expected):
    assert normalize_answer(text) == expected


def test_score_answers_has_the_baseline_of_the_commonest_answer():
    rows = [{"answer": a} for a in ("cat", "cat", "a dog", "owl")]
    assert score_answers(rows, ["Cat.", "dog", "a  dog", ""]) == (0.5, 0.5, 4, "cat")
    with pytest.raises(ValueError, match="one for each"):
        score_answers(rows, ["cat"])
