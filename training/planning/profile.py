"""Profiles one step on the meta device, without memory for weights and activations.

The modules of the model run forward and backward on tensors without storage. A dispatch mode tracks what they allocate,
and torch's FLOP counter counts their products; only attention is replaced, by a function that saves the tensors that
flash attention saves, because no fused kernel runs on meta.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface

from ...modeling_evotok.configuration_evotok import EvoTokVQConfig
from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel


ATTENTION = "evotok_plan"


class BatchShape(NamedTuple):
    """One batch of one process.

    Args:
        batch: rows.
        length: tokens of a row, image positions included.
        labels: text targets of a row.
        input_images, generated_images: in all rows together.
    """

    batch: int
    length: int
    labels: int
    input_images: int
    generated_images: int


class Profile(NamedTuple):
    """Bytes of one batch beside parameters and states of the optimizer.

    `released`: the peak if gradients are freed as they come (ZeRO-2 and 3); `held`: the peak with all gradients kept.
    """

    released: int
    held: int


class _Allocations(TorchDispatchMode):
    """Counts the bytes of all live tensors, `now` and at their `peak`."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakValueDictionary = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for storage in _storages((args, kwargs)):  # weights, allocated before
            self._seen.setdefault(storage._cdata, storage)
        outputs = func(*args, **(kwargs or {}))
        for storage in _storages(outputs):
            if storage._cdata not in self._seen:
                self._seen[storage._cdata] = storage
                weakref.finalize(storage, self._drop, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return outputs

    def _drop(self, size: int) -> None:
        self.now -= size


def _storages(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class _Fused(torch.autograd.Function):
    """Attention that saves the tensors of a fused kernel: its inputs, its output and a number for every row."""

    flops = 0

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        _Fused.flops += 4 * query.numel() * key.shape[-2]
        return output

    @staticmethod
    def backward(ctx, grad):
        query, key, value, *_ = ctx.saved_tensors
        _Fused.flops += 8 * query.numel() * key.shape[-2]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attention(module, query, key, value, attention_mask, **kwargs):
    return _Fused.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)


def profile_step(model: nn.Module, run: Callable[[nn.Module], torch.Tensor], checkpointing: bool) -> Profile:
    """Profiles `run(model) -> loss` and its backward pass, once with gradients freed and once with gradients kept.

    Args:
        model: on the meta device, frozen as in training.
        run: one forward pass.
        checkpointing: whether activations are recomputed.
    """
    _set_checkpointing(model, checkpointing)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    peaks = []
    for release in (True, False):
        hooks = [p.register_post_accumulate_grad_hook(_free) for p in trained] if release else []
        with _Allocations() as memory:
            run(model).backward()
        peaks.append(memory.peak)
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    return Profile(*peaks)


def count_flops(model: nn.Module, run: Callable[[nn.Module], torch.Tensor], backward: bool = True) -> float:
    """Counts the operations of `run(model) -> loss` and its backward pass, without recomputation."""
    _set_checkpointing(model, False)
    _Fused.flops = 0
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        loss = run(model)
        if backward:
            loss.backward()
    model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops() + _Fused.flops)


def _set_checkpointing(model: Any, checkpointing: bool) -> None:
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.activation_checkpointing_disable()


def _free(parameter: torch.Tensor) -> None:
    parameter.grad = None


def run_multimodal(model: EvoTokForConditionalGeneration, rows: BatchShape) -> torch.Tensor:
    """Returns the loss of one batch. Tensors on meta have no values to find image positions by, so that the parts of
    `forward` are called here: images and text side by side, then both heads."""
    inner, config = model.model, model.config
    vq, dtype = config.vq_config, inner.language_model.dtype
    embeddings = inner.get_input_embeddings()
    images = rows.input_images + rows.generated_images
    parts = [embeddings(_meta(rows.batch * rows.length - images * vq.num_positions, dtype=torch.long))]
    if rows.input_images:
        features = _meta(rows.input_images * vq.num_positions, vq.semantic_feature_dim, dtype=dtype)
        parts.append(inner.semantic_projector(features))
    if rows.generated_images:
        parts.append(
            inner.pixel_projector(_meta(rows.generated_images * vq.num_positions, vq.codebook_dim, dtype=dtype))
        )
    embeds = torch.cat(parts).view(rows.batch, rows.length, -1)
    if not embeds.requires_grad:
        embeds.requires_grad_(any(p.requires_grad for p in inner.language_model.parameters()))
    hidden = inner.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state.flatten(0, 1)
    loss = hidden.new_zeros(())
    if rows.labels:
        targets = _meta(rows.batch * rows.labels, dtype=torch.long)
        logits = model.lm_head(hidden[: len(targets)])
        loss = loss + model.loss_function(
            logits=logits, labels=targets, shift_labels=targets, vocab_size=config.text_config.vocab_size
        )
    if rows.generated_images:
        positions, levels = rows.generated_images * vq.num_positions, vq.num_pixel_codebooks
        codes = _meta(positions, levels, dtype=torch.long)
        codebooks = _meta(positions, levels, vq.codebook_dim, dtype=torch.float32)
        loss = loss + model.depth_decoder.loss(hidden[:positions], codebooks, codes).loss
    return loss


def run_tokenizer(model: EvoTokVQModel, batch: int) -> torch.Tensor:
    """Returns a loss on reconstruction and semantics of one batch, without the quantizer, which needs values."""
    config = model.config
    features = model._encode_features(_meta(batch, 3, config.image_size, config.image_size))[0]
    pixels, semantics = model._to_pixels(features), model._to_semantics(features)
    return pixels.square().mean() + semantics.square().mean()


def encoding_flops(model: EvoTokVQModel, with_search: bool = True) -> float:
    """Counts the operations that encode one image to codes, or without the search to features."""
    config = model.config
    _Fused.flops = 0
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model._encode_features(_meta(1, 3, config.image_size, config.image_size))
    return float(counter.get_total_flops() + _Fused.flops + (search_flops(config) if with_search else 0))


def search_flops(config: EvoTokVQConfig) -> float:
    """Returns the operations that find the codes of one image among the entries of all levels."""
    return 2.0 * config.num_positions * config.codebook_size * config.codebook_dim * config.num_codebooks


def _meta(*shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
