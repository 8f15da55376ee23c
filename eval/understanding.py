"""Questions about images: the model's answers in batches, and their accuracy beside the commonest answer's."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ..processing.processing_evotok import EvoTokProcessor
from .inference import answer


Teacher = Callable[[torch.Tensor], torch.Tensor]
"""A vision tower: pixels (I, 3, H, W) in [-1, 1] -> features (I, N, F)."""


class AnswerScores(NamedTuple):
    """`accuracy` of the answers, `baseline` accuracy of always giving the `commonest` right answer, `n` questions."""

    accuracy: float
    baseline: float
    n: int
    commonest: str


def prompt_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a record up to the answer wanted, each image in its place."""
    images = iter(record["images"])
    return [
        message | {"content": [p | {"image": next(images)} if p["type"] == "image" else p for p in message["content"]]}
        for message in record["messages"][:-1]
    ]


@torch.inference_mode()
def continuous_features(
    model: EvoTokForConditionalGeneration, teacher: Teacher, pixel_values: torch.Tensor
) -> BaseModelOutputWithPooling:
    """Image features as of `get_image_features`, of a vision tower instead of codes.

    The semantic loss is a cosine (Sec. 3.2, Eq. 5), so that decoded semantics have the direction of the tower's
    features and a norm of their own: at every position the tower's feature gets that norm.

    Args:
        teacher: the vision tower that the tokenizer was trained with, (I, 3, H, W) -> (I, N, F).
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
    """Greedy answers, one a record, in the order of the records.

    Args:
        model: in evaluation mode.
        records: `{"messages": [..., assistant turn], "images": [...]}`; the last turn is left for the model to write.
        teacher: gives the features of images, instead of their codes, as [`continuous_features`] scales them.
    """
    encode_images = None if teacher is None else partial(continuous_features, model, teacher)
    answers: list[str] = []
    for start in range(0, len(records), batch_size):
        conversations = [prompt_of(record) for record in records[start : start + batch_size]]
        answers += answer(model, processor, conversations, max_new_tokens, encode_images, do_sample=False)
    return answers


def normalize_answer(text: str) -> str:
    """Lower case, punctuation and symbols as spaces, single spaces: `" Food & Drink. "` -> `"food drink"`."""
    text = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(" " if unicodedata.category(c)[0] in "PSZC" else c for c in text)
    return " ".join(letters.split())


def score_answers(records: Sequence[dict[str, Any]], answers: Sequence[str]) -> AnswerScores:
    """Exact match after `normalize_answer` with the `answer` of each record.

    Raises:
        ValueError: no records, or not one answer a record.
    """
    if not records or len(records) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(records)} records: give one for each, and at least one.")
    wanted = [normalize_answer(record["answer"]) for record in records]
    right = sum(normalize_answer(answer) == key for answer, key in zip(answers, wanted, strict=True))
    commonest, times = Counter(wanted).most_common(1)[0]
    return AnswerScores(right / len(wanted), times / len(wanted), len(wanted), commonest)
