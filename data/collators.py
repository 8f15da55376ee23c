"""Collates rows of conversations, preferences or images into batches.

`EvoTokProcessor.apply_chat_template` renders and tokenizes the conversations; images are loaded here, row by row, so
that a corrupt one costs its row and not the batch.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar, cast

import numpy as np
import torch
from transformers.utils import logging

from ..modeling_evotok.losses_evotok import IGNORE_INDEX
from ..processing.chat_template_evotok import prepare_conversations
from ..processing.image_loading_evotok import EvoTokImageError, load_image
from ..processing.processing_evotok import EvoTokProcessor
from .errors import printable
from .image_files import crop_square, pixels_of, to_pixels


logger = logging.get_logger(__name__)

MAX_EMPTY_BATCHES = 32
"""Consecutive batches of one reader without a usable row that end a run."""

T = TypeVar("T")


class EmptyBatchFallback(Generic[T]):
    """Replaces batches without a usable row by the last usable one, for a limited number of batches in a row.

    Args:
        limit: that number.
    """

    def __init__(self, limit: int = MAX_EMPTY_BATCHES):
        self.limit, self.empty = limit, 0
        self.last: T | None = None

    def fill(self, usable: list[T], skipped: Mapping[str, int]) -> list[T]:
        """Returns the usable rows of a batch, or the last usable one where there are none.

        Args:
            usable: of the batch.
            skipped: counts of what was skipped so far, for messages.

        Raises:
            ValueError: there has been no usable row yet, or not for `limit` batches.
        """
        if usable:
            self.last, self.empty = usable[-1], 0
            return usable
        if self.last is None:
            raise ValueError(f"Nothing in the batch can be used, {dict(skipped)} so far: check the data set.")
        self.empty += 1
        if self.empty >= self.limit:
            raise ValueError(
                f"Nothing in the last {self.empty} batches can be used, {dict(skipped)} so far: check that "
                "the files of the data set exist, and run the command again: it resumes from the last checkpoint."
            )
        return [self.last]


class ImageCollator:
    """Collates the last image of each row into `pixel_values` (B, 3, H, W) in [-1, 1], cropped to random squares.

    The crop is determined by the seed and the row's `index`. Images that cannot be read, are over the limit of pixels
    or have too large an aspect ratio are skipped, logged and counted in `skipped`.

    Args:
        size: side of the squares in pixels.
        seed: of the crops.

    Raises:
        ValueError: when called, as [`EmptyBatchFallback`].
    """

    def __init__(self, size: int, seed: int = 0):
        self.size, self.seed = size, seed
        self.skipped: Counter[str] = Counter()
        self._fallback: EmptyBatchFallback[torch.Tensor] = EmptyBatchFallback()

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        pixels = [image for row in rows if (image := self._read(row)) is not None]
        return {"pixel_values": torch.stack(self._fallback.fill(pixels, self.skipped))}

    def _read(self, row: dict) -> torch.Tensor | None:
        if not row["images"]:
            self.skipped["no_image"] += 1
            return None
        rng = random.Random(f"{self.seed}/{row['index']}")
        try:
            return to_pixels(crop_square(load_image(row["images"][-1]), self.size, (rng.random(), rng.random())))
        except EvoTokImageError as error:
            self.skipped["image"] += 1
            message = f"Skipped (image, {self.skipped['image']} so far): row {row['id']}: {error}"
            logger.warning(printable(message))
            return None


@dataclass
class _TokenizedRow:
    """Messages of a row with their images, then their tokens; a row of preferences gives two."""

    name: str
    messages: list[dict]
    input_images: list = field(default_factory=list)
    generated_images: list = field(default_factory=list)
    codes: torch.Tensor | None = None
    completions: list[tuple[str, str]] = field(default_factory=list)
    ids: np.ndarray = field(init=False, repr=False)  # these three are set by `_tokenize`
    labels: np.ndarray = field(init=False, repr=False)
    in_last_answer: np.ndarray = field(init=False, repr=False)
    """Which tokens are of the last message of the assistant."""


class EvoTokCollator:
    """Collates conversations into batches padded on the right.

    A row is `{"messages": [...], "images": [...]}`, messages as the processor takes them, whose image parts have an
    image or stand for the next one of `images`, in reading order (anything `load_image` takes). It may have `codes`
    `(G, N, L)` or `(N, L)` for the images of the assistant's messages, and `completions`, pairs of a text and its
    completion that follow the messages without markup. Rows whose images cannot be read, or that `max_length` would cut
    inside an image or before any target, are skipped, logged and counted in `skipped`, by each worker of a loader on
    its own; a batch of such rows alone repeats the last usable one.

    Args:
        processor ([`EvoTokProcessor`]): its tokenizer, template and image processor.
        max_length (`int`, *optional*): longest row in tokens, image positions included.
        caption_dropout (`float`):
            Probability that the prompt of a text-to-image row is emptied, which gives exactly the processor's negative
            prompt, for classifier-free guidance. Rows of any other form stay.
        train_on (`"assistant"` or `"all"`):
            Targets are the assistant's messages, `<|im_end|>` included, and completions; or all tokens.
        seed (`int`):
            Of the caption dropout, together with the row's `index`, which must differ where a row is seen again.
            Without an index torch's generator is used.
        allow_remote_images (`bool`):
            Whether images given as `http(s)://` addresses are fetched during training; rows with them are skipped
            otherwise.

    Raises:
        ValueError: when called, for malformed rows, and as [`EmptyBatchFallback`].
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
        self._fallback: EmptyBatchFallback[list[_TokenizedRow]] = EmptyBatchFallback()
        self._control_pattern = processor.control_pattern

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        """Collates rows.

        Returns:
            `input_ids`, `attention_mask`, `labels` `(B, T)`; `pixel_values` `(I, 3, H, W)`, `generation_pixel_values`
            `(G, 3, H, W)` and `generation_codes` `(G, N, L)` if the batch has any.
        """
        return self._stack([item for items in self._usable(rows) for item in items])

    def _usable(self, rows: Sequence[dict]) -> list[list[_TokenizedRow]]:
        """Returns the tokenized items, one or two, of every row that can be used."""
        usable = [items for row in rows if (items := self._items(row))]
        self._tokenize([item for items in usable for item in items])
        usable = [items for items in usable if all(self._fit(item) for item in items)]
        return self._fallback.fill(usable, self.skipped)

    def _items(self, row: dict) -> list[_TokenizedRow]:
        """Returns one item, or none where an image is corrupt."""
        item = self._read(row)
        return [] if item is None else [item]

    def _skip(self, reason: str, message: str) -> None:
        self.skipped[reason] += 1
        logger.warning(printable(f"Skipped ({reason}, {self.skipped[reason]} so far): {message}"))

    def _read(self, row: dict) -> _TokenizedRow | None:
        """Checks the messages and assigns images and codes to them; None where an image is corrupt."""
        name = f"row {row.get('id', row.get('index', '?'))}"
        for key in ("tools", "video", "videos", "audio"):
            if row.get(key):
                raise ValueError(f"{name}: {key}: conversations hold text and images alone: leave such rows out.")
        try:
            [messages], _ = prepare_conversations([row["messages"]], self._control_pattern)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{name}: {error!s}") from error
        item = _TokenizedRow(name, _empty_caption(messages) if self._drops_caption(row, messages) else messages)
        item.completions = _completions(row, name)
        try:
            self._assign_images(item, row)
        except EvoTokImageError as error:
            self._skip("image", f"{name}: {error}")
            return None
        return item

    def _assign_images(self, item: _TokenizedRow, row: dict) -> None:
        codes = row.get("codes")
        images = list(row.get("images") or [])
        num_images, num_parts, num_generated = len(images), 0, 0
        for message in item.messages:
            generated = message["role"] == "assistant"
            for part in message["content"] if isinstance(message["content"], list) else ():
                if part["type"] == "text":
                    continue
                num_generated += generated
                if generated and codes is not None:
                    continue
                source = part.get("image")
                num_parts += source is None
                if source is None and images:
                    source = images.pop(0)
                if source is not None:
                    image = load_image(source, allow_remote=self.allow_remote_images)
                    (item.generated_images if generated else item.input_images).append(image)
        if num_images != num_parts:
            raise ValueError(f"{item.name}: {num_images} images for {num_parts} image parts: give one for each.")
        if codes is not None:
            item.codes = torch.from_numpy(np.array(codes).astype(np.int64))  # (G, N, L)
            item.codes = item.codes[None] if item.codes.ndim == 2 else item.codes
            expected = (num_generated, self.processor.num_image_tokens)
            if item.codes.shape[:2] != expected:
                raise ValueError(f"{item.name}: codes of shape {tuple(item.codes.shape)}, not {expected} + (levels,).")

    def _drops_caption(self, row: dict, messages: list[dict]) -> bool:
        if not self.caption_dropout or not _is_text_to_image(messages):
            return False
        if row.get("index") is None:
            value = torch.rand(()).item()
        else:
            value = random.Random(f"{self.seed}/{row['index']}").random()
        return value < self.caption_dropout

    def _tokenize(self, items: list[_TokenizedRow]) -> None:
        """Sets the ids and labels of every item, placeholders expanded."""
        if not items:
            return
        encoded = self.processor.apply_chat_template(
            [item.messages for item in items],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={"tokens_only": True, "padding": False, "add_special_tokens": False},
        )
        for item, ids, mask in zip(items, encoded["input_ids"], encoded["assistant_masks"], strict=True):
            item.ids, by_assistant = np.array(ids), np.array(mask, dtype=bool)
            is_target = (by_assistant | (self.train_on == "all")) & (item.ids != self.processor.image_token_id)
            item.labels = np.where(is_target, item.ids, IGNORE_INDEX)
            starts = by_assistant & ~np.pad(by_assistant, (1, 0))[:-1]  # of the runs of tokens of one message
            item.in_last_answer = by_assistant & (starts.cumsum() == starts.sum())
            self._append_completions(item)

    def _append_completions(self, item: _TokenizedRow) -> None:
        """Appends the pairs of text and completion, of which the completions are targets."""
        if not item.completions:
            return
        texts = [text for pair in item.completions for text in pair]
        pieces = self.processor.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        is_target = [index % 2 == 1 or self.train_on == "all" for index in range(len(texts))]
        labels = [ids if learn else [IGNORE_INDEX] * len(ids) for ids, learn in zip(pieces, is_target, strict=True)]
        item.ids = np.concatenate([item.ids, *(np.array(ids, dtype=np.int64) for ids in pieces)])
        item.labels = np.concatenate([item.labels, *(np.array(ids, dtype=np.int64) for ids in labels)])
        item.in_last_answer = np.pad(item.in_last_answer, (0, len(item.ids) - len(item.in_last_answer)))

    def _fit(self, item: _TokenizedRow) -> bool:
        """Truncates an item to `max_length`; False where that would cut an image or leave no target."""
        if self.max_length is not None and len(item.ids) > self.max_length:
            placeholders = cast("list[int]", self.processor.image_token_ids)
            if np.isin(item.ids[self.max_length :], placeholders).any():
                self._skip("length", f"{item.name}: {len(item.ids)} tokens, over {self.max_length} inside an image.")
                return False
            for name in ("ids", "labels", "in_last_answer"):
                setattr(item, name, getattr(item, name)[: self.max_length])
        if (item.labels == IGNORE_INDEX).all():
            self._skip("target", f"{item.name}: nothing to learn within {self.max_length} tokens.")
            return False
        return True

    def _stack(self, items: list[_TokenizedRow]) -> dict[str, torch.Tensor]:
        width = max(len(item.ids) for item in items)
        input_ids = np.full((len(items), width), self.processor.tokenizer.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        labels = np.full_like(input_ids, IGNORE_INDEX)
        for row, item in enumerate(items):
            length = len(item.ids)
            input_ids[row, :length], labels[row, :length], attention_mask[row, :length] = item.ids, item.labels, 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        batch = {name: torch.from_numpy(array) for name, array in batch.items()}
        images = {
            "pixel_values": [image for item in items for image in item.input_images],
            "generation_pixel_values": [image for item in items for image in item.generated_images],
        }
        batch |= {name: pixels_of(group, self.processor.image_processor) for name, group in images.items() if group}
        codes = [item.codes for item in items if item.codes is not None and len(item.codes)]
        if codes:
            if images["generation_pixel_values"]:
                raise ValueError(
                    "A batch has codes for some of its generated images and pixels for others: give one kind."
                )
            batch["generation_codes"] = torch.cat(codes)
        return batch


class PreferenceCollator(EvoTokCollator):
    """Collates preferences: rows whose `messages` end with the better answer and whose `rejected` is the other, a text.

    Each row gives two items, which are used or skipped together; see [`EvoTokCollator`].
    """

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        """Collates rows for TRL's `DPOTrainer`.

        Returns:
            `input_ids`, `attention_mask`, `completion_mask` `(2 B, T)`, all better answers before all rejected ones,
            the mask 1 at the last answer; `pixel_values` `(2 I, 3, H, W)` if there are any.
        """
        better, rejected = zip(*self._usable(rows), strict=True)
        items = [*better, *rejected]
        batch = self._stack(items)
        mask = torch.zeros_like(batch.pop("labels"))
        for number, item in enumerate(items):
            mask[number, : len(item.ids)] = torch.from_numpy(item.in_last_answer)
        return batch | {"completion_mask": mask}

    def _fit(self, item: _TokenizedRow) -> bool:
        """Truncates an item as for other rows; False where the last answer is cut off: there is nothing to compare."""
        if not super()._fit(item):
            return False
        if not item.in_last_answer.any():
            self._skip("target", f"{item.name}: its last answer begins after {self.max_length} tokens.")
            return False
        return True

    def _items(self, row: dict) -> list[_TokenizedRow]:
        if not isinstance(row.get("rejected"), str):
            raise ValueError(f"row {row.get('id', row.get('index', '?'))}: no text under `rejected`: add one.")
        better = self._read(row)
        if better is None:
            return []
        if better.messages[-1]["role"] != "assistant" or better.generated_images or better.codes is not None:
            raise ValueError(f"{better.name}: texts are compared: end with an answer, and generate no image.")
        message = {"role": "assistant", "content": [{"type": "text", "text": row["rejected"]}]}
        [[rejected]], _ = prepare_conversations([[message]], self._control_pattern)
        return [better, replace(better, messages=[*better.messages[:-1], rejected])]


def _completions(row: dict, name: str) -> list[tuple[str, str]]:
    pairs = row.get("completions") or []
    if not all(len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs):
        raise ValueError(f"{name}: completions: give pairs of texts, a text and what follows it.")
    return pairs


def _is_text_to_image(messages: list[dict]) -> bool:
    """Returns whether messages are a system message or none, a prompt of text and an answer with an image."""
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
