"""Turns records of conversations into batches for `EvoTokForConditionalGeneration.forward`.

`EvoTokProcessor.apply_chat_template` renders and tokenizes the conversations; images are loaded here, record by record,
so that a corrupt one costs its record and not the batch.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from ..modeling_evotok.losses_evotok import IGNORE_INDEX
from ..processing.chat_template_evotok import prepare_conversations
from ..processing.image_loading_evotok import EvoTokImageError, load_image
from ..processing.processing_evotok import EvoTokProcessor
from .errors import printable
from .streams.last_good import LastGood


logger = logging.get_logger(__name__)


@dataclass
class _Sample:
    """A record on its way into a batch."""

    name: str
    messages: list[dict]
    given: list = field(default_factory=list)
    written: list = field(default_factory=list)
    codes: torch.Tensor | None = None
    ids: np.ndarray | None = None
    labels: np.ndarray | None = None
    last_turn: np.ndarray | None = None
    """Which tokens are of the last turn of the assistant."""


class EvoTokCollator:
    """Collates records into padded batches, on the right.

    A record is `{"messages": [...], "images": [...]}`, messages as the processor takes them, whose image parts hold an
    image or stand for the next one in `images`, in reading order (anything `load_image` takes); or `{"messages",
    "images", "codes"}` where `codes` `(G, N, L)` or `(N, L)` stand for the images of the assistant's turns. Records
    whose images cannot be read, or that `max_length` would cut inside an image or before any target, are left out,
    logged and counted in `skipped`; a batch of nothing else repeats the last good sample. With workers, each counts its
    own.

    Args:
        processor ([`EvoTokProcessor`]): its tokenizer, template and image processor.
        max_length (`int`, *optional*): longest row in tokens, image positions included.
        caption_dropout (`float`):
            Probability that a text-to-image record loses its user text, which leaves exactly the processor's negative
            prompt for classifier-free guidance to lean on. Records of any other form are not touched.
        train_on (`"assistant"` or `"all"`): targets are the assistant's turns, `<|im_end|>` included, or every token.
        seed (`int`):
            With the record's `index`, if it has one, decides whether the caption is dropped: number the draws, not the
            rows, if a row is seen more than once. Without an index torch's generator decides.
        allow_remote_images (`bool`):
            Whether images given as `http(s)://` addresses are fetched in the middle of training; left out otherwise.

    Raises:
        ValueError: from a call, for records that are malformed, and if no good sample has been seen yet.
    """

    def __init__(
        self,
        processor: EvoTokProcessor,
        max_length: int | None = None,
        caption_dropout: float = 0.0,
        train_on: Literal["assistant", "all"] = "assistant",
        seed: int = 0,
        allow_remote_images: bool = False,
    ):
        if not 0.0 <= caption_dropout <= 1.0 or train_on not in ("assistant", "all"):
            raise ValueError(
                f"caption_dropout={caption_dropout} must be in [0, 1], train_on={train_on!r} assistant or all."
            )
        if not processor.tokenizer.is_fast:
            raise ValueError("EvoTokCollator needs character offsets: use a tokenizer of the `tokenizers` backend.")
        self.processor = processor
        self.max_length = max_length
        self.caption_dropout = caption_dropout
        self.train_on = train_on
        self.seed = seed
        self.allow_remote_images = allow_remote_images
        self.skipped: Counter[str] = Counter()
        self._last_good: LastGood[list[_Sample]] = LastGood()
        self._control_pattern = processor.control_pattern

    def __call__(self, records: Sequence[dict]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `labels` `(B, T)`; `pixel_values` `(I, 3, H, W)`, `generation_pixel_values`
        `(G, 3, H, W)` and `generation_codes` `(G, N, L)` if the batch has any."""
        return self._stack([sample for rows in self._usable(records) for sample in rows])

    def _usable(self, records: Sequence[dict]) -> list[list[_Sample]]:
        """The rows of every record that can be used, tokenized."""
        usable = [rows for record in records if (rows := self._rows(record))]
        self._tokenize([sample for rows in usable for sample in rows])
        usable = [rows for rows in usable if all(self._fit(sample) for sample in rows)]
        return self._last_good.fill(usable, self.skipped)

    def _rows(self, record: dict) -> list[_Sample]:
        """What a record becomes: one row, or none if an image is corrupt."""
        sample = self._read(record)
        return [] if sample is None else [sample]

    def _skip(self, reason: str, message: str) -> None:
        self.skipped[reason] += 1
        logger.warning(printable(f"Skipped ({reason}, {self.skipped[reason]} so far): {message}"))

    def _read(self, record: dict) -> _Sample | None:
        """Checks the messages and deals images and codes out to the two kinds of turns; None if an image is corrupt."""
        name = f"record {record.get('id', record.get('index', '?'))}"
        for key in ("tools", "video", "videos", "audio"):
            if record.get(key):
                raise ValueError(f"{name}: {key}: conversations hold text and images alone: leave such records out.")
        try:
            [messages], _ = prepare_conversations([record["messages"]], self._control_pattern)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{name}: {error!s}") from error
        sample = _Sample(name, _empty_caption(messages) if self._drops_caption(record, messages) else messages)
        try:
            self._route_images(sample, record)
        except EvoTokImageError as error:
            self._skip("image", f"{name}: {error}")
            return None
        return sample

    def _route_images(self, sample: _Sample, record: dict) -> None:
        codes = record.get("codes")
        images = list(record.get("images") or [])
        num_images, num_parts, num_written = len(images), 0, 0
        for message in sample.messages:
            written = message["role"] == "assistant"
            for part in message["content"] if isinstance(message["content"], list) else ():
                if part["type"] == "text":
                    continue
                num_written += written
                if written and codes is not None:
                    continue
                source = part.get("image")
                num_parts += source is None
                if source is None and images:
                    source = images.pop(0)
                if source is not None:
                    image = load_image(source, allow_remote=self.allow_remote_images)
                    (sample.written if written else sample.given).append(image)
        if num_images != num_parts:
            raise ValueError(f"{sample.name}: {num_images} images for {num_parts} image parts: give one for each.")
        if codes is not None:
            sample.codes = torch.from_numpy(np.array(codes).astype(np.int64))  # (G, N, L)
            sample.codes = sample.codes[None] if sample.codes.ndim == 2 else sample.codes
            expected = (num_written, self.processor.num_image_tokens)
            if sample.codes.shape[:2] != expected:
                raise ValueError(
                    f"{sample.name}: codes of shape {tuple(sample.codes.shape)}, not {expected} + (levels,)."
                )

    def _drops_caption(self, record: dict, messages: list[dict]) -> bool:
        if not self.caption_dropout or not _is_text_to_image(messages):
            return False
        if record.get("index") is None:
            draw = torch.rand(()).item()
        else:
            draw = random.Random(f"{self.seed}/{record['index']}").random()
        return draw < self.caption_dropout

    def _tokenize(self, samples: list[_Sample]) -> None:
        """Sets the ids and labels of every sample, placeholders expanded."""
        if not samples:
            return
        encoded = self.processor.apply_chat_template(
            [sample.messages for sample in samples],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={"tokens_only": True, "padding": False, "add_special_tokens": False},
        )
        for sample, ids, mask in zip(samples, encoded["input_ids"], encoded["assistant_masks"], strict=True):
            sample.ids, by_assistant = np.array(ids), np.array(mask, dtype=bool)
            is_target = (by_assistant | (self.train_on == "all")) & (sample.ids != self.processor.image_token_id)
            sample.labels = np.where(is_target, sample.ids, IGNORE_INDEX)
            starts = by_assistant & ~np.pad(by_assistant, (1, 0))[:-1]  # of the runs of tokens of one message
            sample.last_turn = by_assistant & (starts.cumsum() == starts.sum())

    def _fit(self, sample: _Sample) -> bool:
        """Cuts a sample to `max_length`; False if that is not to be had without breaking an image."""
        if self.max_length is not None and len(sample.ids) > self.max_length:
            if np.isin(sample.ids[self.max_length :], self.processor.image_token_ids).any():
                self._skip(
                    "length", f"{sample.name}: {len(sample.ids)} tokens, over {self.max_length} inside an image."
                )
                return False
            for name in ("ids", "labels", "last_turn"):
                setattr(sample, name, getattr(sample, name)[: self.max_length])
        if (sample.labels == IGNORE_INDEX).all():
            self._skip("target", f"{sample.name}: nothing to learn within {self.max_length} tokens.")
            return False
        return True

    def _stack(self, samples: list[_Sample]) -> dict[str, torch.Tensor]:
        width = max(len(sample.ids) for sample in samples)
        input_ids = np.full((len(samples), width), self.processor.tokenizer.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        labels = np.full_like(input_ids, IGNORE_INDEX)
        for row, sample in enumerate(samples):
            length = len(sample.ids)
            input_ids[row, :length], labels[row, :length], attention_mask[row, :length] = sample.ids, sample.labels, 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        batch = {name: torch.from_numpy(array) for name, array in batch.items()}
        images = {
            "pixel_values": [image for sample in samples for image in sample.given],
            "generation_pixel_values": [image for sample in samples for image in sample.written],
        }
        batch |= {name: pixels_of(group, self.processor.image_processor) for name, group in images.items() if group}
        codes = [sample.codes for sample in samples if sample.codes is not None and len(sample.codes)]
        if codes:
            if images["generation_pixel_values"]:
                raise ValueError(
                    "A batch has codes for some of its written images and pixels for others: give one kind."
                )
            batch["generation_codes"] = torch.cat(codes)
        return batch


class PreferenceCollator(EvoTokCollator):
    """Collates records with two last answers, the better one in `messages` and the other as `rejected`, a text.

    What [`EvoTokCollator`] says of records holds for both rows that one becomes; they are used or left out together.
    """

    def __call__(self, records: Sequence[dict]) -> dict[str, torch.Tensor]:
        """As TRL's `DPOTrainer` takes them, all better answers before all rejected ones: `input_ids`, `attention_mask`,
        `completion_mask` `(2 B, T)`, 1 where the last answer is; `pixel_values` `(2 I, 3, H, W)` if there are any."""
        better, rejected = zip(*self._usable(records), strict=True)
        samples = [*better, *rejected]
        batch = self._stack(samples)
        mask = torch.zeros_like(batch.pop("labels"))
        for row, sample in enumerate(samples):
            mask[row, : len(sample.ids)] = torch.from_numpy(sample.last_turn)
        return batch | {"completion_mask": mask}

    def _fit(self, sample: _Sample) -> bool:
        """As for other records; one whose last answer is cut off has nothing to compare, whatever was said before."""
        if not super()._fit(sample):
            return False
        if not sample.last_turn.any():
            self._skip("target", f"{sample.name}: its last answer begins after {self.max_length} tokens.")
            return False
        return True

    def _rows(self, record: dict) -> list[_Sample]:
        if not isinstance(record.get("rejected"), str):
            raise ValueError(f"record {record.get('id', record.get('index', '?'))}: no text under `rejected`: add one.")
        better = self._read(record)
        if better is None:
            return []
        if better.messages[-1]["role"] != "assistant" or better.written or better.codes is not None:
            raise ValueError(f"{better.name}: what is compared are texts: end with an answer, and draw nothing.")
        turn = {"role": "assistant", "content": [{"type": "text", "text": record["rejected"]}]}
        [[turn]], _ = prepare_conversations([[turn]], self._control_pattern)
        return [better, replace(better, messages=[*better.messages[:-1], turn])]


def _is_text_to_image(messages: list[dict]) -> bool:
    """A system message or none, one user turn of text, one assistant turn with an image."""
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if roles != ["user", "assistant"]:
        return False
    has_image = [
        isinstance(message["content"], list) and any(part["type"] != "text" for part in message["content"])
        for message in messages[-2:]
    ]
    return has_image == [False, True]


def _empty_caption(messages: list[dict]) -> list[dict]:
    return [{**message, "content": ""} if message["role"] == "user" else message for message in messages]


def pixels_of(images: Sequence[Any], image_processor: Any) -> torch.Tensor:
    """Pixels `(B, 3, H, W)` of RGB images, as `image_processor` gives them; at once if all have the right size."""
    arrays = [np.asarray(image) if isinstance(image, Image.Image) else image for image in images]
    shape = (image_processor.size["height"], image_processor.size["width"], 3)
    fits = all(isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == shape for image in arrays)
    if not fits or not (image_processor.do_rescale and image_processor.do_normalize):
        return image_processor(list(images), return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float()
    mean = torch.tensor(image_processor.image_mean).view(3, 1, 1)
    std = torch.tensor(image_processor.image_std).view(3, 1, 1)
    return pixels.mul_(image_processor.rescale_factor).sub_(mean).div_(std).contiguous()


__all__ = ["EvoTokCollator", "PreferenceCollator", "pixels_of"]
