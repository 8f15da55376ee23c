"""Answers of the tab Chat, by a model in this process and by a server."""

import itertools

import pytest
import torch
from conftest import build_chat_model
from PIL import Image


pytest.importorskip("gradio", reason="the page needs the extra `app`")

from evotok.app.chat import answer
from evotok.app.examples import UNLIMITED
from evotok.app.limits import MAX_CHARACTERS, MAX_IMAGES
from evotok.conversation import Conversation, without_refusals
from evotok.inference import answer as whole_answer


@pytest.fixture(scope="module")
def parts():
    return build_chat_model()


@pytest.fixture(scope="module")
def client(parts):
    """Yields a client of a server that runs the same model."""
    pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
    pytest.importorskip("openai")
    from served import running

    from evotok.serving.client import ServerClient

    with running(parts) as server:
        yield ServerClient(server.url)


@pytest.fixture
def image():
    noise = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return Image.fromarray(noise.numpy())


def test_answer_is_streamed_and_stored(parts, image):
    conversation = Conversation()
    answers = list(answer(*parts, conversation, " what is this? ", [image]))
    assert answers[0] == "" and len(answers) > 2
    assert all(len(a) <= len(b) for a, b in itertools.pairwise(answers))
    user, assistant = conversation.messages
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    assert user["content"][1]["text"] == "what is this?"
    assert assistant["content"][0]["text"] == answers[-1] == whole_answer(*parts, [[user]], max_new_tokens=256)[0]


def test_answer_by_a_server_equals_the_model(parts, client, image):
    here, there = Conversation(), Conversation()
    for question, images in (("a dog?", [image]), ("and this?", [])):
        *_, wanted = answer(*parts, here, question, images)
        *_, found = answer(client, None, there, question, images)
        assert found == wanted
    before = list(there.messages)
    with pytest.raises(ValueError, match="shorten the question"):
        list(answer(client, None, there, "0xq7 " * 400))
    assert there.messages == before


def test_answer_closed_by_its_reader_keeps_the_generated_text(parts, image):
    conversation = Conversation(pending=[image])
    answers = answer(*parts, conversation, "what is this?")
    text = next(piece for piece in answers if piece)
    answers.close()
    assert not conversation.pending and len(conversation.images) == 1
    assert conversation.messages[1]["content"][0]["text"] == text


def test_answer_by_a_server_closes_its_connection(client, monkeypatch):
    closed = []

    def endless(messages, max_tokens):
        try:
            yield from iter(lambda: "a ", None)
        finally:
            closed.append(True)

    monkeypatch.setattr(client, "chat", endless)
    answers = answer(client, None, Conversation(), "a dog?")
    assert [next(answers) for _ in range(3)] == ["", "a ", "a a "] and not closed
    answers.close()
    assert len(closed) == 1
    *_, whole = answer(client, None, Conversation(), "a dog?", seconds=0.05)
    assert len(closed) == 2 and whole.startswith("a a")


def test_answer_without_text_is_marked(parts):
    assert list(answer(*parts, Conversation(), "a cat", seconds=-1))[-1] == "(no answer)"


@pytest.mark.parametrize(
    ("question", "images", "message"),
    [
        ("  ", 1, "Write a question first"),
        ("x" * (MAX_CHARACTERS + 1), 1, "at most 2000"),
        ("what is this?", MAX_IMAGES + 1, "at most 8 images"),
        ("0xq7" * 400, 0, "fewer images, or start a new conversation"),
    ],
)
def test_answer_refuses_bad_questions(parts, image, question, images, message):
    conversation = Conversation(pending=[image])
    with pytest.raises(ValueError, match=message):
        list(answer(*parts, conversation, question, [image] * images))
    assert conversation == Conversation(pending=[image])


def test_answer_keeps_the_conversation_after_a_failure(parts, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(parts[0], "generate", fail)
    conversation = Conversation()
    with pytest.raises(RuntimeError, match="no memory"):
        list(answer(*parts, conversation, "a cat"))
    assert conversation == Conversation()


def test_answer_outside_of_the_scope_is_a_refusal(parts, image, monkeypatch):
    words = frozenset(["what", "is", "this", "a", "cat"])
    scope = UNLIMITED._replace(words=words, images_only=True, chat="Trained on cats.")
    model, processor = parts
    plain = Image.new("RGB", (32, 32), "white")
    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", pytest.fail)
        conversation = Conversation()
        [text] = answer(model, processor, conversation, "what is this?", scope=scope)
        assert "about images only" in text
        [text] = answer(model, processor, conversation, "Who painted the Mona Lisa?", [plain], scope=scope)
        assert "has not learned “who”, “painted”, “the”, “mona” ..." in text and "Trained on cats." in text
        [text] = answer(model, processor, Conversation(), "what is this?", [image], scope=scope)
        assert "looks like a photograph" in text
    assert list(answer(model, processor, conversation, "what is this a cat?", scope=scope))[-1]
    assert len(conversation.messages) == 6
    kept = without_refusals(conversation.messages)
    assert [message["role"] for message in kept] == ["user", "assistant"]
    assert [part["type"] for part in kept[0]["content"]] == ["image", "text"] and kept[1] is conversation.messages[-1]
