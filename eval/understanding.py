"""Accuracy of answers to questions about images, beside that of the commonest answer."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple


class AnswerScores(NamedTuple):
    """`accuracy` of the answers, `baseline` accuracy of always giving the `commonest` right answer, `n` questions."""

    accuracy: float
    baseline: float
    n: int
    commonest: str


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
