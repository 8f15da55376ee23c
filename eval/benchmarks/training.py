"""Benchmark of a training step of the tokenizer, and of the language model with the depth decoder.

The floor is the time of the step's operations, which torch counts, at the speed of a large matmul.
"""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...modeling_evotok.configuration_evotok import EvoTokVQConfig
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from . import generation
from .meters import Setting, best_seconds, peak_extra_mib, peak_flops
from .report import Row


SIZES = {"full": 8, "tiny": 2}  # images of a step


def run(setting: Setting) -> list[Row]:
    """Measures the rows `tokenizer_step` and `gen_step`: forward and backward under autocast, without an optimizer."""
    return [_row(name, build(setting), setting) for name, build in (("tokenizer_step", _tokenizer), ("gen_step", _gen))]


def _tokenizer(setting: Setting) -> Callable[[], torch.Tensor]:
    torch.manual_seed(0)
    fields = {"pixel_base_channels": 32, "semantic_hidden_size": 192, "codebook_size": 4096}
    config = EvoTokVQConfig(**fields | generation.SIZES[setting.size]["vq_config"])
    model = EvoTokVQModel(config).to(setting.device).train()
    pixels = torch.rand(SIZES[setting.size], 3, config.image_size, config.image_size, device=setting.device) * 2 - 1

    def loss():
        outputs = model(pixels)
        error = (outputs.reconstruction - pixels).square().mean() + outputs.semantic_features.square().mean()
        return outputs.vq_loss + error

    return loss


def _gen(setting: Setting) -> Callable[[], torch.Tensor]:
    model = generation.build_model(Setting(setting.device, torch.float32, setting.size)).train()
    for part in (model.model.language_model, model.model.pixel_projector, model.depth_decoder):
        part.requires_grad_(True)
    config, images = model.config, SIZES[setting.size]
    positions, levels = config.vq_config.num_positions, config.vq_config.num_pixel_codebooks
    codes = torch.randint(config.vq_config.codebook_size, (images, positions, levels), device=setting.device)
    ids = torch.full((images, generation.PROMPT_LENGTH + positions), config.image_generation_token_id)
    ids[:, : generation.PROMPT_LENGTH] = config.vision_start_token_id
    ids = ids.to(setting.device)
    labels = ids.masked_fill(ids == config.vision_start_token_id, -100)
    return lambda: model(input_ids=ids, labels=labels, generation_codes=codes).loss


def _row(name: str, loss: Callable[[], torch.Tensor], setting: Setting) -> Row:
    half = setting.dtype != torch.float32

    def step():
        with torch.autocast(setting.device, dtype=setting.dtype if half else torch.bfloat16, enabled=half):
            value = loss()
        value.backward()

    with FlopCounterMode(display=False) as counter:
        step()
    [seconds] = best_seconds(step, setting=setting)
    flops = peak_flops(setting.dtype, setting)
    floor = counter.get_total_flops() / flops
    return {
        "name": name,
        "seconds": seconds,
        "images_per_second": SIZES[setting.size] / seconds,
        "floor_seconds": floor,
        "floor_multiple": seconds / floor,
        "matmul_gflops": flops / 1e9,
        "peak_extra_mib": peak_extra_mib(step, setting.device),
    }
