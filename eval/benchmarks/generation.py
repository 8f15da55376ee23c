"""Benchmark of image generation: guided, cached and batched, against a plain loop over the same weights."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._inductor.utils import fresh_cache
from transformers import CompileConfig, DynamicCache

from ...modeling_evotok.configuration_evotok import EvoTokConfig
from ...modeling_evotok.int8_evotok import EvoTokInt8Config
from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from . import depth
from .meters import Setting, best_seconds, peak_bandwidth, peak_extra_mib, timed
from .report import Row, comparison


GUIDANCE = 7.5
PROMPT_LENGTH = 16
COLD_TARGET_SECONDS = 90  # of the first compiled image of the 7B model
REFERENCE_POSITIONS = 32  # most positions of the plain loop, which needs minutes for a whole image
_ENCODER = {"model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vision_use_head": False}  # fmt: skip
_TEXT = {"model_type": "qwen2", "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None}
TOKEN_IDS: dict[str, Any] = {
    "image_token_id": 60,
    "image_generation_token_id": 61,
    "vision_start_token_id": 62,
    "vision_end_token_id": 63,
}
# `full`: a language model of width 512 and 8 layers, a depth decoder of a quarter of the paper's width; `paper`: the
# 7B model, the defaults of the config.
SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "full": {
        "vq_config": {"encoder_config": _ENCODER | {"image_size": 256, "patch_size": 16}},
        "depth_decoder_config": {"hidden_size": 640, "intermediate_size": 2560, "num_attention_heads": 10},
        "text_config": _TEXT | {"vocab_size": 32768, "hidden_size": 512, "intermediate_size": 2048,
                                "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8},
    },
    "tiny": {
        "vq_config": {"encoder_config": _ENCODER | {"image_size": 32, "patch_size": 16}, "codebook_size": 64,
                      "codebook_dim": 8, "semantic_hidden_size": 24},
        "depth_decoder_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                                 "num_attention_heads": 2},
        "text_config": _TEXT | {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                                "num_attention_heads": 2, "num_key_value_heads": 2},
    },
}  # fmt: skip


def run(setting: Setting) -> Iterator[Row]:
    """Measures the rows `one_prompt`, whose floor is the time to read all weights once a position, its parts,
    `eight_prompts`, `int8`, `compiled` and `int8_compiled`; the weights of `int8` are a copy of the model's."""
    model = build_model(setting)
    prompts = torch.randint(1, 60, (8, PROMPT_LENGTH), device=setting.device)
    prompts[:, -1] = model.config.vision_start_token_id

    def generate(count: int, used=model, **kwargs):
        kwargs |= {"generation_mode": "image", "guidance_scale": GUIDANCE, "do_sample": False}
        return used.generate(prompts[:count], **kwargs)

    quantized = _quantize(model) if setting.device == "cpu" else None
    positions = model.config.vq_config.num_positions
    compared = min(REFERENCE_POSITIONS, positions)
    functions = [
        lambda: generate(1),
        lambda: generate(8),
        lambda: generate_uncached(model, prompts[:1], positions=compared),
    ]
    if quantized is not None:
        functions.append(lambda: generate(1, quantized))
    one, eight, part, *int8 = best_seconds(*functions, setting=setting)
    bandwidth = peak_bandwidth(setting)
    floor = positions * sum(_weight_bytes(model).values()) / bandwidth
    peak, equal = peak_extra_mib(lambda: generate(1), setting.device), same_codes(model, prompts[:1])
    reference = f"the plain loop, {positions / compared:g} times its first {compared} positions"
    row = comparison("one_prompt", reference, one, part * positions / compared, floor, peak, equal)
    row["bandwidth_gb_per_s"] = bandwidth / 1e9
    row["bandwidth_share"] = floor / one
    yield row
    yield from _parts(model, lambda: generate(1), row, setting)
    yield {"name": "eight_prompts", "seconds": eight, "one_prompt_seconds": one, "speedup": 8 * one / eight}
    yield _int8(generate, quantized, int8, row)
    yield _compiled("compiled", generate, one, row, setting)
    if quantized is not None:
        yield _compiled("int8_compiled", partial(generate, used=quantized), int8[0], row, setting)


