"""`evotok chat --server`: a conversation with a model behind a server."""

import io
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from conftest import build_chat_model


pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("openai")

from served import noise, running

from evotok.cli import main
from evotok.commands.chat import Chat
from evotok.data.errors import escape_controls
from evotok.serving.client import ServerClient
from evotok.serving.limits import Limits


@pytest.fixture(scope="module")
def parts():
    """Model and processor: 32 px, a context of 512 tokens."""
    return build_chat_model()


@pytest.fixture(scope="module")
def served(parts):
    with running(parts, Limits(images=2), api_key="secret") as server:
        yield server


def test_a_conversation_is_that_with_the_model_itself(parts, served, capsys):
    here, there = Chat(*parts, 12), Chat(ServerClient(f"{served.url}/v1/", "secret"), None, 12)
    for chat in (here, there):
        chat.conversation.pending.append(noise())
    for question in ("what is this?", "a cat, a dog"):
        assert there.ask(question) == here.ask(question) != ""
    assert there.history() == here.history()
    said = capsys.readouterr().out
    assert escape_controls(there.conversation.messages[1]["content"][0]["text"]) in said


def test_an_image_is_generated_there_and_goes_with_the_next_question(parts, served):
    chat = Chat(ServerClient(served.url, "secret"), None, 4)
    image = chat.generate("a cat", seed=5)
    assert image.tobytes() == Chat(*parts).generate("a cat", seed=5).tobytes()
    assert chat.history() == ["> [image]"]
    chat.ask("what is this?", is_printed=False)
    assert chat.conversation.messages[0]["content"][0]["image"] is image


def test_the_command_talks_to_a_server(served, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVOTOK_API_KEY", "secret")
    noise().save("a.png")
    assert main(["chat", "--server", served.url, "--image", "a.png", "--prompt", "a cat", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.strip()
    monkeypatch.setattr(sys, "stdin", io.StringIO("/draw a cat\nwhat is this?\n/history\n"))
    assert main(["chat", "--server", served.url]) == 0
    [path] = Path("drawn").iterdir()
    said = capsys.readouterr()
    assert str(path) in said.out and "> [image] what is this?" in said.out and not said.err


def test_what_the_server_refuses_is_one_line_and_leaves_the_conversation(served, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{'0xq7' * 400}\n/history\n"))
    assert main(["chat", "--server", served.url, "--api-key", "secret"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"evotok chat: {served.url}: The conversation has ") and said.err.count("\n") == 1
    assert said.err.endswith(
        " the model reads fewer than 512: shorten the question, show fewer images, or begin anew.\n"
    )
    assert said.out == "(nothing yet)\n"


class Impostor(BaseHTTPRequestHandler):
    """Answers what no server of OpenAI's interface does; the path says what."""

    def do_GET(self):
        answers = {
            "/page": (200, b"<html>"),
            "/moved": (302, b""),
            "/empty": (200, b'{"data": []}'),
            "/bad": (500, b"x"),
        }
        status, body = answers[self.path.removesuffix("/v1/models")]
        self.send_response(status)
        self.send_header("Location", "http://127.0.0.1:9/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Says nothing."""


@pytest.fixture(scope="module")
def impostor():
    with HTTPServer(("127.0.0.1", 0), Impostor) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/page", "this is no server of OpenAI's interface"),
        ("/empty", "this is no server of OpenAI's interface"),
        ("/moved", "HTTP status 302: this is no server"),
        ("/bad", "HTTP status 500: this is no server"),
    ],
)
def test_what_is_no_server_is_told_in_one_line(impostor, path, message, capsys):
    assert main(["chat", "--server", impostor + path, "--prompt", "hello"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("evotok chat: http://127.0.0.1:") and message in line


def test_a_wrong_key_is_told(served, capsys):
    assert main(["chat", "--server", served.url, "--api-key", "other", "--prompt", "hello"]) == 2
    assert "Send the server's API key" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["chat"], ["chat", "mini", "--server", "http://127.0.0.1:9"]])
def test_a_checkpoint_or_a_server_is_given_and_not_both(words, capsys):
    assert main(words) == 2
    assert "give either a CHECKPOINT" in capsys.readouterr().err
