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
"""Drawing the code of one level of one position: guidance, plausibility guard, temperature, top-k, top-p.

Shapes: M images, R = M or, guided, 2M rows [conditional; unconditional], K codebook size.
"""

import math
from dataclasses import dataclass
from numbers import Number
from typing import Any

import torch


@dataclass
class EvoTokCodeSampler:
    """Draws one code per image from the logits of one level: guidance, plausibility guard, temperature, top-k, top-p.

    Args:
        guidance_scale: s in `u + s (c - u)`; exactly 1 means that there are no unconditional rows.
        guidance_min_p: only codes whose conditional probability is at least this share of the likeliest one's may be
            drawn, whatever guidance makes of the others; 0 for no guard. Far from the mode both rows are noise, and s
            times their difference lifts absurd codes.
        do_sample: False takes the likeliest code, as temperature 0 does.
        top_k, top_p: None or 0, and None or 1, for no limit.
        generator: of the device that the model runs on; a list has one generator an image, with which an image depends
            on its own seed alone, whatever else is in the batch.
        scores: gets the scores (M, K) of every call.
        failed: () bool, becomes true where scores were not finite: nothing waits for it but `check_scores`.

    Numbers may be NumPy's; None unsets a value: no guidance, no guard, no temperature, no limit.

    Raises:
        ValueError: a value out of range.
    """

    guidance_scale: float | None = 7.5
    guidance_min_p: float | None = 0.0
    do_sample: bool | None = True
    temperature: float | None = 1.0
    top_k: int | None = 900
    top_p: float | None = 0.96
    generator: torch.Generator | list[torch.Generator] | None = None
    scores: list[torch.Tensor] | None = None
    failed: torch.Tensor | None = None

    def __post_init__(self):
        unset = {"guidance_scale": 1.0, "guidance_min_p": 0.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        for name, value in unset.items():
            setattr(self, name, _plain_number(getattr(self, name), value))
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
        """Whether there are unconditional rows."""
        return self.guidance_scale != 1

    def cast(self, noise: torch.Tensor) -> torch.Tensor:
        """Fill (L, M, K) float32 with what the draws of one position need, level by level.

        Ahead of them, because neither a compiled position nor one that is replayed on a GPU can ask a generator.
        """
        if self.do_sample:
            for level in noise:
                self._fill(level)
        return noise

    def _fill(self, noise: torch.Tensor) -> torch.Tensor:
        """Fills (M, K) float32 with exponential noise."""
        if not isinstance(self.generator, list):
            return noise.exponential_(generator=self.generator)
        count, images = len(self.generator), len(noise)
        if count != images:
            raise ValueError(f"{count} generators for {images} images: give one each, or one for all.")
        for row, generator in zip(noise, self.generator, strict=True):
            row.exponential_(generator=generator)
        return noise

    def __call__(self, logits: torch.Tensor, noise: torch.Tensor | None = None) -> torch.LongTensor:
        """(R, K) -> (R,) int64, the same code in both rows of an image; `noise` (M, K) is drawn here unless given."""
        conditional = scores = logits.float()
        if self.guided:
            conditional, unconditional = scores.chunk(2)  # (M, K)
            scores = unconditional + self.guidance_scale * (conditional - unconditional)
        if self.guidance_min_p > 0:
            floor = conditional.amax(-1, keepdim=True) + math.log(self.guidance_min_p)
            scores = scores.masked_fill(conditional < floor, -math.inf)
        if self.do_sample:
            scores = self.warp(scores)
            # As torch.multinomial draws, but for its checks, for which the host would wait for the device.
            probabilities = scores.softmax(-1)
            if noise is None:
                noise = self._fill(torch.empty_like(probabilities))
            codes = (probabilities / noise).argmax(-1)
        else:
            probabilities, codes = scores, scores.argmax(-1)
        if self.failed is not None:  # whatever is not finite spoils a row, or is taken for its largest value
            self.failed.logical_or_(~probabilities.gather(-1, codes[:, None]).isfinite().all())
        if self.scores is not None:
            self.scores.append(scores)
        return codes.repeat(2) if self.guided else codes

    def check_scores(self) -> None:
        """Waits for the device.

        Raises:
            ValueError: scores that codes were drawn from were not finite.
        """
        if self.failed is not None and self.failed:
            raise ValueError(
                "The model's scores of codes are NaN or infinite, so no image was generated: check the weights, and "
                "take bfloat16 or float32 where float16 overflows."
            )

    def warp(self, scores: torch.Tensor) -> torch.Tensor:
        """Temperature, top-k and top-p of (M, K), as Transformers' warpers have them (ties with the k-th are kept).

        Theirs sort all K entries for top-p, at every level of every position; here the k that top-k left are enough.
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


def _plain_number(value: Any, unset: float) -> Any:
    """Python's own number where `value` is one of NumPy or a tensor of one, and `unset` where it is None."""
    if value is None:
        return unset
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, Number) and not isinstance(value, (int, float)) and hasattr(value, "item"):
        return value.item()
    return value


__all__ = ["EvoTokCodeSampler"]
