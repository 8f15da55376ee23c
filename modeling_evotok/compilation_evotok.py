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
"""Compilation of a position by regions: one layer of the language model, one of the depth decoder, and the sampler.

`torch.compile` of a whole position traces every layer and generates its own code, 28 of the language model and 4 x 6
of the depth decoder at the paper's size. Here each kind of layer is compiled once and called for all of its kind, and
the few operations between them run as they are; a CUDA graph around the position removes their launches.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache, CompileConfig

from .modeling_evotok_depth import EvoTokDepthDecoder
from .sampling_evotok import EvoTokCodeSampler


class EvoTokPositionModules(NamedTuple):
    """Modules of a position; the language model has no head."""

    pixel_projector: nn.Module
    language_model: nn.Module
    depth_decoder: EvoTokDepthDecoder


class EvoTokLayerCache(Cache):
    """One layer of a cache, whatever the index it is called with: indices would make every layer a graph of its own."""

    def __init__(self, layer):
        super().__init__(layers=[layer])

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        return self.layers[0].update(key_states, value_states, *args, **kwargs)


def compile_options(config: CompileConfig) -> dict[str, Any]:
    """Returns the arguments of `torch.compile`, without CUDA graphs, which cannot be captured within ours."""
    options = config.to_dict()
    modes = {"reduce-overhead": None, "max-autotune": "max-autotune-no-cudagraphs"}
    return options | {"mode": modes.get(options["mode"], options["mode"])}


def compile_regions(
    modules: EvoTokPositionModules, cache: Cache, sampler: EvoTokCodeSampler, options: dict[str, Any]
) -> EvoTokPositionModules:
    """Compiles the layers of a position, and the sampling of a level in place.

    Args:
        modules: not changed.
        cache: a static cache of the language model.
        sampler: its `sample` is replaced.
        options: of `torch.compile`.

    Returns:
        Modules with the same weights, for this cache alone.

    Raises:
        ValueError: the language model has no `layers`, one for each layer of the cache.
    """
    layers = getattr(modules.language_model, "layers", ())
    if len(layers) != len(cache.layers):
        raise ValueError(
            f"compile_config: the language model has {len(layers)} `layers` and its cache {len(cache.layers)}, so they "
            "cannot be compiled one by one: pass CompileConfig(fullgraph=True)."
        )
    language_layer = torch.compile(_run_language_layer, **options)
    depth_layer = torch.compile(_run_depth_layer, **options)
    caches = [EvoTokLayerCache(layer) for layer in cache.layers]
    language_calls = [functools.partial(language_layer, *pair) for pair in zip(layers, caches, strict=True)]
    depth_calls = [functools.partial(depth_layer, layer) for layer in modules.depth_decoder.layers]
    sampler.sample = torch.compile(sampler.sample, **options)
    return modules._replace(
        language_model=_replace_layers(modules.language_model, language_calls),
        depth_decoder=_replace_layers(modules.depth_decoder, depth_calls),
    )


# Two functions, because a limit of graphs holds for each function.
def _run_language_layer(layer, cache, *args, **kwargs):
    return layer.forward(*args, **kwargs | {"past_key_values": cache})


def _run_depth_layer(layer, *args, **kwargs):
    return layer.forward(*args, **kwargs)


def _replace_layers(model, calls: list[Callable]) -> nn.Module:
    """Returns a shallow copy of a model with these calls as the `forward` of its layers; the model itself is not
    changed, because others may use it at the same time."""
    replaced = [copy.copy(layer) for layer in model.layers]
    for layer, call in zip(replaced, calls, strict=True):
        layer.forward = call
    copied = copy.copy(model)
    copied._modules = model._modules | {"layers": nn.ModuleList(replaced)}
    return copied


__all__ = ["EvoTokLayerCache", "EvoTokPositionModules", "compile_options", "compile_regions"]
