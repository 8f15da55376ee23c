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
"""Processor of EvoTok: converts conversations with images to the inputs of the model's `forward` and `generate`.

Images of system and user messages are input images and become `pixel_values`; those of assistant messages are generated
images and become `generation_pixel_values`, or `generation_codes` if they are encoded already.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError
from PIL import Image
from transformers import SiglipImageProcessorPil
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import AddedToken, TextInput
from transformers.utils import auto_docstring, is_torchvision_available, logging

from .chat_template_evotok import (
    build_chat_template,
    build_control_pattern,
    delimits_input_images,
    list_control_tokens,
    prepare_conversations,
)
from .image_loading_evotok import check_unit_range, convert_to_images, flatten_images, load_image


logger = logging.get_logger(__name__)


@auto_docstring(
    custom_intro="""
    Image processor, text tokenizer and chat template of EvoTok. Special tokens that the tokenizer lacks are added to
    it: for Qwen2.5, which has all but `<|image_gen|>`, as id 151665, the first free row of the padded vocabulary.
    Padding is on the left, as generation requires.
    """
)
class EvoTokProcessor(ProcessorMixin):
    _auto_class = "AutoProcessor"  # a saved checkpoint carries this code

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens: int = 256,
        image_token: str = "<|image_pad|>",
        image_generation_token: str = "<|image_gen|>",
        vision_start_token: str = "<|vision_start|>",
        vision_end_token: str = "<|vision_end|>",
        system_prompt: str | None = None,
        allow_remote_images: bool = True,
        chat_template: str | None = None,
    ):
        r"""
        num_image_tokens (`int`, *optional*, defaults to 256):
            Positions of one image, N.
        image_token (`str`, *optional*, defaults to `"<|image_pad|>"`):
            Placeholder of a position of an input image.
        image_generation_token (`str`, *optional*, defaults to `"<|image_gen|>"`):
            Placeholder of a position of a generated image.
        vision_start_token (`str`, *optional*, defaults to `"<|vision_start|>"`):
            Token before either kind of image.
        vision_end_token (`str`, *optional*, defaults to `"<|vision_end|>"`):
            Token after either kind of image.
        system_prompt (`str`, *optional*):
            System message of conversations without one.
        allow_remote_images (`bool`, *optional*, defaults to `True`):
            Whether `http(s)://` addresses of images are fetched; False for untrusted input.
        """
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        self.image_generation_token = image_generation_token
        self.vision_start_token = vision_start_token
        self.vision_end_token = vision_end_token
        self.system_prompt = system_prompt
        self.allow_remote_images = allow_remote_images
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self._prepare_tokenizer()
        if not chat_template:
            self.chat_template = self.build_template()

    def _prepare_tokenizer(self):
        """Adds missing special tokens to the tokenizer and sets the ids of all."""
        names = ("vision_start_token", "vision_end_token", "image_token", "image_generation_token")
        known = self.tokenizer.get_vocab()
        wanted = ["<|im_start|>", "<|im_end|>", *(getattr(self, name) for name in names)]
        missing = [token for token in wanted if token not in known]
        if missing:
            logger.info(f"Adding {', '.join(missing)} to the tokenizer, from id {len(self.tokenizer)}.")
            added = [AddedToken(token, special=True, normalized=False) for token in missing]
            self.tokenizer.add_tokens(added, special_tokens=True)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "left"
        self.token_ids = {f"{name}_id": self.tokenizer.convert_tokens_to_ids(getattr(self, name)) for name in names}
        for name, token_id in self.token_ids.items():
            setattr(self, name, token_id)
        self.image_token_ids = [self.image_token_id, self.image_generation_token_id]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, trust_chat_template: bool = False, **kwargs):
        r"""Loads a processor, as in Transformers, but refuses other chat templates than EvoTok's.

        A chat template is code: it can run without end, or fill the memory.

        Args:
            trust_chat_template (`bool`, *optional*, defaults to `False`):
                Whether any chat template of the checkpoint is used.

        Raises:
            ValueError: another chat template in the checkpoint.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        delimit = processor._delimits_input_images(processor.chat_template)
        if delimit is not None:  # by any version of EvoTok
            processor.chat_template = processor.tokenizer.chat_template = processor.build_template(delimit)
        elif not trust_chat_template and "chat_template" not in kwargs:
            raise ValueError(
                f"{pretrained_model_name_or_path}: its chat template is not EvoTok's, and could run without end: "
                "remove chat_template.jinja, or pass trust_chat_template=True."
            )
        return processor

    def build_template(self, delimit_input_images: bool = True) -> str:
        """Builds EvoTok's chat template with this processor's tokens, see `build_chat_template`."""
        markers = list_control_tokens(self.tokenizer)
        return build_chat_template(*self._template_tokens, delimit_input_images=delimit_input_images, markers=markers)

    def _delimits_input_images(self, template: Any) -> bool | None:
        return delimits_input_images(template, *self._template_tokens)

    @property
    def _template_tokens(self) -> tuple[str, str, str, str]:
        return self.image_token, self.image_generation_token, self.vision_start_token, self.vision_end_token

    @classmethod
    def from_parts(cls, tokenizer, image_size: int = 256, num_image_tokens: int = 256, **kwargs) -> "EvoTokProcessor":
        """Builds a processor for square images of `image_size` pixels a side and `num_image_tokens` positions."""
        image_processor_class = SiglipImageProcessorPil
        if is_torchvision_available():
            from transformers import SiglipImageProcessor as image_processor_class
        image_processor = image_processor_class(size={"height": image_size, "width": image_size})
        return cls(image_processor, tokenizer, num_image_tokens=num_image_tokens, **kwargs)

    @auto_docstring
    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        generation_codes: Any = None,
        tokens_only: bool | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        r"""
        images (`ImageInput`, *optional*):
            Sources for `load_image`, one for each placeholder of either kind in reading order over the batch, as a flat
            list or as a list for each text. Arrays and tensors hold floats from 0 to 1 or from 0 to 255, or integers;
            with `do_rescale=False` only floats from 0 to 1, which are then not rounded to 8 bits.
        generation_codes (`torch.LongTensor` of shape `(G, N, L)`, *optional*):
            Codes of the generated images; `images` are then the input images only.
        tokens_only (`bool`, *optional*):
            Whether only tokens are returned and images are ignored: for callers that process images apart.

        Returns:
            [`BatchFeature`]: `input_ids` and `attention_mask` `(B, T)`, each placeholder expanded to
            `num_image_tokens`; `pixel_values` `(I, 3, H, W)` of the input images; `generation_pixel_values`
            `(G, 3, H, W)` or `generation_codes` `(G, N, L)` of the generated images.

        Raises:
            ValueError: if placeholders and images do not match, or an image cannot be read.
        """
        texts = [text] if isinstance(text, str) else text
        if texts is not None and not (isinstance(texts, (list, tuple)) and all(isinstance(t, str) for t in texts)):
            raise ValueError("`text` must be a string or a list of strings.")
        input_images, generated_images = [], []
        if not tokens_only:
            loaded = self._load_images(images, kwargs)
            input_images, generated_images = self._split_images(loaded, images, texts, generation_codes)
        options = self.tokenizer.init_kwargs | kwargs.get("common_kwargs", {}) | kwargs.get("text_kwargs", {}) | kwargs
        if "padding" not in options:  # a default as class attribute needs Transformers 5.23
            kwargs["padding"] = True  # pyright: ignore[reportGeneralTypeIssues]  # a flat argument, as callers give it
        inputs = super().__call__(images=input_images or None, text=text, **kwargs)
        if generated_images:
            images_kwargs = self._merge_kwargs(
                self.valid_processor_kwargs,  # pyright: ignore[reportArgumentType]  # the class itself
                tokenizer_init_kwargs=self.tokenizer.init_kwargs,
                **kwargs,
            )
            processed = self.image_processor(generated_images, **images_kwargs["images_kwargs"])
            inputs["generation_pixel_values"] = processed["pixel_values"]
        if generation_codes is not None:
            inputs["generation_codes"] = generation_codes
        return inputs

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Saves the processor, as in Transformers, with a chat template of the tokenizer's present special tokens."""
        delimit = self._delimits_input_images(self.chat_template)
        if delimit is not None:
            self.chat_template = self.build_template(delimit)
        try:
            return super().save_pretrained(save_directory, **kwargs)
        finally:
            vars(self).pop("auto_map", None)  # Transformers sets it, but does not read it back

    def _load_images(self, images: Any, kwargs: Mapping[str, Any]) -> list:
        """Loads 8-bit images, or with `do_rescale=False` checks and returns the arrays themselves."""
        sources = flatten_images(images)
        options = kwargs.get("common_kwargs", {}) | kwargs.get("images_kwargs", {}) | kwargs
        rescale, normalize = (
            getattr(self.image_processor, name, True) if options.get(name) is None else options[name]
            for name in ("do_rescale", "do_normalize")
        )
        if rescale or not normalize:
            return [load_image(source, allow_remote=self.allow_remote_images) for source in sources]
        return [check_unit_range(source) for source in sources]

    def _split_images(self, loaded: list, images: Any, texts: Sequence[str] | None, codes: Any) -> tuple[list, list]:
        """Splits the loaded images by their placeholders into input images and generated images."""
        if texts is None:
            return loaded, []
        kinds = [self._placeholder_pattern.findall(sample) for sample in texts]
        num_generated = sum(kind.count(self.image_generation_token) for kind in kinds)
        if codes is not None:
            self._check_codes(codes, num_generated)
            kinds = [[token for token in kind if token == self.image_token] for kind in kinds]
        nested = isinstance(images, (list, tuple)) and any(isinstance(group, (list, tuple)) for group in images)
        if nested and len(images) == len(texts):
            for row, (group, kind) in enumerate(zip(images, kinds, strict=True)):
                self._check_count(len(flatten_images(group)), len(kind), f"text {row}")
        order = [token for kind in kinds for token in kind]
        self._check_count(len(loaded), len(order), "the batch")
        input_images = [image for image, token in zip(loaded, order, strict=True) if token == self.image_token]
        return input_images, [image for image, token in zip(loaded, order, strict=True) if token != self.image_token]

    @property
    def _placeholder_pattern(self) -> re.Pattern:
        return re.compile(f"{re.escape(self.image_token)}|{re.escape(self.image_generation_token)}")

    def _check_count(self, num_images: int, num_placeholders: int, where: str):
        if num_images != num_placeholders:
            raise ValueError(
                f"{num_images} images for {num_placeholders} image placeholders in {where}: the number of "
                f"{self.image_token} and {self.image_generation_token} tokens in the prompts should be the same as the "
                'number of images (in a conversation, one {"type": "image"} part each), in reading order, or pass '
                "codes as generation_codes."
            )

    def _check_codes(self, codes: Any, num_generated: int):
        shape = tuple(np.shape(codes))
        if len(shape) != 3 or shape[:2] != (num_generated, self.num_image_tokens):
            raise ValueError(
                f"generation_codes of shape {shape} for {num_generated} generated images: give "
                f"(G, N, L) = ({num_generated}, {self.num_image_tokens}, levels)."
            )

    def validate_inputs(self, images=None, text=None, **kwargs):
        """Refuses a call without inputs. Images are counted for both kinds of placeholders when they are split."""
        if images is None and text is None:
            raise ValueError("EvoTokProcessor has no input: give images, text or both.")

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """Returns the placeholders of one input image."""
        return self.image_token * self.num_image_tokens

    def get_text_with_replacements(self, text: list[str], *args):
        """Expands both kinds of placeholders; returns texts and, for each, the spans before and after."""
        expanded, offsets = [], []
        for sample in text:
            pieces, spans, last, grown = [], [], 0, 0
            for match in self._placeholder_pattern.finditer(sample):
                replacement = match[0] * self.num_image_tokens
                start = match.start() + grown
                new_span = (start, start + len(replacement))
                span = {"type": "image", "span": match.span(), "new_span": new_span}
                spans.append({**span, "text": match[0], "replacement": replacement})
                pieces += [sample[last : match.start()], replacement]
                last, grown = match.end(), grown + len(replacement) - len(match[0])
            expanded.append("".join([*pieces, sample[last:]]))
            offsets.append(spans)
        return expanded, offsets

    def _check_special_mm_tokens(self, text: list[str], text_inputs: BatchFeature, modalities: list[str]):
        super()._check_special_mm_tokens(text, text_inputs, modalities=[*modalities, "image_generation"])

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs) -> MultiModalData:
        """Returns the number of placeholders of images of the given (height, width): the same for all."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * count, num_image_patches=[1] * count)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        generation_mode: str = "text",
        negative_prompt: str | list[str] | None = None,
        add_generation_prompt: bool = False,
        processor_kwargs: dict | None = None,
        **kwargs,
    ):
        r"""Renders and tokenizes conversations, as [`ProcessorMixin.apply_chat_template`], for text and for images.

        Args:
            generation_mode (`"text"` or `"image"`):
                `"image"` ends the prompt with the start of an image, and with `tokenize=True, return_dict=True` adds
                `negative_prompt_ids` and `negative_prompt_attention_mask`, `(B, S)`: the unconditional prompts of
                guidance, which are the same template with an empty user message.
            negative_prompt (`str` or `list[str]`, *optional*): user text of the unconditional prompts.

        Raises:
            ValueError: roles or parts that are not supported, images that do not match their parts, and tools or
                documents that the chat template does not use.
        """
        if generation_mode not in ("text", "image"):
            raise ValueError(f'generation_mode={generation_mode!r}: choose "text" or "image".')
        for name in ("tools", "documents"):
            if kwargs.get(name) and name not in str(chat_template or self.chat_template):
                raise ValueError(f"{name}: the chat template has no place for them: leave them out.")
        conversations, is_batched = prepare_conversations(conversation, self.control_pattern)
        if self.system_prompt:
            kwargs.setdefault("system_prompt", self.system_prompt)
        if generation_mode == "image":
            kwargs["generation_mode"] = generation_mode
        kwargs = {"chat_template": chat_template, "processor_kwargs": dict(processor_kwargs or {}), **kwargs}
        kwargs["add_generation_prompt"] = add_generation_prompt or generation_mode == "image"
        inputs = self._render(conversations if is_batched else conversations[0], **kwargs)
        if generation_mode == "image" and kwargs.get("tokenize") and kwargs.get("return_dict"):
            negative = self._negative_conversations(conversations, negative_prompt)
            for name in ("images", "generation_codes"):
                kwargs["processor_kwargs"].pop(name, None)
            kwargs["return_assistant_tokens_mask"] = False
            negative = self._render(negative, **kwargs)
            inputs["negative_prompt_ids"] = negative["input_ids"]
            inputs["negative_prompt_attention_mask"] = negative["attention_mask"]
        return inputs

    def _render(self, conversation: list, **kwargs) -> Any:
        """Calls the library's `apply_chat_template`; errors of a template that is not EvoTok's become ValueErrors."""
        try:
            return super().apply_chat_template(conversation, **kwargs)
        except Exception as error:
            template = kwargs.get("chat_template") or self.chat_template
            if self._delimits_input_images(template) is not None and not isinstance(error, TemplateError):
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"The chat template cannot be rendered ({reason}): repair it, or leave it out.") from error

    @property
    def control_pattern(self) -> re.Pattern:
        """Returns the pattern of special tokens that are escaped in the text of conversations."""
        return build_control_pattern(self.tokenizer)

    def _negative_conversations(self, conversations: list[list[dict]], prompt: Any) -> list[list[dict]]:
        """Builds unconditional conversations: the system message of each, and a user message with `prompt` or empty."""
        prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt or ""] * len(conversations)
        if len(prompts) != len(conversations):
            raise ValueError(f"{len(prompts)} negative prompts for {len(conversations)} conversations: give one each.")
        negative = []
        for messages, text in zip(conversations, prompts, strict=True):
            system = [message for message in messages if message["role"] == "system"]
            negative.append([*system[:1], {"role": "user", "content": text}])
        return prepare_conversations(negative, self.control_pattern)[0]

    def post_process_image_generation(self, pixels: Any) -> list[Image.Image]:
        """Converts decoded pixels `(B, 3, H, W)` or `(3, H, W)`, about [-1, 1] and clipped to it, to PIL images."""
        return convert_to_images(pixels)

    def post_process_multimodal_output(
        self, generated_outputs, skip_special_tokens: bool = True, generation_mode: str | None = None, **kwargs
    ) -> list[str] | list[Image.Image]:
        """Decodes generated ids to text, or with `generation_mode="image"` converts decoded pixels to images."""
        if generation_mode == "image":
            return self.post_process_image_generation(generated_outputs)
        return super().post_process_multimodal_output(
            generated_outputs, skip_special_tokens=skip_special_tokens, generation_mode=generation_mode, **kwargs
        )


__all__ = ["EvoTokProcessor"]
