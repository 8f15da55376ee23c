"""Compiles the repeated blocks of a model one by one, and not the model as a whole.

A graph of the whole model would break where the quantizer updates its codebooks and where images are put between
texts, and would take minutes to compile. All layers of one kind share a graph. What is between the blocks runs as
before, and the names of weights in checkpoints stay the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..modeling_evotok.decoders_evotok import EvoTokPixelDecoder
from .recipe_checks import is_compiled


_TOKENIZER = "vq_model"  # frozen in a multimodal model: its codes must be those of code shards, to the bit
_GRAPHS = 64  # of one kind of block: widths, lengths, with and without gradients


def compile_blocks(model: nn.Module, training: Mapping[str, Any]) -> int:
    """Sets the transformer layers and the pixel decoder to be compiled on their first call, if a recipe asks for it.

    A second length of rows compiles a graph for all lengths. The image tokenizer inside a multimodal model is left as
    it is.

    Args:
        model: changed in place.
        training: section of a recipe.

    Returns:
        The number of blocks.
    """
    if not is_compiled(training):
        return 0
    blocks = list(_outermost(model))
    # Over the limit a block would run uncompiled, with no more than a line in the log.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    for block in blocks:
        backend = training.get("torch_compile_backend") or "inductor"
        block.compile(backend=backend, mode=training.get("torch_compile_mode"))
    return len(blocks)


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    # The pixel decoder as one: every block of it has another width, and half of its time is between convolutions.
    if isinstance(module, (GradientCheckpointingLayer, EvoTokPixelDecoder)):
        yield module
        return
    for name, child in module.named_children():
        if name != _TOKENIZER:
            yield from _outermost(child)
