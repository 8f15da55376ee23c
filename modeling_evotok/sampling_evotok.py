# Copyright 2026 The EvoTok authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Sampling of codes: the settings of a call and of generation configs, and the sampler that they configure.

| field | of a call | of a config given to it | of the model's own config |
| --- | --- | --- | --- |
| `guidance_scale`, `guidance_min_p` | used | used | used |
| `do_sample`, `temperature`, `top_k`, `top_p` | used | `image_do_sample` and so on, else these | `image_...` alone |
| `num_return_sequences`, `return_dict_in_generate`, `output_scores` | used | used | used |
| `compile_config`, `disable_compile`, `pad_token_id` | used | used | used |
| `cache_implementation` | used | used | used if "static" or "dynamic", else text only |
| `max_new_tokens`, `max_length`, `use_cache` | ignored: the length of an image is fixed, its cache always used | | |
| `min_p`, `num_beams`, `output_logits`, and others of `_REFUSED` | refused | refused | text only |
| all others: stop strings, penalties, banned or forced tokens ... | refused | text only | text only |

As in Transformers, None unsets a value: no temperature, no top-k, no top-p, no guidance.

Shapes: M images, R = M or, guided, 2M rows [conditional; unconditional], L levels, K codebook size.
"""

import math
from dataclasses import dataclass
from numbers import Number
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig


# The paper's guidance and its release's sampling; `guidance_min_p` 0 is the paper's plain guidance.
IMAGE_GENERATION_DEFAULTS = {
    "guidance_scale": 7.5,
    "guidance_min_p": 0.0,
    "image_do_sample": True,
    "image_temperature": 1.0,
    "image_top_k": 900,
    "image_top_p": 0.96,
}
# Text is greedy unless a temperature is given. Servers read the temperature alone, and sample at 1 without one.
TEXT_GENERATION_DEFAULTS = {"do_sample": True, "temperature": 0.0}
_CACHES = ("static", "dynamic")
# Settings of the call beside those of the sampler.
_CALL = {
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "output_scores": False,
    "cache_implementation": None,
    "compile_config": None,
    "disable_compile": False,
    "pad_token_id": None,
}
_IGNORED = ("max_new_tokens", "max_length", "use_cache")  # pipelines add some of them to every call
# Features that image generation could have, but does not.
_REFUSED = (
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "renormalize_logits",
    "remove_invalid_values",
    "watermarking_config",
    "num_beams",
    "num_beam_groups",
    "penalty_alpha",
    "dola_layers",
    "constraints",
    "force_words_ids",
    "use_mtp",
    "max_time",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
)
# Values that switch a feature off, beside None and False.
_NEUTRAL = {"typical_p": 1, "num_beams": 1, "num_beam_groups": 1, "repetition_penalty": 1, "length_penalty": 1}


def image_generation_config(config) -> GenerationConfig:
    """Builds the generation config of a new [`EvoTokForConditionalGeneration`]: special tokens of the language model,
    sampling values of images and of text, and image placeholders banned from text."""
    text_config = config.text_config
    tokens = {name: getattr(text_config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    placeholders = [config.image_token_id, config.image_generation_token_id]
    defaults = IMAGE_GENERATION_DEFAULTS | TEXT_GENERATION_DEFAULTS
    return GenerationConfig(**tokens, suppress_tokens=placeholders, **defaults)


def read_settings(own: GenerationConfig, given: GenerationConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Reads the settings of the table above, each from the first place that has it, under its name in a call.

    Args:
        own: config of the model.
        given: config of the call.
        kwargs: arguments of the call; those that are read here are removed.

    Raises:
        ValueError: a field of `given`, or an argument, that image generation does not have.
    """
    _refuse(given, own)
    settings = {}
    for field, default in IMAGE_GENERATION_DEFAULTS.items():
        name = field.removeprefix("image_")
        values = (getattr(place, key, None) for place, key in ((given, field), (given, name), (own, field)))
        settings[name] = kwargs.pop(name, next((value for value in values if value is not None), default))
    for name, default in _CALL.items():
        values = [kwargs.pop(name, None), getattr(given, name, None), getattr(own, name, None)]
        if name == "cache_implementation" and values[2] not in _CACHES:
            values.pop()  # for text only
        settings[name] = next((value for value in values if value is not None), default)
    for name in _IGNORED:
        kwargs.pop(name, None)
    unknown = sorted(name for name, value in kwargs.items() if not _is_neutral(name, value))
    if unknown:
        raise ValueError(f"generate(generation_mode='image') does not accept {', '.join(unknown)}: remove it.")
    return settings


