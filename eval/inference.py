"""Batched inference with a model and its processor: answers to conversations, and images from prompts.

Suites and the lmms-eval plugin use it directly; `evotok/inference.py` builds streams and batches of requests on it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ..processing.processing_evotok import EvoTokProcessor


Conversation = list[dict[str, Any]]
"""Messages with their images in place, the last one the user's."""


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
            f"The conversation has {length} tokens, the model reads fewer than {limit}: shorten the question, show "
            "fewer images, or begin anew."
        )
    return limit - length


def read_image_prompt(
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    prompt: str | Conversation,
    negative_prompt: str = "",
) -> BatchFeature:
    """Reads a prompt and its negative prompt into the arguments of `generate(generation_mode="image")`.

    Args:
        prompt: text, or a conversation, which may hold input images.

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
    for name, ids in (("prompt", inputs["input_ids"]), ("negative prompt", inputs["negative_prompt_ids"])):
        if ids.shape[1] > limit:
            raise ValueError(
                f"The {name} has {ids.shape[1]} tokens, this model reads at most {limit} before an image: shorten it."
            )
    return inputs


@torch.inference_mode()
def answer(
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    encode_images: Callable[[torch.Tensor], BaseModelOutputWithPooling] | None = None,
    **options: Any,
) -> list[str]:
    """Generates the next answer of each conversation, in one batch.

    Args:
        model: in evaluation mode.
        max_new_tokens: longest answer, which the context may shorten.
        encode_images: computes the features of input images from pixels (I, 3, H, W), instead of
            `get_image_features`.
        options: more arguments of `generate`, such as `do_sample`, or a `streamer` for a batch of one.

    Raises:
        ValueError: a conversation does not fit into the context.
    """
    inputs, room = read_chat(model, processor, conversations)
    if encode_images is not None and "pixel_values" in inputs:
        options["mm_encoder_outputs"] = {"image": encode_images(inputs.pop("pixel_values"))}
    tokens = model.generate(**inputs, max_new_tokens=min(max_new_tokens, room), **options)  # (B, T + new)
    answers = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True)]


@torch.inference_mode()
def generate_images(
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    prompts: Sequence[str],
    batch_size: int = 64,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    **sampling: Any,
) -> list[Image.Image]:
    """Generates one image for each prompt.

    Args:
        model: in evaluation mode.
        seed: of the one generator of all batches; the same images need the same `batch_size` too.
        seeds: of each image, which then depends on no other and on no `batch_size`; instead of `seed`.
        sampling: more arguments of `generate(generation_mode="image")`, such as `guidance_scale`, `temperature` or
            `callback`; the checkpoint's own values for what is missing or None.

    Raises:
        ValueError: no prompts, one longer than the context, or an unknown or bad argument.
    """
    if not prompts:
        raise ValueError("No prompts: give at least one.")
    sampling = {name: value for name, value in sampling.items() if value is not None}
    generator: Any = torch.Generator(model.device).manual_seed(seed)
    images = []
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        if seeds is not None:
            generator = [torch.Generator(model.device).manual_seed(one) for one in seeds[batch]]
        inputs = processor.apply_chat_template(
            [[{"role": "user", "content": prompt}] for prompt in prompts[batch]],
            generation_mode="image",
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        codes = model.generate(**inputs, generation_mode="image", generator=generator, **sampling)
        images += processor.post_process_image_generation(model.decode_image_tokens(codes))
    return images
