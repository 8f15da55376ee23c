"""Plans serving: bytes of a model and its caches, and images a second by the bandwidth of the memory.

Generation reads all weights of the language model once for each position of an image, and those of the depth decoder
once for each level of it, whatever the batch; the cache of each row comes on top. On accelerators a small batch is
limited by that, not by arithmetic.

Shapes: M images at once, R = 2M rows under guidance, T tokens of a prompt, N positions, L generated levels.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ..recipes import read_recipe
from ..stages import STAGES
from .configs import find_config
from .plan import TEXT_TOKENS


HALF, FULL = 2, 4
"""Bytes of a weight in bfloat16, and in fp32, the precision of the image tokenizer."""


class ServingPlan(NamedTuple):
    """Memory and speed of one replica of a model.

    Args:
        weights: bytes of all of them.
        cache_token: bytes of the keys and values of one token.
        positions: of an image, N.
        image_tokens, chat_tokens: of a prompt with its image, T + N, and of a question about one.
        position_bytes, position_flops: read once for a position of a batch; computed for each of its rows.
        token_bytes, token_flops: the same for a token of text.
    """

    weights: float
    cache_token: float
    positions: int
    image_tokens: int
    chat_tokens: int
    position_bytes: float
    position_flops: float
    token_bytes: float
    token_flops: float

    @property
    def cache_image(self) -> float:
        """Returns the bytes of the cache of one image under guidance, which has two rows."""
        return 2 * self.image_tokens * self.cache_token

    @property
    def cache_chat(self) -> float:
        """Returns the bytes of the cache of one conversation with an image and a question."""
        return self.chat_tokens * self.cache_token

    def images_that_fit(self, memory: float) -> int:
        """Returns the number of images at once whose caches fit beside the weights into a memory, in bytes."""
        return max(int((memory - self.weights) // self.cache_image), 0)

    def images_a_second(self, batch: int, bandwidth: float, flops: float) -> float:
        """Returns the upper limit of images a second of a guided batch, by bytes and operations a second."""
        cache = 2 * (self.image_tokens - self.positions / 2) * self.cache_token  # its mean while it grows by N tokens
        reading = (self.position_bytes + batch * cache) / bandwidth
        computing = 2 * batch * self.position_flops / flops
        return batch / (self.positions * max(reading, computing))

    def tokens_a_second(self, batch: int, bandwidth: float, flops: float) -> float:
        """Returns the upper limit of tokens a second of a batch of conversations."""
        reading = (self.token_bytes + batch * self.cache_chat) / bandwidth
        return batch / max(reading, batch * self.token_flops / flops)


def plan_serving(path: str | Path, overrides: list[str]) -> ServingPlan:
    """Plans the serving of the model that a recipe trains, in bfloat16.

    Raises:
        ValueError: as [`read_recipe`]; a recipe of a part of the model, which generates nothing.
    """
    recipe = read_recipe(path, overrides)
    if not STAGES[recipe.stage].is_multimodal:
        raise ValueError(
            f"{path}: the stage {recipe.stage} trains one part of the model: give a recipe of a later one."
        )
    config = find_config(recipe, Path(path))
    with torch.device("meta"):
        model = EvoTokForConditionalGeneration(config)
    text, levels = config.text_config, config.vq_config.num_pixel_codebooks
    embeddings = model.get_input_embeddings()
    language_model = _count(model.model.language_model) - _count(embeddings)
    heads = _count(model.depth_decoder.classifiers)
    layers = _count(model.depth_decoder) - heads
    position = language_model + _count(model.model.pixel_projector) + levels * layers + heads
    token = language_model + _count(model.lm_head)
    tokenizer = _count(model.model.vq_model)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    positions = config.vq_config.num_positions
    return ServingPlan(
        weights=HALF * (_count(model) - tokenizer) + FULL * tokenizer,
        cache_token=HALF * 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim,
        positions=positions,
        image_tokens=TEXT_TOKENS["generation"][0] + positions,
        chat_tokens=TEXT_TOKENS["understanding"][0] + positions,
        position_bytes=HALF * position,
        position_flops=2 * position,
        token_bytes=HALF * token,
        token_flops=2 * token,
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