def _refuse(given: GenerationConfig | None, own: GenerationConfig) -> None:
    """Raises ValueError for fields of a config that image generation does not have, unless the model's own config has
    the same value for text: pipelines pass a copy of it."""
    refused = []
    for name in _REFUSED:
        value = getattr(given, name, None)
        if not _is_neutral(name, value) and value != getattr(own, name, None):
            refused.append(name)
    if refused:
        raise ValueError(f"generation_config: no {', '.join(refused)} for images: leave it out of the config.")


def _is_neutral(name: str, value: Any) -> bool:
    known = hasattr(GenerationConfig(), name)
    return value is None or (known and (value is False or (name in _NEUTRAL and value == _NEUTRAL[name])))


class EvoTokSampledCodes(NamedTuple):
    """Codes (R,) int64 of one level, their scores (M, K) after guidance and warping, and whether any was not finite,
    () bool."""

    codes: torch.Tensor
    scores: torch.Tensor
    failed: torch.Tensor


@dataclass
class EvoTokCodeSampler:
    """Sampler of one code per image from the logits of one level.

    Args:
        guidance_scale: s in `u + s (c - u)`; with exactly 1 there are no unconditional rows.
        guidance_min_p: only codes whose conditional probability is at least this share of the highest one may be
            sampled; 0 for no limit. Far from the mode both rows are noise, and s times their difference favours
            implausible codes.
        do_sample: False selects the most likely code, as temperature 0 does.
        top_k, top_p: None or 0, and None or 1, for no limit.
        generator: on the device of the model; with a list of one generator an image, an image depends on its own seed
            alone and not on the rest of the batch.
        scores: list to which the scores (M, K) of every call are appended.
        failed: () bool, set to True where scores are not finite, without waiting for the device; see `check_scores`.

    Numbers may be given as NumPy's; None unsets a value: no guidance, no limit, no temperature. The fields are Python's
    numbers.

    Raises:
        ValueError: a value out of range.
    """

    guidance_scale: float = 7.5
    guidance_min_p: float = 0.0
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 900
    top_p: float = 0.96
    generator: torch.Generator | list[torch.Generator] | None = None
    scores: list[torch.Tensor] | None = None
    failed: torch.Tensor | None = None

    def __post_init__(self):
        unset = {"guidance_scale": 1.0, "guidance_min_p": 0.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        for name, value in unset.items():
            setattr(self, name, _to_python_number(getattr(self, name), value))
        checks = {
            "guidance_scale": lambda value: 0 <= value < math.inf,
            "guidance_min_p": lambda value: 0 <= value <= 1,
            "temperature": lambda value: 0 <= value < math.inf,
            "top_k": lambda value: isinstance(value, int) and value >= 0,
            "top_p": lambda value: 0 < value <= 1,
        }
        ranges = {"guidance_min_p": "in [0, 1]", "top_k": "a whole number, 0 or more", "top_p": "in (0, 1]"}
        for name, check in checks.items():
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not check(value):
                raise ValueError(f"{name}={value} must be {ranges.get(name, 'a number, at least 0')}.")
        self.do_sample = bool(self.do_sample) and self.temperature > 0

    @property
    def guided(self) -> bool:
        """Returns whether there are unconditional rows."""
        return self.guidance_scale != 1

    def fill_noise(self, noise: torch.Tensor) -> torch.Tensor:
        """Fills (L, M, K) float32 with exponential noise for one position, level by level.

        It is generated before the position, because a compiled or captured position cannot use a generator.
        """
        if self.do_sample:
            for level in noise:
                self._fill_level(level)
        return noise

    def _fill_level(self, noise: torch.Tensor) -> torch.Tensor:
        """Fills (M, K) float32 with exponential noise."""
        if not isinstance(self.generator, list):
            return noise.exponential_(generator=self.generator)
        count, images = len(self.generator), len(noise)
        if count != images:
            raise ValueError(f"{count} generators for {images} images: give one each, or one for all.")
        for row, generator in zip(noise, self.generator, strict=True):
            row.exponential_(generator=generator)
        return noise

    def __call__(self, logits: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Samples codes: logits (R, K) -> (R,) int64, the same code in both rows of an image. Without `noise` (M, K) it
        is generated here."""
        if noise is None and self.do_sample:
            images = len(logits) // 2 if self.guided else len(logits)
            noise = self._fill_level(logits.new_empty(images, logits.shape[-1], dtype=torch.float32))
        sampled = self.sample(logits, noise)
        if self.failed is not None:
            self.failed.logical_or_(sampled.failed)
        if self.scores is not None:
            self.scores.append(sampled.scores)
        return sampled.codes

    def sample(self, logits: torch.Tensor, noise: torch.Tensor | None) -> EvoTokSampledCodes:
        """Samples codes as a function of tensors alone, which compiles as one graph for all levels and positions.

        Args:
            logits: (R, K).
            noise: (M, K) exponential, float32; not read without `do_sample`.
        """
        conditional = scores = logits.float()
        if self.guided:
            conditional, unconditional = scores.chunk(2)  # (M, K)
            scores = unconditional + self.guidance_scale * (conditional - unconditional)
        if self.guidance_min_p > 0:
            floor = conditional.amax(-1, keepdim=True) + math.log(self.guidance_min_p)
            scores = scores.masked_fill(conditional < floor, -math.inf)
        if self.do_sample:
            scores = self.warp(scores)
            # As torch.multinomial samples, without its checks, for which the host would wait for the device.
            probabilities = scores.softmax(-1)
            assert noise is not None
            codes = (probabilities / noise).argmax(-1)
        else:
            probabilities, codes = scores, scores.argmax(-1)
        # A value that is not finite makes the row NaN, or is selected as the largest.
        failed = ~probabilities.gather(-1, codes[:, None]).isfinite().all()
        return EvoTokSampledCodes(codes.repeat(2) if self.guided else codes, scores, failed)

    def check_scores(self) -> None:
        """Checks the scores of all calls so far, waiting for the device.

        Raises:
            ValueError: some of them were not finite.
        """
        if self.failed is not None and self.failed:
            raise ValueError(
                "The model's scores of codes are NaN or infinite, so no image was generated: check the weights, and "
                "use bfloat16 or float32 where float16 overflows."
            )

    def warp(self, scores: torch.Tensor) -> torch.Tensor:
        """Applies temperature, top-k and top-p to (M, K), as Transformers' warpers do; ties with the k-th are kept.

        Transformers sorts all K entries for top-p at every level of every position; here the k of top-k are enough.
        """
        size = scores.shape[-1]
        scores = scores / self.temperature
        top_k = min(self.top_k or size, size)  # 0 is no limit
        limited_p = self.top_p < 1
        if top_k == size and not limited_p:
            return scores
        best = scores.topk(top_k).values  # (M, k), descending
        if top_k < size:
            scores = scores.masked_fill(scores < best[:, -1:], -math.inf)
        if limited_p:
            probabilities = (best - scores.logsumexp(-1, keepdim=True)).exp()
            mass_before = probabilities.cumsum(-1) - probabilities
            last = (mass_before < self.top_p).sum(-1, keepdim=True).clamp(min=1) - 1
            scores = scores.masked_fill(scores < best.gather(-1, last), -math.inf)
        return scores


def _to_python_number(value: Any, unset: float) -> Any:
    """Converts a number of NumPy, or a tensor of one, to Python's; None becomes `unset`."""
    if value is None:
        return unset
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, Number) and not isinstance(value, (int, float)) and hasattr(value, "item"):
        return value.item()
    return value


__all__ = [
    "IMAGE_GENERATION_DEFAULTS",
    "TEXT_GENERATION_DEFAULTS",
    "EvoTokCodeSampler",
    "image_generation_config",
    "read_settings",
]
