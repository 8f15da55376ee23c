"""The page over a running server: the same answers and images as over a model here, without its third tab."""

import pytest
from conftest import build_chat_model


pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("openai")

from served import noise, running

from evotok.app.chat import answer
from evotok.app.generate import Order, draw
from evotok.cli import main
from evotok.commands.conversation import Conversation
from evotok.serving.client import ServerClient


@pytest.fixture(scope="module")
def parts():
    return build_chat_model()


@pytest.fixture(scope="module")
def served(parts):
    with running(parts) as server:
        yield server


@pytest.fixture(scope="module")
def client(served):
    return ServerClient(served.url)


def test_an_answer_is_that_of_the_model(parts, client):
    here, there = Conversation(), Conversation()
    *_, wanted = answer(*parts, here, "a dog?", [noise()])
    pieces = list(answer(client, None, there, "a dog?", [noise()]))
    assert pieces[0] == "" and pieces[-1] == wanted and len(pieces) > 3
    *_, wanted = answer(*parts, here, "and this?")
    *_, found = answer(client, None, there, "and this?")
    assert found == wanted


def test_who_stops_reading_closes_the_connection(client, monkeypatch):
    closed = []

    def endless(messages, max_tokens):
        try:
            yield from iter(lambda: "a ", None)
        finally:
            closed.append(True)

    monkeypatch.setattr(client, "chat", endless)
    conversation = Conversation()
    pieces = answer(client, None, conversation, "a dog?")
    assert [next(pieces) for _ in range(3)] == ["", "a ", "a a "] and not closed
    pieces.close()
    assert closed and conversation.messages[-1]["content"][0]["text"] == "a a ", "what came until then is kept"
    *_, whole = answer(client, None, Conversation(), "a dog?", seconds=0.05)
    assert len(closed) == 2 and whole.startswith("a a"), "the time is up"


def test_an_error_of_the_server_leaves_the_conversation_as_it_was(client):
    conversation = Conversation()
    with pytest.raises(ValueError, match="shorten the question"):
        list(answer(client, None, conversation, "0xq7 " * 400))
    assert conversation.messages == []


def test_images_are_those_of_the_server(client):
    [drawing] = draw(client, None, Order("a red cat", "a dog", 3.0, 2, 7, 0.8))
    assert drawing.finished and drawing.seed == 7 and len(drawing.images) == 2
    settings = {"negative_prompt": "a dog", "guidance_scale": 3.0, "temperature": 0.8}
    wanted = client.generate_image("a red cat", 8, **settings)
    assert drawing.images[1].tobytes() == wanted.tobytes()
    with pytest.raises(ValueError, match="what to draw"):
        next(draw(client, None, Order(" ")))


def test_the_page_has_no_tab_that_needs_the_model(client, tmp_path):
    pytest.importorskip("gradio", reason="the page needs the extra `app`")
    from evotok.app.page import build_page

    components = build_page(client, None, tmp_path).get_config_file()["components"]
    tabs = [component["props"]["label"] for component in components if component["type"] == "tabitem"]
    assert tabs == ["Chat", "Draw"]
    assert any("tiny" in str(component["props"].get("value")) for component in components)


def test_a_page_is_of_one_model(capsys):
    assert main(["app", "mini", "--server", "http://127.0.0.1:9"]) == 2
    assert "not both" in capsys.readouterr().err
    assert main(["app", "--server", "http://127.0.0.1:9", "--port", "18655"]) == 2
    assert "no server answers" in capsys.readouterr().err
