"""Answers in batches, and how they are scored."""

import pytest
from conftest import build_chat_model
from PIL import Image

from evotok.eval.inference import answer_questions, prompt_of, score_answers


@pytest.fixture(scope="module")
def chat_model():
    return build_chat_model()


def record(question, answer, *colors):
    parts = [*({"type": "image"} for _ in colors), {"type": "text", "text": question}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return {"messages": messages, "images": [Image.new("RGB", (32, 32), c) for c in colors], "answer": answer}


def test_prompt_holds_the_images_in_order_and_not_the_answer():
    [message] = prompt_of(entry := record("same?", "no", "red", "blue"))
    assert [part["image"].getpixel((0, 0))[0] for part in message["content"][:2]] == [255, 0]
    assert message["content"][2] == {"type": "text", "text": "same?"}
    assert "image" not in entry["messages"][0]["content"][0], "the record is left as it was"


def test_a_batch_answers_as_one_by_one(chat_model):
    """Rows of different length and number of images: left padding must change nothing."""
    colors = ("red", "green", "blue", "yellow", "black")
    questions = ("what is this?", "a?", "the red one, a cat or a dog, is what this is?", "is this a cat?", "what?")
    records = [record(q, "", *([c] * (1 + i % 2))) for i, (q, c) in enumerate(zip(questions, colors, strict=True))]
    alone = answer_questions(*chat_model, records, batch_size=1, max_new_tokens=6)
    assert answer_questions(*chat_model, records, batch_size=3, max_new_tokens=6) == alone
    assert len(set(alone)) > 1 and all("<|" not in answer for answer in alone)


def test_no_questions_no_answers(chat_model):
    assert answer_questions(*chat_model, []) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Food & Drink.", "food drink"),
        ("  the\tCAT \n", "the cat"),
        ("fluent-3d!", "fluent 3d"),
        ("\uff13", "3"),  # full-width digit
        ("", ""),
    ],
)
def test_normalized_answers(text, expected):
    assert normalize_answer(text) == expected


def test_scores_stand_beside_the_commonest_answer():
    records = [{"answer": a} for a in ("cat", "cat", "a dog", "owl")]
    scores = score_answers(records, ["Cat.", "dog", "a  dog", ""])
    assert scores == (0.5, 0.5, 4, "cat")
    assert scores.accuracy == 0.5 and scores.n == 4


@pytest.mark.parametrize(("records", "answers"), [([], []), ([{"answer": "a"}], ["a", "b"])])
def test_answers_that_do_not_match_records(records, answers):
    with pytest.raises(ValueError, match="one for each"):
        score_answers(records, answers)
