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
"""Generation of the codes of images, position by position, with caches of fixed shape.

    prompt -> language model -> hidden state -> depth decoder -> codes of position 0
    codes  -> pixel projector -> language model -> hidden state -> depth decoder -> codes of position 1, and so on

The second line is one function of tensors, `generate_position`: it compiles, by regions or as one graph, and on a GPU
it is captured as a CUDA graph. Nothing in the loop waits for the device.

Shapes: M images, R = M rows or, guided, 2M [conditional; unconditional], T prompt length, S length of the cache, N
positions, L levels, H width of the language model, K codebook size, C codebook width.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from transformers import CompileConfig, DynamicCache, StaticCache

from .compilation_evotok import EvoTokPositionModules, compile_options, compile_regions
from .modeling_evotok_depth import EvoTokDepthCache
from .sampling_evotok import EvoTokCodeSampler


# Calls before a graph is captured, in which libraries allocate workspaces and kernels are compiled.
_WARM_UP_CALLS = 2


class EvoTokCudaGraph:
    """Function of tensors that is called as it is at first, then captured as a CUDA graph and replayed from there on.

    A position is some thousand small kernels, which Python launches more slowly than a GPU runs them; a graph launches
    them at once. `torch.compile` fuses them as well, but takes longer; a capture takes as long as the position.

    Args:
        function: takes and returns tensors on one GPU, and may change others in place. It must not wait for the device;
            the other tensors that it uses must keep their addresses; shapes and dtypes of all calls are the same.
    """

    def __init__(self, function: Callable[..., tuple[torch.Tensor, ...]]):
        self.function, self.calls = function, 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[torch.Tensor, ...] = ()
        self.outputs: tuple[torch.Tensor, ...] = ()

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the function's outputs, which the next call overwrites.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        self.calls += 1
        if self.calls <= _WARM_UP_CALLS:
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                outputs = self.function(*inputs)
            current.wait_stream(self.stream)
            return outputs
        if self.graph is None:
            self.graph = self._capture(inputs)
        for captured, given in zip(self.inputs, inputs, strict=True):
            captured.copy_(given)
        self.graph.replay()
        return self.outputs

    def _capture(self, inputs: tuple[torch.Tensor, ...]) -> torch.cuda.CUDAGraph:
        self.inputs = tuple(given.clone() for given in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.outputs = self.function(*self.inputs)
        except RuntimeError as error:
            raise RuntimeError(
                "A position cannot be captured as a CUDA graph: something in it, such as a hook or a replaced layer, "
                f"waits for the device. Pass disable_compile=True to generate. ({error})"
            ) from error
        return graph


def run_language_model(language_model, embeds, mask, position_ids, cache) -> torch.Tensor:
    """Runs the language model without its head: (R, t, H) -> last hidden states (R, H)."""
    outputs = language_model(
        inputs_embeds=embeds.to(language_model.dtype),
        attention_mask=mask,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=True,
    )
    return outputs.last_hidden_state[:, -1]


def generate_position(
    modules: EvoTokPositionModules,
    features: torch.Tensor,
    position_ids: torch.Tensor,
    mask: torch.Tensor,
    noise: torch.Tensor,
    codebooks: torch.Tensor,
    cache: StaticCache | DynamicCache,
    depth_cache: EvoTokDepthCache,
    sampler: EvoTokCodeSampler,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generates a position from the one before it: features (R, C), position ids (R, 1), mask (R, S), noise (L, M, K)
    -> codes (R, L), features (R, C)."""
    embeds = modules.pixel_projector(features)[:, None]
    hidden = run_language_model(modules.language_model, embeds, mask, position_ids, cache)
    return modules.depth_decoder.generate_codes(hidden, codebooks, sampler, depth_cache, noise)


