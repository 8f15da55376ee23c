"""Questions about scenes of the world, answered from codes and from continuous features of the vision tower."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from ...data.world.evaluation import question_set
from ...data.world.icons import World
from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ...processing.processing_evotok import EvoTokProcessor
from ..inference import Teacher, answer_questions
from ..metrics import score_answers
from ..sequences import map_batches
from ..suite import Evaluation, Report


def measure_questions(
    evaluation: Evaluation,
    world: World,
    model: EvoTokForConditionalGeneration,
    processor: EvoTokProcessor,
    teacher: Teacher,
    figure: str,
) -> Report:
    """Measures the accuracy of one set of questions, with its baseline, and the accuracy from continuous features.

    Args:
        teacher: the vision tower that the tokenizer was trained with.
        figure: one of `QUESTION_SETS`.
    """
    options = evaluation.options
    questions = question_set(world, figure, options.questions, options.seed)

    def ask(batch: Sequence[dict[str, Any]], teacher: Teacher | None = None) -> list[str]:
        return answer_questions(model, processor, batch, len(batch), teacher=teacher)

    answers = map_batches(evaluation.workers, ask, questions, options.batch_size, figure)
    continuous = map_batches(
        evaluation.workers, partial(ask, teacher=teacher), questions, options.batch_size, f"{figure}, continuous"
    )
    scores = score_answers(questions, answers)
    figures = {
        figure: scores.accuracy,
        f"{figure}_continuous": score_answers(questions, continuous).accuracy,
        f"{figure}_baseline": scores.baseline,
        f"{figure}_n": scores.n,
    }
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in questions):
        own = [index for index, row in enumerate(questions) if row["kind"] == kind]
        asked = [questions[index] for index in own]
        of_kind = score_answers(asked, [answers[index] for index in own])
        without = score_answers(asked, [continuous[index] for index in own])
        row = {"figure": figure, "question": kind, "n": of_kind.n, "accuracy": of_kind.accuracy}
        rows.append(row | {"continuous": without.accuracy, "commonest answer": of_kind.baseline})
    return Report(figures, {"questions": rows})
