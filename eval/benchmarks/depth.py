"""One position of the depth decoder, level by level, against recomputing all levels so far at each level."""

import torch

from ...modeling_evotok.configuration_evotok import EvoTokDepthDecoderConfig
from ...modeling_evotok.image_generation_evotok import EvoTokCudaGraph
from ...modeling_evotok.modeling_evotok_depth import EvoTokDepthDecoder
from .meters import Setting, best_seconds, peak_bandwidth, peak_extra_mib
from .report import Row, comparison


SIZES = {
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
    """Row `position`; its floor is reading the weights of each level once."""
    fields = dict(SIZES[setting.size])
    rows = fields.pop("rows")
    model = _random_model(EvoTokDepthDecoderConfig(**fields), setting)
    config = model.config
    hidden = torch.randn(rows, config.backbone_hidden_size, device=setting.device, dtype=setting.dtype)
    codebooks = torch.randn(config.num_codebooks, config.codebook_size, config.codebook_dim, device=setting.device)
    cache = model.new_cache(rows)

    def write(states: torch.Tensor):
        return model.generate_codes(states, codebooks, lambda logits: logits.argmax(-1), cache)

    written = EvoTokCudaGraph(write) if setting.device == "cuda" else write  # as images are written

    def position():
        return written(hidden)

    def reference():
        return write_uncached(model, hidden, codebooks)

    seconds, reference_seconds = best_seconds(position, reference, setting=setting)
    bandwidth = peak_bandwidth(setting)
    floor = weight_bytes(model) / bandwidth
    peak = peak_extra_mib(position, setting.device)
    equal = same_logits(model, hidden, codebooks)
    row = comparison("position", "all levels so far at each level", seconds, reference_seconds, floor, peak, equal)
    return [row | {"bandwidth_gb_per_s": bandwidth / 1e9}]


def _random_model(config: EvoTokDepthDecoderConfig, setting: Setting) -> EvoTokDepthDecoder:
    """Made in its dtype, without a float32 copy."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = EvoTokDepthDecoder(config).to(setting.dtype)
    model = model.to_empty(device=setting.device).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=config.initializer_range)
    return model


def weight_bytes(model: EvoTokDepthDecoder) -> int:
    """Bytes of weights that writing one position reads: the layers at every level, the rest once."""
    size = {name: sum(p.numel() * p.element_size() for p in part.parameters()) for name, part in model.named_children()}
    levels = model.config.num_codebooks
    return (
        levels * size["layers"]
        + size["classifiers"]
        + size["backbone_projection"]
        + (levels - 1) * size["code_projection"]
    )


@torch.no_grad()
def write_uncached(
    model: EvoTokDepthDecoder, hidden: torch.Tensor, codebooks: torch.Tensor, codes: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain loop: (M, H), (L, K, C) -> codes (M, L), the likeliest or those given, and their logits (M, L, K)."""
    embeddings = hidden.new_zeros(len(hidden), 0, codebooks.shape[-1], dtype=codebooks.dtype)
    written, every = [], []
    for level, head in enumerate(model.classifiers):
        prefix = torch.cat([embeddings, torch.zeros_like(codebooks[0, :1]).expand(len(hidden), 1, -1)], dim=1)
        every.append(head(model.encode_levels(hidden, prefix)[:, level]))
        written.append(every[-1].argmax(-1) if codes is None else codes[:, level])
        embeddings = torch.cat([embeddings, codebooks[level][written[-1]][:, None]], dim=1)
    return torch.stack(written, dim=1), torch.stack(every, dim=1)


def same_logits(model: EvoTokDepthDecoder, hidden: torch.Tensor, codebooks: torch.Tensor) -> bool:
    """Whether the cached path gives the plain loop's logits for the codes it wrote, within rounding of the dtype."""
    logits = []

    def likeliest(row: torch.Tensor) -> torch.Tensor:
        logits.append(row)
        return row.argmax(-1)

    codes, _ = model.generate_codes(hidden, codebooks, likeliest)
    _, expected = write_uncached(model, hidden, codebooks, codes)
    difference = (torch.stack(logits, dim=1).float() - expected.float()).abs().amax()
    return bool(difference <= 8 * torch.finfo(expected.dtype).eps * expected.float().abs().amax())
