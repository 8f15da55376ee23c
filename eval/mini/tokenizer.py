"""Image tokenizer on scenes of held-out styles, level by level: pixels, semantics, and things that a probe reads."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...data.image_files import to_unit_range
from ...data.processes import Workers
from ...data.world.evaluation import labelled_pixels
from ...data.world.icons import World
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...modeling_evotok.quantization_evotok import codebook_usage
from ..metrics import count_codes, feature_cosine, psnr
from ..probes import PatchProbe
from ..suite import Evaluation, Report
from ..teachers import check_teacher


PROBE_SPLIT, MEASURED_SPLIT = "train", "test"


def measure_tokenizer(evaluation: Evaluation, world: World, tokenizer: EvoTokVQModel, teacher: nn.Module) -> Report:
    """Measures PSNR of the pixel levels, cosine to the teacher and probe accuracy of all levels, use of codebooks.

    Args:
        teacher: (B, 3, H, W) -> features (B, N, S).

    Raises:
        ValueError: the teacher's features have another shape than the decoded semantics.
    """
    options, workers, config = evaluation.options, evaluation.workers, tokenizer.config
    asked = labelled_pixels(world, MEASURED_SPLIT, options.scenes, seed=options.seed)
    check_teacher(teacher, tokenizer, asked.pixels[:1])
    probe, mean = fit_probe(teacher, tokenizer.device, world, options, workers)
    size = options.batch_size
    batches = list(zip(asked.pixels.split(size), asked.things.split(size), strict=True))
    found = workers.map(lambda batch: _measure(tokenizer, teacher, probe, mean, *batch), batches, "reconstructing")
    scores = {name: torch.cat([scores[name] for scores, _ in found]).mean().item() for name in found[0][0]}
    used = codebook_usage(torch.stack([counts for _, counts in found]).sum(0))
    shown = asked.things[asked.things > 0]
    figures = _figures(scores, config.num_pixel_codebooks, config.num_codebooks) | {
        "psnr_new_style_n": options.scenes,
        "probe_baseline": (shown.bincount().max() / len(shown)).item(),
        "probe_n": len(shown),
        "codebook_usage_min": used["usage"].min().item(),
        "codebook_perplexity_min": used["perplexity"].min().item(),
    }
    names = {"psnr": "psnr_new_style", "semantic_cosine": "semantic_cosine", "probe": "probe"}
    rows = [
        {"depth": depth}
        | {key: scores.get(f"{name}_depth{depth}", "") for key, name in names.items()}
        | {name: values[depth - 1].item() for name, values in used.items()}
        for depth in range(1, config.num_codebooks + 1)
    ]
    return Report(figures, {"levels": rows})


def fit_probe(
    teacher: nn.Module, device: torch.device, world: World, options: Any, workers: Workers
) -> tuple[PatchProbe, torch.Tensor]:
    """Fits a probe of the thing at a patch on the teacher's features of scenes in trained styles.

    Args:
        options: of a suite, with `probe_scenes`, `batch_size` and `seed`.

    Returns:
        The probe, and the mean of the features (N, S).
    """
    known = labelled_pixels(world, PROBE_SPLIT, options.probe_scenes, seed=options.seed)
    batches = known.pixels.split(options.batch_size)
    features = workers.map(lambda pixels: teacher(pixels.to(device)).float().cpu(), batches, "teacher's features")
    features = torch.cat(features)
    return workers.once(lambda: PatchProbe.fit(features, known.things)), features.mean(0)


@torch.inference_mode()
def _measure(
    tokenizer: EvoTokVQModel,
    teacher: nn.Module,
    probe: PatchProbe,
    mean: torch.Tensor,
    pixels: torch.Tensor,
    things: torch.Tensor,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Measures a batch: scores (images,) or (patches with a thing,), and the counts of codes (D, K)."""
    config, pixels = tokenizer.config, pixels.to(tokenizer.device)
    target = teacher(pixels).float().cpu()
    codes = tokenizer.encode(pixels)
    reference = to_unit_range(pixels)
    scores = {
        f"psnr_new_style_depth{depth}": psnr(to_unit_range(tokenizer.decode_pixels(codes, depth)), reference).cpu()
        for depth in range(1, config.num_pixel_codebooks + 1)
    }
    decoded = {
        f"_depth{depth}": tokenizer.decode_semantics(codes, depth) for depth in range(1, config.num_codebooks + 1)
    }
    latent = tokenizer.to_latent(tokenizer.vision_tower(pixels).last_hidden_state)
    decoded["_continuous"] = tokenizer.semantic_decoder(latent)
    for suffix, features in decoded.items():
        scores[f"semantic_cosine{suffix}"] = feature_cosine(features.cpu(), target)
        scores[f"probe{suffix}"] = probe.right(features.float().cpu(), things).float()
    scores["semantic_cosine_baseline"] = F.cosine_similarity(target, mean, dim=-1).mean(1)
    scores["probe_teacher"] = probe.right(target, things).float()
    return scores, count_codes(codes, config.codebook_size)


def _figures(scores: dict[str, float], pixel_levels: int, levels: int) -> dict[str, float]:
    """Orders the scores, and adds what the levels after the pixel levels gain."""
    groups = ("psnr_new_style", "semantic_cosine", "probe")
    figures = {name: scores[name] for group in groups for name in scores if name.startswith(f"{group}_")}
    for name in ("semantic_cosine", "probe"):
        gain = scores[f"{name}_depth{levels}"] - scores[f"{name}_depth{pixel_levels}"]
        figures[f"{name.removesuffix('_cosine')}_gain_{pixel_levels}_{levels}"] = gain
    last, teacher = scores[f"probe_depth{levels}"], scores["probe_teacher"]
    figures[f"probe_share_{levels}"] = last / teacher if teacher else 0.0
    return figures
