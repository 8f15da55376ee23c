"""Questions about scenes of held-out styles, answered from codes and from features of the vision tower."""

from collections.abc import Sequence
from typing import Any

from ...data.processes import Workers
from ...data.world.evaluation import question_set
from ...data.world.icons import World
from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ...processing.processing_evotok import EvoTokProcessor
from ..understanding import Teacher, answer_questions, score_answers
from .figures import Part


def measure_questions(
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    world: World,
    figure: str,
    options: Any,
    workers: Workers,
    teacher: Teacher,
) -> Part:
    """Accuracy of one set of questions, beside that of the commonest answer, and with continuous features.

    Args:
        figure: one of `QUESTION_SETS`.
        options: those of the suite.
        teacher: the vision tower that the tokenizer was trained with.
    """
    records, size = question_set(world, figure, options.questions, options.seed), options.batch_size
    batches = [records[start : start + size] for start in range(0, len(records), size)]

    def ask(batch: Sequence[dict[str, Any]], features: Any = None) -> list[str]:
        return answer_questions(model, processor, batch, len(batch), teacher=features)

    given = workers.map(ask, batches, figure)
    answers = [answer for batch in given for answer in batch]
    given = workers.map(lambda batch: ask(batch, teacher), batches, f"{figure}, continuous")
    continuous = [answer for batch in given for answer in batch]
    scores = score_answers(records, answers)
    figures = {
        figure: scores.accuracy,
        f"{figure}_continuous": score_answers(records, continuous).accuracy,
        f"{figure}_baseline": scores.baseline,
        f"{figure}_n": scores.n,
    }
    rows = []
    for kind in dict.fromkeys(record["kind"] for record in records):
        own = [index for index, record in enumerate(records) if record["kind"] == kind]
        asked = [records[index] for index in own]
        of_kind = score_answers(asked, [answers[index] for index in own])
        without = score_answers(asked, [continuous[index] for index in own])
        row = {"figure": figure, "question": kind, "n": of_kind.n, "accuracy": of_kind.accuracy}
        rows.append(row | {"continuous": without.accuracy, "commonest answer": of_kind.baseline})
    return Part(figures, {"questions": rows})