class EvoTokImageGenerator:
    """Generator of the images of a batch of prompts: an iterator over the codes (M, L) of each position.

    Args:
        model: an [`EvoTokForConditionalGeneration`].
        embeds: (R, T, H) embedded prompts, left-padded.
        mask: (R, T) int64.
        sampler: samples the codes.
        cache_implementation: `"static"`, `"dynamic"`, or None for the former where it works.
        compile_config: compiles the layers and the sampler of `generate_position`, or with `fullgraph` all of it.
        disable_compile: captures no CUDA graph.

    Raises:
        ValueError: an unknown `cache_implementation`, or a dynamic cache with `compile_config`.
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
        self.modules = EvoTokPositionModules(
            model.model.pixel_projector, model.model.language_model, model.depth_decoder
        )
        (rows, self.length), self.positions = mask.shape, model.config.vq_config.num_positions
        self.images = rows // 2 if sampler.guided else rows
        self.cache = self._new_cache(cache_implementation, mask.device)
        self.is_dynamic = isinstance(self.cache, DynamicCache)
        if self.is_dynamic and compile_config is not None:
            raise ValueError("compile_config needs fixed shapes: cache_implementation='static'.")
        self.prompt_ids = (mask.cumsum(-1) - 1).clamp(min=0)  # (R, T)
        self.next_ids = mask.sum(-1, keepdim=True) + torch.arange(self.positions, device=mask.device)  # (R, N)
        self.mask = F.pad(mask, (0, self.positions), value=1)  # (R, T + N); the causal mask hides later positions
        self.depth_cache = model.depth_decoder.new_cache(rows, mask.device)
        device = self.depth_cache.positions.device
        levels = model.config.depth_decoder_config.num_codebooks
        self.codebooks = model.model.vq_model.quantizer.stack_codebooks(levels, mask.device).to(device)  # (L, K, C)
        sampler.failed = torch.zeros((), dtype=torch.bool, device=device)
        noise_shape = (self.images, self.codebooks.shape[1]) if sampler.do_sample else (0, 0)
        self.noise = torch.empty(len(self.codebooks), *noise_shape, device=device)
        self.generate_next = self._compile(compile_config, disable_compile)

    def empty_codes(self) -> torch.Tensor:
        """Allocates codes of all positions, (M, N, L)."""
        return self.mask.new_empty(self.images, self.positions, len(self.codebooks))

    def __iter__(self) -> Iterator[torch.Tensor]:
        prompt = self.embeds, self.mask[:, : self.length], self.prompt_ids, self.cache
        codes, features = self.modules.depth_decoder.generate_codes(
            run_language_model(self.modules.language_model, *prompt),
            self.codebooks,
            self.sampler,
            self.depth_cache,
            self.sampler.fill_noise(self.noise),
        )
        yield codes[: self.images]
        for position in range(1, self.positions):
            ids = self.next_ids[:, position - 1 : position]
            mask = self.mask[:, : self.length + position] if self.is_dynamic else self.mask
            codes, features = self.generate_next(features, ids, mask, self.sampler.fill_noise(self.noise))
            yield codes[: self.images]

    def _compile(self, compile_config: CompileConfig | None, disable_compile: bool) -> Callable:
        """Returns `generate_position` as a function of what changes between positions, compiled and captured where
        possible."""
        function, modules = generate_position, self.modules
        if compile_config is not None and compile_config.fullgraph:
            function = torch.compile(function, **compile_options(compile_config))
        elif compile_config is not None:
            modules = compile_regions(modules, self.cache, self.sampler, compile_options(compile_config))

        def generate_next(features, ids, mask, noise):
            fixed = (self.codebooks, self.cache, self.depth_cache, self.sampler)
            return function(modules, features, ids, mask, noise, *fixed)

        return EvoTokCudaGraph(generate_next) if self._can_capture() and not disable_compile else generate_next

    def _can_capture(self) -> bool:
        """Returns whether all tensors of a position are on one GPU and none of its modules is known to use the host."""
        model, quantizer = self.model, getattr(self.model, "hf_quantizer", None)
        devices = {parameter.device for module in self.modules for parameter in module.parameters()}
        return (
            devices == {self.mask.device}
            and self.mask.is_cuda
            and not self.is_dynamic
            and self.sampler.scores is None
            and model.config.text_config._attn_implementation in ("sdpa", "eager")
            and (quantizer is None or quantizer.is_compileable)
        )

    def _new_cache(self, implementation: str | None, device: torch.device) -> StaticCache | DynamicCache:
        config = self.model.config.text_config
        if implementation is None:
            # Flash attention attends to all that the mask allows, later positions as well; under autocast keys and
            # values differ in dtype between positions, which a static cache does not allow.
            is_dynamic = "flash" in config._attn_implementation or torch.is_autocast_enabled(device.type)
            implementation = "dynamic" if is_dynamic else "static"
        if implementation == "static":
            return StaticCache(config=config, max_cache_len=self.length + self.positions)
        if implementation == "dynamic":
            return DynamicCache(config=config)
        raise ValueError(f"cache_implementation={implementation!r} must be 'static' or 'dynamic' for images.")


__all__ = ["EvoTokCudaGraph", "EvoTokImageGenerator"]
