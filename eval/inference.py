"""Batched inference of suites, demo and command line: answers about images, and images from text.

Shapes: B prompts of a batch, T tokens, I images, N positions, F width of the features, H width of the language model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ..processing.processing_evotok import EvoTokProcessor
from .metrics import round_pixels
from .sequences import split_batches


Teacher = Callable[[torch.Tensor], torch.Tensor]
"""A vision tower: pixels (I, 3, H, W) in [-1, 1] -> features (I, N, F)."""


@torch.inference_mode()
def answer(
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    conversations: Sequence[list[dict[str, Any]]],
    teacher: Teacher | None = None,
    **options: Any,
) -> list[str]:
    """Generates the next message of each conversation, in one batch.

    Args:
        model: in evaluation mode.
        conversations: messages with their images; the last message is the user's.
        teacher: computes the features of images in place of their codes, see [`continuous_features`].
        options: of `generate`.

    Raises:
        ValueError: a conversation exceeds the model's context.
    """
    inputs = processor.apply_chat_template(
        list(conversations), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    length, limit = inputs["input_ids"].shape[1], model.config.text_config.max_position_embeddings
    if length >= limit:
        raise ValueError(f"a question has {length} tokens, the model reads fewer than {limit}: leave it out.")
    if teacher is not None and "pixel_values" in inputs:
        options["mm_encoder_outputs"] = {"image": continuous_features(model, teacher, inputs.pop("pixel_values"))}
    tokens = model.generate(**inputs, **options)  # (B, T + new)
    return [text.strip() for text in processor.batch_decode(tokens[:, length:], skip_special_tokens=True)]


@torch.inference_mode()
def continuous_features(
    model: EvoTokForConditionalGeneration, teacher: Teacher, pixel_values: torch.Tensor
) -> BaseModelOutputWithPooling:
    """Computes what `get_image_features` returns from the features of a vision tower instead of codes.

    The semantic loss is a cosine (Sec. 3.2, Eq. 5): decoded semantics have the direction of the tower's features, but
    a norm of their own. The tower's feature is scaled to that norm at every position.

    Args:
        teacher: the vision tower that the tokenizer was trained with.
        pixel_values: (I, 3, H, W) in [-1, 1].

    Returns:
        `last_hidden_state` (I, N, F) and `pooler_output` (I, N, H).
    """
    norms = model.get_image_features(pixel_values).last_hidden_state.norm(dim=-1, keepdim=True)
    features = F.normalize(teacher(pixel_values).float(), dim=-1) * norms
    dtype = next(model.model.semantic_projector.parameters()).dtype
    projected = model.model.semantic_projector(features.to(dtype))
    return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=projected)


def answer_questions(
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    records: Sequence[dict[str, Any]],
    batch_size: int = 32,
    max_new_tokens: int = 16,
    teacher: Teacher | None = None,
) -> list[str]:
    """Generates greedy answers to the questions of records, in their order.

    Args:
        model: in evaluation mode.
        records: `{"messages": [..., right answer], "images": [...]}`; the last message is not shown to the model.
        teacher: as in [`answer`].
    """
    answers: list[str] = []
    for batch in split_batches(records, batch_size):
        prompts = [prompt_of(record) for record in batch]
        answers += answer(model, processor, prompts, teacher, do_sample=False, max_new_tokens=max_new_tokens)
    return answers


def prompt_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the messages of a record without the last one, with each image in its part; the record is unchanged."""
    images = iter(record["images"])
    return [
        message | {"content": [p | {"image": next(images)} if p["type"] == "image" else p for p in message["content"]]}
        for message in record["messages"][:-1]
    ]


@torch.inference_mode()
def generate_images(
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    prompts: Sequence[str],
    guidance_scale: float = 7.5,
    guidance_min_p: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    **sampling: Any,
) -> torch.Tensor:
    """Generates one image for each prompt, rounded to 8 bits.

    Args:
        model: in evaluation mode.
        guidance_min_p: the checkpoint's own when None.
        seed: of one generator for all batches; equal images need an equal `batch_size`, too.
        seeds: of each image, which then depends neither on the others nor on `batch_size`; instead of `seed`.
        sampling: more arguments of `generate(generation_mode="image")`, such as `temperature` or `top_p`.

    Returns:
        (prompts, 3, H, W) float32 in [-1, 1] on the CPU.

    Raises:
        ValueError: no prompts, or one that exceeds the context.
    """
    if not prompts:
        raise ValueError("No prompts: give at least one.")
    if guidance_min_p is not None:
        sampling["guidance_min_p"] = guidance_min_p
    generator: Any = torch.Generator(model.device).manual_seed(seed)
    images = []
    for indices in split_batches(range(len(prompts)), batch_size):
        if seeds is not None:
            generator = [torch.Generator(model.device).manual_seed(seeds[index]) for index in indices]
        inputs = processor.apply_chat_template(
            [[{"role": "user", "content": prompts[index]}] for index in indices],
            generation_mode="image",
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        codes = model.generate(
            **inputs, generation_mode="image", guidance_scale=guidance_scale, generator=generator, **sampling
        )
        images.append(round_pixels(model.decode_image_tokens(codes)).cpu())
    return torch.cat(images)
