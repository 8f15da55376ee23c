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
"""Writing images position by position, with caches of fixed shape: the loop in which drawing spends its time.

    prompt -> language model -> hidden state -> depth decoder -> codes of position 0
    codes  -> pixel projector -> language model -> hidden state -> depth decoder -> codes of position 1, and so on

The second line is one function of tensors, `write_position`: it compiles as one graph, and on a GPU it is recorded as a
CUDA graph, see `cuda_graph_evotok`. Nothing in the loop waits for the device.

Shapes: M images, R = M rows or, guided, 2M [conditional; unconditional], T prompt length, S length of the cache, N
positions, L levels, H width of the language model, K codebook size, C codebook width.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from transformers import CompileConfig, DynamicCache, StaticCache

from .cuda_graph_evotok import EvoTokCapturedStep
from .modeling_evotok_depth import EvoTokDepthCache
from .sampling_evotok import EvoTokCodeSampler


def read(model, embeds, mask, position_ids, cache) -> torch.Tensor:
    """One pass of the language model, without its head: (R, t, H) -> last hidden states (R, H)."""
    language_model = model.model.language_model
    outputs = language_model(
        inputs_embeds=embeds.to(language_model.dtype),
        attention_mask=mask,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=True,
    )
    return outputs.last_hidden_state[:, -1]


def write_position(
    model,
    features: torch.Tensor,
    position_ids: torch.Tensor,
    mask: torch.Tensor,
    noise: torch.Tensor,
    codebooks: torch.Tensor,
    cache: StaticCache | DynamicCache,
    depth_cache: EvoTokDepthCache,
    sampler: EvoTokCodeSampler,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the position before, write the next: (R, C), (R, 1), (R, S), (L, M, K) -> codes (R, L), features (R, C)."""
    hidden = read(model, model.model.pixel_projector(features)[:, None], mask, position_ids, cache)
    return model.depth_decoder.generate_codes(hidden, codebooks, sampler, depth_cache, noise)


class EvoTokImageWriter:
    """The images of a batch of prompts: iterating gives the codes (M, L) of one position after another.

    Args:
        model: an [`EvoTokForConditionalGeneration`].
        embeds: (R, T, H) embedded prompts, left-padded.
        mask: (R, T) int64.
        sampler: draws the codes.
        cache_implementation: `"static"`, `"dynamic"`, or None for the former where it works.
        compile_config: compile `write_position` with it.
        disable_compile: record no CUDA graph.

    Raises:
        ValueError: an unknown `cache_implementation`, or a growing cache that is to be compiled.
    """

    def __init__(
        self,
        model,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        sampler: EvoTokCodeSampler,
        cache_implementation: str | None = None,
        compile_config: CompileConfig | None = None,
        disable_compile: bool = False,
    ):
        self.model, self.embeds, self.sampler = model, embeds, sampler
        (rows, self.length), self.positions = mask.shape, model.config.vq_config.num_positions
        self.images = rows // 2 if sampler.guided else rows
        self.cache = self._new_cache(cache_implementation, mask.device)
        self.grows = isinstance(self.cache, DynamicCache)
        if self.grows and compile_config is not None:
            raise ValueError("compile_config needs shapes that stay: cache_implementation='static'.")
        self.prompt_ids = (mask.cumsum(-1) - 1).clamp(min=0)  # (R, T)
        self.next_ids = mask.sum(-1, keepdim=True) + torch.arange(self.positions, device=mask.device)  # (R, N)
        self.mask = F.pad(mask, (0, self.positions), value=1)  # (R, T + N); what is not written yet, causality hides
        self.depth_cache = model.depth_decoder.new_cache(rows, mask.device)
        device = self.depth_cache.positions.device
        self.codebooks = self._codebooks(mask.device).to(device)  # (L, K, C)
        sampler.failed = torch.zeros((), dtype=torch.bool, device=device)
        drawn = (self.images, self.codebooks.shape[1]) if sampler.do_sample else (0, 0)
        self.noise = torch.empty(len(self.codebooks), *drawn, device=device)
        self.write = self._fast(write_position, compile_config, disable_compile)

    def new_codes(self) -> torch.LongTensor:
        """Where codes of all positions fit, (M, N, L)."""
        return self.mask.new_empty(self.images, self.positions, len(self.codebooks))

    def __iter__(self) -> Iterator[torch.LongTensor]:
        hidden = read(self.model, self.embeds, self.mask[:, : self.length], self.prompt_ids, self.cache)
        codes, features = self.model.depth_decoder.generate_codes(
            hidden, self.codebooks, self.sampler, self.depth_cache, self.sampler.cast(self.noise)
        )
        yield codes[: self.images]
        for position in range(1, self.positions):
            ids = self.next_ids[:, position - 1 : position]
            seen = self.mask[:, : self.length + position] if self.grows else self.mask
            codes, features = self.write(features, ids, seen, self.sampler.cast(self.noise))
            yield codes[: self.images]

    def _fast(self, function, compile_config: CompileConfig | None, disable_compile: bool):
        """`function` of what changes from position to position, compiled and recorded if it may be."""
        if compile_config is not None:
            options = compile_config.to_dict()
            # Their CUDA graphs would be recorded inside of ours.
            options["mode"] = {"reduce-overhead": None, "max-autotune": "max-autotune-no-cudagraphs"}.get(
                options["mode"], options["mode"]
            )
            function = torch.compile(function, **options)

        def write(features, ids, seen, noise):
            kept = (self.codebooks, self.cache, self.depth_cache, self.sampler)
            return function(self.model, features, ids, seen, noise, *kept)

        return EvoTokCapturedStep(write) if self._can_be_captured() and not disable_compile else write

    def _can_be_captured(self) -> bool:
        """Whether all that a position needs lies on one GPU, and is known to leave the host alone."""
        model, quantizer = self.model, getattr(self.model, "hf_quantizer", None)
        parts = (model.model.language_model, model.model.pixel_projector, model.depth_decoder)
        devices = {parameter.device for part in parts for parameter in part.parameters()}
        return (
            devices == {self.mask.device}
            and self.mask.is_cuda
            and not self.grows
            and self.sampler.scores is None
            and model.config.text_config._attn_implementation in ("sdpa", "eager")
            and (quantizer is None or quantizer.is_compileable)
        )

    def _new_cache(self, implementation: str | None, device: torch.device) -> StaticCache | DynamicCache:
        config = self.model.config.text_config
        if implementation is None:
            # Flash attention takes the mask for all there is to see, written or not; under autocast keys and values
            # differ in dtype from step to step, and only a growing cache takes that.
            grows = "flash" in config._attn_implementation or torch.is_autocast_enabled(device.type)
            implementation = "dynamic" if grows else "static"
        if implementation == "static":
            return StaticCache(config=config, max_cache_len=self.length + self.positions)
        if implementation == "dynamic":
            return DynamicCache(config=config)
        raise ValueError(f"cache_implementation={implementation!r} must be 'static' or 'dynamic' for images.")

    def _codebooks(self, device: torch.device) -> torch.Tensor:
        """Entries of the levels written, one contiguous table (L, K, C): looked up N x L times."""
        config = self.model.config.depth_decoder_config
        every = torch.arange(config.codebook_size, device=device)[:, None].expand(-1, config.num_codebooks)
        return self.model.model.vq_model.quantizer.embed(every).transpose(0, 1).contiguous()


__all__ = ["EvoTokImageWriter"]