def _int8(generate, quantized: EvoTokForConditionalGeneration | None, seconds: list[float], plain: Row) -> Row:
    """Compares one prompt with weights in int8 with the row `one_prompt`, whose floor reads them in their dtype."""
    if quantized is None:
        return {"name": "int8", "note": "not measured: its kernel is for CPUs"}
    return {
        "name": "int8",
        "reference": plain["reference"],
        "seconds": seconds[0],
        "ratio": plain["reference_seconds"] / seconds[0],
        "floor_multiple": seconds[0] / plain["floor_seconds"],
        "over_plain": seconds[0] / plain["seconds"],
        "same_codes": (generate(1, quantized) == generate(1)).float().mean().item(),
    }


def _quantize(model: EvoTokForConditionalGeneration) -> EvoTokForConditionalGeneration:
    """Loads the model's weights in int8, as `from_pretrained` does."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return EvoTokForConditionalGeneration.from_pretrained(
            folder, dtype=model.lm_head.weight.dtype, quantization_config=EvoTokInt8Config()
        )


def _compiled(name: str, generate, eager_seconds: float, plain: Row, setting: Setting) -> Row:
    """Measures one prompt with `torch.compile`: the first image with an empty cache of code (cold), the first with a
    filled one (warm), and a later one; returns a note where there is no compiler."""
    if setting.device == "cpu" and shutil.which("g++") is None:
        return {"name": name, "note": "not measured: torch.compile needs g++ for code on CPUs"}

    def compiled() -> torch.Tensor:
        return generate(1, compile_config=CompileConfig(dynamic=False))

    with fresh_cache():
        torch.compiler.reset()
        cold = timed(compiled, setting.device)
        torch.compiler.reset()  # traces again, as a new process would, and reads the code from the disk
        warm = timed(compiled, setting.device)
        [seconds] = best_seconds(compiled, setting=setting)
        same = (compiled() == generate(1)).float().mean().item()
    return {
        "name": name,
        "reference": plain["reference"],
        "seconds": seconds,
        "ratio": plain["reference_seconds"] / seconds,
        "over_eager": seconds / eager_seconds,
        "floor_multiple": seconds / plain["floor_seconds"],
        "cold_seconds": cold,
        "warm_seconds": warm,
        "cold_over_target": cold / COLD_TARGET_SECONDS,
        "same_codes": same,
    }


def build_model(setting: Setting) -> EvoTokForConditionalGeneration:
    """Builds a model with random weights in evaluation mode, in the dtype of the setting but for the tokenizer."""
    torch.manual_seed(0)
    fields = SIZES[setting.size]
    with torch.device(setting.device):
        model = EvoTokForConditionalGeneration._from_config(
            EvoTokConfig(**fields, **TOKEN_IDS if fields else {}), dtype=setting.dtype
        )
    model.eval().requires_grad_(False)
    for codebook in model.model.vq_model.float().quantizer.codebooks:
        codebook.weight.normal_()
    return model


def _weight_bytes(model: EvoTokForConditionalGeneration) -> dict[str, int]:
    """Returns the bytes of weights that one position reads, by part."""
    embeddings = model.get_input_embeddings().weight  # only some rows are read
    of_depth = depth.weight_bytes(model.depth_decoder)
    return {
        "language_model": sum(p.nbytes for p in model.model.language_model.parameters() if p is not embeddings),
        "depth_layers": of_depth["layers"],
        "code_classifiers": of_depth["classifiers"],
        "other": of_depth["projections"] + sum(p.nbytes for p in model.model.pixel_projector.parameters()),
    }


def _parts(model: EvoTokForConditionalGeneration, function, whole: Row, setting: Setting) -> Iterator[Row]:
    """Measures where the time of one prompt goes: a row for each part, whose floor is the time to read its weights.

    `other` is all else: projections, sampling, and the time between the modules' calls.
    """
    if setting.device != "cpu":
        yield {"name": "parts", "note": "not measured: on a GPU, positions are one CUDA graph"}
        return
    decoder = model.depth_decoder
    modules = {
        "language_model": [model.model.language_model],
        "depth_layers": list(decoder.layers),
        "code_classifiers": list(decoder.classifiers),
    }
    best: dict[str, float] = {}
    for _ in range(setting.repeats):
        with _clocks(modules) as inside:
            total = timed(function, setting.device)
        measured = inside | {"other": total - sum(inside.values())}
        best = {name: min(seconds, best.get(name, seconds)) for name, seconds in measured.items()}
    read = _weight_bytes(model)
    for name, seconds in best.items():
        floor = whole["floor_seconds"] * read[name] / sum(read.values())
        yield {"name": name, "seconds": seconds, "floor_seconds": floor, "floor_multiple": seconds / floor}


@contextmanager
def _clocks(modules: dict[str, list[nn.Module]]) -> Iterator[dict[str, float]]:
    """Adds up the seconds in the forward passes of modules, by name, while the context is open."""
    seconds, hooks = dict.fromkeys(modules, 0.0), []

    def clock(name: str, sign: int):
        def hook(*_):
            seconds[name] += sign * time.perf_counter()

        return hook

    for name, each in modules.items():
        for module in each:
            hooks.append(module.register_forward_pre_hook(clock(name, -1)))
            hooks.append(module.register_forward_hook(clock(name, 1)))
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def generate_uncached(
    model: EvoTokForConditionalGeneration, prompts: torch.Tensor, positions: int, codes: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generates codes by the plain loop, the likeliest or those given.

    Prompts and their unconditional rows run one after the other, each with a cache of its own that grows; the text head
    runs at each position; each level recomputes those before it.

    Args:
        prompts: (B, T) token ids.
        codes: (B, n, L), for their logits.

    Returns:
        Codes (B, n, L) and guided logits (B, n, L, K).
    """
    levels = model.config.vq_config.num_pixel_codebooks
    codebooks = model.model.vq_model.quantizer.stack_codebooks(levels, prompts.device)  # (L, K, C)
    rows = [model.get_input_embeddings()(ids) for ids in (prompts, prompts[:, -1:])]
    caches = [DynamicCache(config=model.config.text_config) for _ in rows]
    chosen, every = [], []
    for position in range(positions):
        hidden = []
        for embeds, cache in zip(rows, caches, strict=True):
            outputs = model.model.language_model(
                inputs_embeds=embeds.to(model.lm_head.weight.dtype), past_key_values=cache, use_cache=True
            )
            hidden.append(outputs.last_hidden_state[:, -1])
            model.lm_head(outputs.last_hidden_state)
        given = None if codes is None else codes[:, position]
        of_position, logits = depth.generate_uncached(model.depth_decoder, hidden, codebooks, _guide, given)
        chosen.append(of_position)
        every.append(logits)
        rows = [model.model.pixel_projector(model.model.vq_model.quantizer.decode_codes(of_position))[:, None]] * 2
    return torch.stack(chosen, dim=1), torch.stack(every, dim=1)


def _guide(conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
    return unconditional.float() + GUIDANCE * (conditional.float() - unconditional.float())


def same_codes(model: EvoTokForConditionalGeneration, prompts: torch.Tensor) -> bool:
    """Returns whether the guided logits are the plain loop's for the same codes, within rounding of the dtype."""
    output = model.generate(
        prompts, generation_mode="image", guidance_scale=GUIDANCE, do_sample=False,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    compared = min(REFERENCE_POSITIONS, output.codes.shape[1])
    _, expected = generate_uncached(model, prompts, compared, output.codes)
    # Guidance multiplies the rounding of both rows; layers add to it.
    error = (output.scores[:, :compared] - expected).square().mean().sqrt() / expected.std()
    return bool(error <= 32 * torch.finfo(model.lm_head.weight.dtype).eps)
