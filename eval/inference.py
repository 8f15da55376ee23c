"""Batched inference with a model and its processor: answers to conversations, and images from prompts.

Suites and the lmms-eval plugin use it directly; `evotok/inference.py` builds streams and batches of requests on it.

Shapes: B prompts of a batch, T tokens, I images, N positions, F width of the features, H width of the language model.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ..processing.processing_evotok import EvoTokProcessor


Conversation = list[dict[str, Any]]
"""Messages with their images in place, the last one the user's."""
Teacher = Callable[[torch.Tensor], torch.Tensor]
"""A vision tower: pixels (I, 3, H, W) in [-1, 1] -> features (I, N, F)."""


def read_chat(
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    conversations: Conversation | Sequence[Conversation],
) -> tuple[BatchFeature, int]:
    """Reads one conversation, or a batch of them, into the arguments of `generate` for the next answer.

    Returns:
        Inputs on the model's device, and the longest answer in tokens.

    Raises:
        ValueError: a conversation does not fit into the model's context.
    """
    inputs = processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    return inputs, remaining_tokens(inputs["input_ids"].shape[1], model.config)


def remaining_tokens(length: int, config) -> int:
    """Returns the longest answer in tokens after a conversation of `length` tokens.

    Raises:
        ValueError: the conversation leaves no room for an answer.
    """
    limit = config.text_config.max_position_embeddings
    if length >= limit:
        raise ValueError(
            f"The conversation has {length} tokens; the limit is {limit - 1}: shorten the question, use "
            "fewer images, or start a new conversation."
        )
    return limit - length


def read_image_prompt(
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    prompt: str | Conversation | Sequence[Conversation],
    negative_prompt: str = "",
) -> BatchFeature:
    """Reads a prompt, or a batch of them, and the negative prompt into the arguments of
    `generate(generation_mode="image")`.

    Args:
        prompt: text, or a conversation, which may hold input images, or a batch of conversations.
        negative_prompt: of all prompts of a batch.

    Raises:
        ValueError: one of them leaves no room for the image in the model's context.
    """
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
        generation_mode="image",
        negative_prompt=negative_prompt,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    limit = model.config.text_config.max_position_embeddings - model.config.vq_config.num_positions
    for name, mask in (("prompt", "attention_mask"), ("negative prompt", "negative_prompt_attention_mask")):
        lengths = inputs[mask].sum(-1).tolist()
        if max(lengths) > limit:
            subject = f"The {name}"
            if name == "prompt" and len(lengths) > 1:
                subject = f"Prompt {lengths.index(max(lengths)) + 1} of {len(lengths)}"
            raise ValueError(f"{subject} has {max(lengths)} tokens; the limit before an image is {limit}: shorten it.")
    return inputs


@torch.inference_mode()
def answer(
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    conversations: Sequence[Conversation],
    teacher: Teacher | None = None,
    *,
    max_new_tokens: int,
    **options: Any,
) -> list[str]:
    """Generates the next message of each conversation, in one batch.

    Args:
        model: in evaluation mode.
        teacher: computes the features of images in place of their codes, see [`continuous_features`].
        max_new_tokens: longest answer, which the context may shorten.
        options: more arguments of `generate`, such as `do_sample`, or a `streamer` for a batch of one.

    Raises:
        ValueError: a conversation does not fit into the model's context.
    """
    inputs, room = read_chat(model, processor, conversations)
    if teacher is not None and "pixel_values" in inputs:
        options["mm_encoder_outputs"] = {"image": continuous_features(model, teacher, inputs.pop("pixel_values"))}
    tokens = model.generate(**inputs, max_new_tokens=min(max_new_tokens, room), **options)  # (B, T + new)
    answers = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True)]


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
    semantics = cast(torch.Tensor, model.get_image_features(pixel_values).last_hidden_state)
    norms = semantics.norm(dim=-1, keepdim=True)
    features = F.normalize(teacher(pixel_values).float(), dim=-1) * norms
    dtype = next(model.model.semantic_projector.parameters()).dtype
    projected = model.model.semantic_projector(features.to(dtype))
    return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=projected)


def answer_questions(
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    rows: Sequence[dict[str, Any]],
    batch_size: int = 32,
    max_new_tokens: int = 16,
    teacher: Teacher | None = None,
) -> list[str]:
    """Generates greedy answers to the questions of rows, in their order.

    Args:
        model: in evaluation mode.
        rows: `{"messages": [..., right answer], "images": [...]}`; the last message is not shown to the model.
        teacher: as in [`answer`].
    """
    answers: list[str] = []
    for start in range(0, len(rows), batch_size):
        prompts = [prompt_of(row) for row in rows[start : start + batch_size]]
        answers += answer(model, processor, prompts, teacher, do_sample=False, max_new_tokens=max_new_tokens)
    return answers


def prompt_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the messages of a row without the last one, with each image in its part; the row is unchanged."""
    images = iter(row["images"])
    return [
        message | {"content": [p | {"image": next(images)} if p["type"] == "image" else p for p in message["content"]]}
        for message in row["messages"][:-1]
    ]


@torch.inference_mode()
def generate_images(
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    prompts: Sequence[str],
    guidance_scale: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    **sampling: Any,
) -> list[Image.Image]:
    """Generates one image for each prompt.

    Args:
        model: in either mode; it runs in evaluation mode.
        seed: of one generator for all batches; equal images need an equal `batch_size`, too.
        seeds: of each image, which then depends neither on the others nor on `batch_size`; instead of `seed`.
        sampling: more arguments of `generate(generation_mode="image")`, such as `guidance_min_p` or `callback`; the
            checkpoint's own values for those that are missing or None.

    Raises:
        ValueError: no prompts, one longer than the context, or an unknown or bad argument.
    """
    if not prompts:
        raise ValueError("No prompts: give at least one.")
    sampling["guidance_scale"] = guidance_scale
    sampling = {name: value for name, value in sampling.items() if value is not None}
    generator: Any = torch.Generator(model.device).manual_seed(seed)
    images = []
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        if seeds is not None:
            generator = [torch.Generator(model.device).manual_seed(one) for one in seeds[batch]]
        conversations = [[{"role": "user", "content": prompt}] for prompt in prompts[batch]]
        inputs = read_image_prompt(model, processor, conversations)
        codes = model.generate(**inputs, generation_mode="image", generator=generator, **sampling)
        images += processor.post_process_image_generation(model.decode_image_tokens(codes))
    return images
