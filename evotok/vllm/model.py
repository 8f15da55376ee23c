"""EvoTok for vLLM: vLLM's backend for Transformers models, an unchanged image tokenizer, and the depth decoder.

The tokenizer keeps its own layers, in float32 also in a model of another dtype, so that its codes equal those of
Transformers.
"""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.model_executor.models.transformers import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.model_executor.models.transformers.causal import CausalMixin
from vllm.model_executor.models.transformers.multimodal import MultiModalMixin
from vllm.multimodal import MULTIMODAL_REGISTRY

from evotok.modeling_evotok.modeling_evotok_depth import EvoTokDepthDecoder
from evotok.vllm.generation import RowStep, UnfinishedImages


if TYPE_CHECKING:
    from vllm.config import VllmConfig

DEPTH_PREFIX = "depth_decoder."


@MULTIMODAL_REGISTRY.register_processor(
    MultiModalProcessor, info=MultiModalProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class EvoTokForConditionalGeneration(MultiModalMixin, CausalMixin):
    """Language model, image tokenizer and depth decoder.

    `rows_of_step` is set by the worker; without it no images are generated.
    """

    def __init__(self, *, vllm_config: "VllmConfig", prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config, dtype = self.config, self.model_config.dtype
        depth_config = config.depth_decoder_config
        depth_config._attn_implementation = "sdpa"
        self.depth_decoder = EvoTokDepthDecoder(depth_config).to(self.device_config.device, dtype).eval()
        if dtype == torch.float16:
            self.depth_decoder.classifiers.float()
        self.rows_of_step: Callable[[], Sequence[RowStep]] = list
        self._images: UnfinishedImages | None = None

    @property
    def images(self) -> UnfinishedImages:
        """Returns the unfinished images."""
        if self._images is None:  # the weights of the codebooks are loaded after the constructor
            levels, quantizer = self.config.depth_decoder_config.num_codebooks, self.model.vq_model.quantizer
            codebooks = quantizer.stack_codebooks(levels, self.device_config.device)  # (L, K, C)
            self._images = UnfinishedImages(self.depth_decoder, codebooks, self.config.vq_config.num_positions)
        return self._images

    def recursive_replace(self) -> None:
        """Replaces layers by vLLM's in the language model and the projectors, but not in the image tokenizer."""
        vq_model, self.model.vq_model = self.model.vq_model, nn.Identity()
        try:
            super().recursive_replace()
        finally:
            self.model.vq_model = vq_model

    def keep_in_fp32(self, module: nn.Module) -> None:
        """Keeps the image tokenizer in float32; vLLM's method would convert its integer buffers, too."""
        vq_model = module.vq_model
        for tensor in (*vq_model.parameters(), *vq_model.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads the base model as vLLM does, and the depth decoder, which vLLM skips.

        Raises:
            ValueError: the checkpoint lacks weights of the depth decoder.
        """
        missing = dict(self.depth_decoder.state_dict(keep_vars=True))
        loaded = set()

        def others() -> Iterable[tuple[str, torch.Tensor]]:
            for name, weight in weights:
                if not name.startswith(DEPTH_PREFIX):
                    yield name, weight
                    continue
                own = missing.pop(name.removeprefix(DEPTH_PREFIX), None)
                if own is not None:
                    with torch.no_grad():
                        own.copy_(weight)
                    loaded.add(name)

        loaded |= super().load_weights(others())
        if missing:
            raise ValueError(f"The checkpoint has no {DEPTH_PREFIX}{next(iter(missing))}: copy or save it again.")
        return loaded

    def embed_input_ids(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Embeds tokens of a batch: (T,) -> (T, H), with the codes of images at generated positions."""
        embeds = super().embed_input_ids(input_ids, *args, **kwargs)
        steps = self.rows_of_step()
        found = self.images.inputs(steps) if steps else None
        if found is not None:
            tokens, features = found
            embeds = embeds.index_copy(0, tokens, self.model.pixel_projector(features).to(embeds))
        return embeds

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Computes logits of last hidden states: (R, H) -> (R, V) float32, in which rows of images allow one token.

        This token is `image_generation_token_id`, and the logits of the first L tokens are the codes of the position;
        for a held row it is `image_token_id`.
        """
        logits, steps, generated = super().compute_logits(hidden_states), self.rows_of_step(), []
        if steps:  # on every rank, because each embeds the codes in the next step
            rows = torch.tensor([step.index for step in steps], device=hidden_states.device)
            generated = self.images.generate(steps, hidden_states[rows])
        if logits is None:  # on another rank
            return None
        logits = logits.float()
        placeholders = [self.config.image_token_id, self.config.image_generation_token_id]
        logits[:, placeholders] = -math.inf
        for step, codes in zip(steps, generated, strict=True):
            row = logits[step.index].fill_(-math.inf)
            if codes is None:
                row[self.config.image_token_id] = 0
            else:
                row[: len(codes)] = codes.to(row)
                row[self.config.image_generation_token_id] = 2.0**31
        return logits

    @torch.no_grad()
    def decode_images(self, codes: torch.Tensor) -> torch.Tensor:
        """Decodes codes (M, N, L) to pixels (M, 3, height, width), about [-1, 1]."""
        return self.model.vq_model.decode_pixels(codes.to(self.device_config.device))
