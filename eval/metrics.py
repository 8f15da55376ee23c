"""Metrics of images, features, codes and answers: pure functions.

Shapes: B images, N positions, S width of the features, D levels, K entries of a codebook.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ..data.image_files import from_uint8, to_uint8


def psnr(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Returns the peak signal-to-noise ratio of every image in dB, for a data range of 1.

    Args:
        images, references: (B, 3, H, W) in [0, 1]; values outside are clamped.

    Returns:
        (B,) float32; 100 dB for equal images.
    """
    error = (images.float().clamp(0, 1) - references.float().clamp(0, 1)).square().mean((1, 2, 3))
    return -10 * torch.log10(error.clamp(min=1e-10))


def ssim(images: torch.Tensor, references: torch.Tensor, data_range: float = 1.0) -> torch.Tensor:
    """Returns the structural similarity of every image (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5.

    Args:
        images, references: (B, 3, H, W) in [0, 1], at least 11 pixels high and wide; values outside are clamped.
        data_range: 1 is right for such images. Some papers use 2, with larger values that cannot be compared.

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
    similarity = structural_similarity_index_measure(*pair, reduction="none", data_range=data_range)
    return similarity.reshape(len(images))


def feature_cosine(features: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Returns the mean cosine over the positions of every image: (B, N, S), (B, N, S) -> (B,)."""
    return F.cosine_similarity(features.float(), references.float(), dim=-1).mean(1)


def count_codes(codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Counts how often each entry of each level occurs: codes (B, N, D) -> (D, K) int64 on the CPU."""
    return torch.stack([level.bincount(minlength=codebook_size) for level in codes.flatten(0, 1).T.cpu()])


def round_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Rounds pixels in [-1, 1] to the values that 8 bits can hold; values outside are clipped.

    Returns:
        float32 of the same shape, in [-1, 1].
    """
    return from_uint8(to_uint8(pixels))


class AnswerScores(NamedTuple):
    """Accuracy of answers, and of a baseline that always gives the commonest right answer."""

    accuracy: float
    baseline: float
    n: int
    """Number of questions."""
    commonest: str
    """The commonest right answer, normalized."""


def normalize_answer(text: str) -> str:
    """Normalizes an answer to lower-case words without punctuation: `" Food & Drink. "` -> `"food drink"`."""
    text = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(" " if unicodedata.category(c)[0] in "PSZC" else c for c in text)
    return " ".join(letters.split())


def score_answers(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> AnswerScores:
    """Scores answers by exact match with the `answer` of each row, after `normalize_answer`.

    Raises:
        ValueError: no rows, or not one answer for each.
    """
    if not rows or len(rows) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(rows)} rows: give one for each, and at least one.")
    wanted = [normalize_answer(row["answer"]) for row in rows]
    right = sum(normalize_answer(answer) == key for answer, key in zip(answers, wanted, strict=True))
    commonest, times = Counter(wanted).most_common(1)[0]
    return AnswerScores(right / len(wanted), times / len(wanted), len(wanted), commonest)
