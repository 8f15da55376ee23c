"""Benchmark of the depth decoder: the codes of one position with a cache, against the plain loop without."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...modeling_evotok.configuration_evotok import EvoTokDepthDecoderConfig
from ...modeling_evotok.image_generation_evotok import EvoTokCudaGraph
from ...modeling_evotok.modeling_evotok_depth import EvoTokDepthDecoder
from .meters import Setting, best_seconds, peak_bandwidth, peak_extra_mib
from .report import Row, comparison


SIZES: dict[str, dict[str, Any]] = {
    "full": {"rows": 16},
    "tiny": {
        "rows": 2,
        "codebook_size": 64,
        "codebook_dim": 8,
        "backbone_hidden_size": 32,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}


def run(setting: Setting) -> list[Row]:
    """Measures the row `position`; its floor is the time to read the weights of each level once."""
    fields = dict(SIZES[setting.size])
    rows = fields.pop("rows")
    model = _random_model(EvoTokDepthDecoderConfig(**fields), setting)
    config = model.config
    hidden = torch.randn(rows, config.backbone_hidden_size, device=setting.device, dtype=setting.dtype)
    codebooks = torch.randn(config.num_codebooks, config.codebook_size, config.codebook_dim, device=setting.device)
    cache = model.new_cache(rows)

    def generate(states: torch.Tensor):
        return model.generate_codes(states, codebooks, lambda logits: logits.argmax(-1), cache)

    step = EvoTokCudaGraph(generate) if setting.device == "cuda" else generate  # as in image generation

    def position():
        return step(hidden)

    def reference():
        return generate_uncached(model, [hidden], codebooks)

    seconds, reference_seconds = best_seconds(position, reference, setting=setting)
    bandwidth = peak_bandwidth(setting)
    floor = sum(weight_bytes(model).values()) / bandwidth
    peak = peak_extra_mib(position, setting.device)
    equal = same_logits(model, hidden, codebooks)
    row = comparison("position", "all levels so far at each level", seconds, reference_seconds, floor, peak, equal)
    return [row | {"bandwidth_gb_per_s": bandwidth / 1e9}]


def _random_model(config: EvoTokDepthDecoderConfig, setting: Setting) -> EvoTokDepthDecoder:
    """Builds a model with random weights in its dtype, without a float32 copy."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = EvoTokDepthDecoder(config).to(setting.dtype)
    model = model.to_empty(device=setting.device).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=config.initializer_range)
    return model


def weight_bytes(model: EvoTokDepthDecoder) -> dict[str, int]:
    """Returns the bytes of weights that one position reads, by part: the layers at every level, the rest once."""
    size = {name: sum(p.nbytes for p in part.parameters()) for name, part in model.named_children()}
    levels = model.config.num_codebooks
    return {
        "layers": levels * size["layers"],
        "classifiers": size["classifiers"],
        "projections": size["backbone_projection"] + (levels - 1) * size["code_projection"],
    }


@torch.no_grad()
def generate_uncached(
    decoder: EvoTokDepthDecoder,
    rows: Sequence[torch.Tensor],
    codebooks: torch.Tensor,
    combine: Callable[..., torch.Tensor] = lambda logits: logits,
    codes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generates the codes of one position by the plain loop, which recomputes all levels so far at each level.

    Args:
        rows: hidden states (M, H), or several whose logits are combined, such as those of both guidance branches.
        codebooks: (L, K, C).
        combine: logits of each of `rows` -> logits.
        codes: (M, L), for their logits; the likeliest codes when None.

    Returns:
        Codes (M, L) and logits (M, L, K).
    """
    size, width = len(rows[0]), codebooks.shape[-1]
    embeddings = codebooks.new_zeros(size, 0, width)
    chosen, every = [], []
    for level, head in enumerate(decoder.classifiers):
        prefix = torch.cat([embeddings, codebooks.new_zeros(size, 1, width)], dim=1)
        every.append(combine(*(head(decoder.encode_levels(hidden, prefix)[:, level]) for hidden in rows)))
        chosen.append(every[-1].argmax(-1) if codes is None else codes[:, level])
        embeddings = torch.cat([embeddings, codebooks[level][chosen[-1]][:, None]], dim=1)
    return torch.stack(chosen, dim=1), torch.stack(every, dim=1)


def same_logits(model: EvoTokDepthDecoder, hidden: torch.Tensor, codebooks: torch.Tensor) -> bool:
    """Returns whether the cached path has the logits of the plain loop, within rounding of the dtype."""
    logits = []

    def choose(row: torch.Tensor) -> torch.Tensor:
        logits.append(row)
        return row.argmax(-1)

    codes, _ = model.generate_codes(hidden, codebooks, choose)
    _, expected = generate_uncached(model, [hidden], codebooks, codes=codes)
    difference = (torch.stack(logits, dim=1).float() - expected.float()).abs().amax()
    return bool(difference <= 8 * torch.finfo(expected.dtype).eps * expected.float().abs().amax())
