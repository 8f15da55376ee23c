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
"""Generation of text, as with any Transformers model, and of images, by guided sampling of codes.

    model.generate(**inputs)                                                  -> token ids
    model.generate(**inputs, generation_mode="image", guidance_scale=7.5)     -> codes (B x n, N, L)
    model.decode_image_tokens(codes)                                          -> pixels

Images and text have their own sampling values in `generation_config`. Images: `guidance_scale`, `guidance_min_p`,
`image_do_sample`, `image_temperature`, `image_top_k`, `image_top_p`; arguments of a call have no prefix. Text:
`temperature=0`, the most likely token, unless a call sets another temperature, or `do_sample=True`, which then samples
at 1. For all other fields see `sampling_evotok`.

Shapes: B prompts, n images per prompt, M = B x n images, R = M or, guided, 2M rows [conditional; unconditional],
T prompt length, N positions, L levels, H width, K codebook size, C codebook width.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput

from .image_generation_evotok import EvoTokImageGenerator
from .sampling_evotok import EvoTokCodeSampler, read_settings


_IMAGES = ("pixel_values", "image_codes", "generation_pixel_values", "generation_codes")


@dataclass
class EvoTokImageGenerationOutput(ModelOutput):
    """Output of `generate(generation_mode="image", return_dict_in_generate=True)`.

    Args:
        codes: (M, N, L) int64, the images of prompt i in rows i x n to (i + 1) x n.
        scores: (M, N, L, K) float32 with `output_scores=True`: logits after guidance, `guidance_min_p` and warping;
            -inf for a code of probability 0.
    """

    codes: torch.Tensor | None = None
    scores: torch.Tensor | None = None


class EvoTokGenerationMixin(GenerationMixin):
    """Generation of text and images by a model with `model` (an [`EvoTokModel`]) and `depth_decoder`."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args,
        generation_mode: str = "text",
        **kwargs,
    ) -> Any:
        """Generates text or images.

        Args:
            inputs: (B, T) token ids; `input_ids` is another name.
            generation_config: as in Transformers; for image mode see the table of `sampling_evotok`.
            generation_mode: `"text"`, Transformers' `generate` with all its arguments, where `guidance_scale` is an
                argument of the call only; or `"image"`, with the arguments of `generate_images`.

        Returns:
            text: as in Transformers. image: codes (M, N, L), or an [`EvoTokImageGenerationOutput`].

        Raises:
            ValueError: unknown `generation_mode`; see `generate_images`.
        """
        if generation_mode == "image":
            input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
            return self.generate_images(input_ids, generation_config, *args, **kwargs)
        if generation_mode != "text":
            raise ValueError(f"generation_mode={generation_mode!r} must be 'text' or 'image'.")
        # The model's own guidance scale is for images; for text it would run the model twice per token.
        if "guidance_scale" not in kwargs:
            if generation_config is None:
                kwargs["guidance_scale"] = None
            elif generation_config.guidance_scale in (None, self.generation_config.guidance_scale):
                generation_config = copy.deepcopy(generation_config)  # pipelines and servers pass a copy of the model's
                generation_config.guidance_scale = 1.0
        return super().generate(inputs, generation_config, *args, **kwargs)

    def _prepare_generation_config(self, generation_config: GenerationConfig | None, **kwargs: Any):
        """Prepares the config as Transformers does, with temperature 0 for greedy text unless a call or its config
        sets `do_sample` and no temperature."""
        if kwargs.get("temperature") is None:
            kwargs.pop("temperature", None)
        sample = kwargs.get("do_sample") is True
        if generation_config is not None and generation_config.temperature is None:
            sample = sample or generation_config.do_sample is True
        sample = sample and "temperature" not in kwargs
        prepared, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        if prepared.temperature == 0:
            prepared.do_sample, prepared.temperature = sample and prepared.do_sample, 1.0
            if (prepared.num_return_sequences or 1) > 1:
                prepared.validate()  # which refuses several greedy answers to one prompt
        return prepared, model_kwargs

    @torch.no_grad()
    def generate_images(
        self,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        negative_prompt_ids: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback: Callable[[int, torch.Tensor], Any] | None = None,
        streamer: Any | None = None,
        **kwargs,
    ) -> torch.Tensor | EvoTokImageGenerationOutput:
        """Generates one image of exactly N positions after each prompt; text tokens are never scored.

        Args:
            input_ids: (B, T), left-padded, each row ending in `vision_start_token_id`; if none does, it is added, as to
                the text prompts of pipelines.
            attention_mask: (B, T); by default pad tokens before each prompt are masked, but not those within it.
            negative_prompt_ids: (B or 1, T') left-padded unconditional prompts of guidance, ending in
                `vision_start_token_id`, too; by default `image_negative_prompt_ids` of the generation config, or else
                that token alone.
            negative_prompt_attention_mask: (B or 1, T').
            generator: one for all images, or a list of M, one for each.
            callback: called with a position and the codes so far, (M, position + 1, L).
            streamer: its `put` is called with the codes (M, L) of each position on the CPU, its `end` at the end.
            kwargs: `guidance_scale` (1 for no unconditional rows), `guidance_min_p`, `do_sample`, `temperature`,
                `top_k`, `top_p`, `num_return_sequences`, `return_dict_in_generate`, `output_scores`;
                `cache_implementation`, `"static"` (default, of fixed shape, which compiles) or `"dynamic"`;
                `compile_config`, with which `torch.compile` compiles one layer of each kind and the sampler, or with
                its `fullgraph` the whole position, in minutes for each new shape, and `disable_compile`, with which no
                CUDA graph is captured; and images in the prompt as in `forward`: `pixel_values`, `image_codes`,
                `generation_pixel_values`, `generation_codes`.

        The model runs in evaluation mode; its own mode is restored.

        Raises:
            ValueError: a prompt does not end in start of image or is too long, an argument is unknown or out of range,
                or there is not one generator an image; the model's scores are not finite.
        """
        images = {name: kwargs.pop(name) for name in _IMAGES if name in kwargs}
        settings = read_settings(self.generation_config, generation_config, kwargs)
        copies, return_dict = settings.pop("num_return_sequences"), settings.pop("return_dict_in_generate")
        if type(copies) is not int or copies < 1:
            raise ValueError(f"num_return_sequences={copies} must be a whole number, 1 or more.")
        scores = [] if settings.pop("output_scores") and return_dict else None
        options = {name: settings.pop(name) for name in ("cache_implementation", "compile_config", "disable_compile")}
        pad = settings.pop("pad_token_id")
        sampler = EvoTokCodeSampler(**settings, generator=generator, scores=scores)

        with _evaluation_mode(self):
            embeds, mask = self._embed_prompts(input_ids, attention_mask, "input_ids", pad, **images)
            embeds, mask = embeds.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0)  # (M, T, H), (M, T)
            if sampler.guided:
                if negative_prompt_ids is None:
                    negative_prompt_ids = self._default_negative_prompt(input_ids.device)
                    negative_prompt_attention_mask = torch.ones_like(negative_prompt_ids)
                negative = negative_prompt_ids, negative_prompt_attention_mask, "negative_prompt_ids", pad
                embeds, mask = _stack_rows(embeds, mask, *self._embed_prompts(*negative), input_ids.shape[0])
            image_generator = EvoTokImageGenerator(self, embeds, mask, sampler, **options)
            codes = image_generator.empty_codes()
            for position, position_codes in enumerate(image_generator):
                codes[:, position] = position_codes
                if callback is not None:
                    callback(position, codes[:, : position + 1])
                if streamer is not None:
                    streamer.put(codes[:, position].cpu())
        sampler.check_scores()
        if streamer is not None:
            streamer.end()
        if not return_dict:
            return codes
        if scores is not None:
            scores = torch.stack(scores, dim=1).unflatten(1, codes.shape[1:])
        return EvoTokImageGenerationOutput(codes=codes, scores=scores)

    def decode_image_tokens(self, codes: torch.Tensor) -> torch.Tensor:
        """Decodes codes (M, N, L), or (M x N, L) as pipelines flatten them, to pixels (M, 3, height, width), about
        [-1, 1], which the processor converts to PIL images."""
        if codes.ndim == 2:
            codes = codes.unflatten(0, (-1, self.config.vq_config.num_positions))
        with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
            return self.model.vq_model.decode_pixels(codes)

    def _embed_prompts(
        self, input_ids, attention_mask, name: str, pad: int | None, **images
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Checks and embeds prompts: (B, T, H) and their mask (B, T)."""
        start = self.config.vision_start_token_id
        if input_ids is None or input_ids.ndim != 2 or not input_ids.numel():
            raise ValueError(f"{name} must be token ids of shape (batch, length).")
        if attention_mask is None:
            attention_mask = _padding_mask(input_ids, pad, self.generation_config.bos_token_id)
        has_start = input_ids[:, -1] == start  # (B,)
        if not has_start.any() and attention_mask[:, -1].all():
            input_ids, attention_mask = F.pad(input_ids, (0, 1), value=start), F.pad(attention_mask, (0, 1), value=1)
        elif not has_start.all():
            raise ValueError(
                f"All rows of {name} must end in the start-of-image token ({start}), or none: pad on the left, and use "
                "the processor's chat template with generation_mode='image'."
            )
        length, limit = int(attention_mask.sum(-1).max()), self.config.text_config.max_position_embeddings
        positions = self.config.vq_config.num_positions
        if length + positions > limit:
            raise ValueError(
                f"{name} of {length} tokens and an image of {positions} positions make {length + positions}, but the "
                f"language model reads at most {limit}: shorten the prompt by {length + positions - limit} tokens."
            )
        self._refuse_missing_images(input_ids, **images)
        return self.model.embed_inputs(input_ids, **images).inputs_embeds, attention_mask.long()

    def _default_negative_prompt(self, device: torch.device) -> torch.Tensor:
        """Returns the empty prompt (1, S) that `evotok export` saves, or the start-of-image token alone."""
        ids = getattr(self.generation_config, "image_negative_prompt_ids", None) or [self.config.vision_start_token_id]
        return torch.tensor([ids], device=device)

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, is_first_iteration=False, **kwargs):
        """Prepares the inputs of a step, as in Transformers; images are embedded in the first step only."""
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("image_codes", "generation_pixel_values", "generation_codes"):
                kwargs.pop(name, None)
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration and inputs.get("input_ids") is not None:
            self._refuse_missing_images(**inputs)
        return inputs

    def _refuse_missing_images(self, input_ids, mm_encoder_outputs=None, **images):
        """Raises ValueError for placeholders without any image; other counts are checked by `embed_inputs`."""
        encoded = (mm_encoder_outputs or {}).get("image")
        for token_id, images_of_kind in (
            (self.config.image_token_id, (encoded, images.get("pixel_values"), images.get("image_codes"))),
            (
                self.config.image_generation_token_id,
                (images.get("generation_pixel_values"), images.get("generation_codes")),
            ),
        ):
            if all(image is None for image in images_of_kind):
                self.model.check_placeholders(input_ids == token_id, 0)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Repeats inputs as Transformers does, but the images of a row together, not one by one."""
        kinds = {
            "image_codes": self.config.image_token_id,
            "generation_pixel_values": self.config.image_generation_token_id,
            "generation_codes": self.config.image_generation_token_id,
        }
        expanded = {}
        for name, token_id in kinds.items():
            images = model_kwargs.get(name)
            if images is not None and input_ids is not None and expand_size > 1:
                counts = (input_ids == token_id).sum(-1) // self.config.vq_config.num_positions
                rows = model_kwargs.pop(name).split(counts.tolist())
                expanded[name] = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | expanded


@contextmanager
def _evaluation_mode(model) -> Iterator[None]:
    """Disables dropout, and gradient checkpointing, which would disable caches; restores the mode of every module."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _padding_mask(input_ids: torch.Tensor, pad: int | None, bos: int | None) -> torch.Tensor:
    """Computes the mask (B, T) of padded prompts: 0 for pad tokens at either end; those at the right are refused later.

    A pad token between others is text, because a message may end with the pad token; so is the last one at the left if
    the pad token begins texts.
    """
    if pad is None:
        return torch.ones_like(input_ids)
    is_pad = (input_ids == pad).long()
    before, after = is_pad.cumprod(-1), is_pad.flip(-1).cumprod(-1).flip(-1)
    if pad == bos:
        before = F.pad(before[:, 1:], (0, 1))
    return 1 - (before | after)


def _stack_rows(embeds, mask, negative_embeds, negative_mask, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads conditional and unconditional rows to one length and stacks them: (2M, T, H), (2M, T)."""
    if negative_embeds.shape[0] not in (1, batch_size):
        raise ValueError(
            f"negative_prompt_ids has {negative_embeds.shape[0]} rows and input_ids {batch_size}: give one, or as many."
        )
    copies = embeds.shape[0] // negative_embeds.shape[0]
    kinds = [
        (embeds, mask),
        (negative_embeds.repeat_interleave(copies, 0), negative_mask.repeat_interleave(copies, 0)),
    ]
    length = max(mask.shape[1] for _, mask in kinds)
    embeds = [F.pad(embeds, (0, 0, length - embeds.shape[1], 0)) for embeds, _ in kinds]
    masks = [F.pad(mask, (length - mask.shape[1], 0)) for _, mask in kinds]
    return torch.cat(embeds), torch.cat(masks)


__all__ = ["EvoTokGenerationMixin", "EvoTokImageGenerationOutput"]
