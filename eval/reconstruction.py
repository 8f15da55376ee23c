"""Reconstruction of pixels and semantics by an image tokenizer, at every depth."""

from collections.abc import Callable, Iterable

import torch

from ..data.image_files import to_unit_range
from ..modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ..modeling_evotok.quantization_evotok import codebook_usage
from .metrics import count_codes, feature_cosine, psnr, ssim


@torch.inference_mode()
def evaluate_reconstruction(
    model: EvoTokVQModel,
    batches: Iterable[torch.Tensor],
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
    semantic_depths: Iterable[int] | None = None,
    with_ssim: bool = False,
    sum_up: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> dict[str, float | list[float]]:
    """Measures PSNR at depth 1 to L_pix, semantic cosine at some depths, and the use of every codebook.

    Args:
        model: the tokenizer.
        batches: images (B, 3, H, W) in [-1, 1]; at least one.
        teacher: computes the target features (B, N, S) of images; without it no cosine is measured.
        semantic_depths: depths of the cosine, all by default.
        with_ssim: measure SSIM, too (extra `eval`).
        sum_up: sums a tensor over processes, where each has its own images.

    Returns:
        `psnr_depth{d}` in dB, `ssim_depth{d}` and `semantic_cosine_depth{d}`, means over the images, and the lists
        `usage` and `perplexity`.
    """
    was_training = model.training
    model.eval()
    config = model.config
    depths = list(dict.fromkeys(semantic_depths or range(1, config.num_codebooks + 1)))  # each once
    scores: dict[str, list[torch.Tensor]] = {}
    counts = torch.zeros(config.num_codebooks, config.codebook_size, dtype=torch.long)
    for pixels in batches:
        codes = model.encode(pixels)
        counts += count_codes(codes, config.codebook_size)
        reference = to_unit_range(pixels)
        for depth in range(1, config.num_pixel_codebooks + 1):
            decoded = to_unit_range(model.decode_pixels(codes, depth=depth))
            scores.setdefault(f"psnr_depth{depth}", []).append(psnr(decoded, reference))
            if with_ssim:
                scores.setdefault(f"ssim_depth{depth}", []).append(ssim(decoded, reference))
        if teacher is not None:
            target = teacher(pixels)
            for depth in depths:
                cosine = feature_cosine(model.decode_semantics(codes, depth=depth), target)
                scores.setdefault(f"semantic_cosine_depth{depth}", []).append(cosine)
    model.train(was_training)
    values = torch.stack([torch.cat(values).cpu().double() for values in scores.values()])  # (names, images)
    sums = sum_up(torch.cat([values.sum(1), values.new_full((1,), values.shape[1])]))
    results: dict[str, float | list[float]] = dict(zip(scores, (sums[:-1] / sums[-1]).tolist(), strict=True))
    results.update({name: values.tolist() for name, values in codebook_usage(sum_up(counts)).items()})
    return results
