"""Answers to the questions of rows; the rest of `eval/inference.py` is in test_inference.py."""

import pytest
import torch
from conftest import build_chat_model
from PIL import Image

from evotok.eval.inference import answer_questions, continuous_features, prompt_of


@pytest.fixture(scope="module")
def chat_model():
    return build_chat_model()


def row(question, answer, *colors):
    parts = [*({"type": "image"} for _ in colors), {"type": "text", "text": question}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return {"messages": messages, "images": [Image.new("RGB", (32, 32), c) for c in colors], "answer": answer}


def test_prompt_of_has_the_images_in_order_and_no_answer():
    [message] = prompt_of(entry := row("same?", "no", "red", "blue"))
    assert [part["image"].getpixel((0, 0))[0] for part in message["content"][:2]] == [255, 0]
    assert message["content"][2] == {"type": "text", "text": "same?"}
    assert "image" not in entry["messages"][0]["content"][0], "the row is unchanged"


def test_answer_questions_is_independent_of_the_batch(chat_model):
    """Rows of different length and number of images: left padding must change nothing."""
    colors = ("red", "green", "blue", "yellow", "black")
    questions = ("what is this?", "a?", "the red one, a cat or a dog, is what this is?", "is this a cat?", "what?")
    rows = [row(q, "", *([c] * (1 + i % 2))) for i, (q, c) in enumerate(zip(questions, colors, strict=True))]
    alone = answer_questions(*chat_model, rows, batch_size=1, max_new_tokens=6)
    assert answer_questions(*chat_model, rows, batch_size=3, max_new_tokens=6) == alone
    assert len(set(alone)) > 1 and all("<|" not in answer for answer in alone)


def test_continuous_features_have_the_direction_of_the_tower(chat_model):
    model, _ = chat_model
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    decoded = model.get_image_features(pixels)
    found = continuous_features(model, lambda images: 7 * decoded.last_hidden_state, pixels)
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(found[name], decoded[name])
    other = torch.randn(decoded.last_hidden_state.shape, generator=torch.Generator().manual_seed(1))
    found = continuous_features(model, lambda images: other, pixels).last_hidden_state
    torch.testing.assert_close(found.norm(dim=-1), decoded.last_hidden_state.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(found, other, dim=-1), torch.ones(2, found.shape[1]))
