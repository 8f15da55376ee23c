"""`evotok chat --server`: a conversation with a model behind a server."""

import io
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from conftest import build_chat_model
from PIL import Image


pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("openai")

from served import noise, running

from evotok.cli import main
from evotok.commands.chat import Chat
from evotok.data.errors import escape_controls
from evotok.serving.client import BusyServerError, ServerClient
from evotok.serving.limits import Limits


@pytest.fixture(scope="module")
def parts():
    """Returns a model and its processor: 32 px, a context of 512 tokens."""
    return build_chat_model()


@pytest.fixture(scope="module")
def served(parts):
    with running(parts, Limits(images=2), api_key="secret") as server:
        yield server


def test_chat_through_a_server_equals_the_model(parts, served, capsys):
    here, there = Chat(*parts, 12), Chat(ServerClient(f"{served.url}/v1/", "secret"), None, 12)
    for chat in (here, there):
        chat.conversation.pending.append(noise())
    for question in ("what is this?", "a cat, a dog"):
        assert there.ask(question) == here.ask(question) != ""
    assert there.history() == here.history()
    said = capsys.readouterr().out
    assert escape_controls(there.conversation.messages[1]["content"][0]["text"]) in said


def test_generated_image_is_sent_with_the_next_question(parts, served):
    chat = Chat(ServerClient(served.url, "secret"), None, 4)
    image = chat.generate("a cat", seed=5)
    assert image.tobytes() == Chat(*parts).generate("a cat", seed=5).tobytes()
    assert chat.history() == ["> [image]"]
    chat.ask("what is this?", is_printed=False)
    assert chat.conversation.messages[0]["content"][0]["image"] is image


def test_chat_command_uses_a_server(served, tmp_path, monkeypatch, capsys):
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


def test_refusal_of_the_server_is_one_line(served, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{'0xq7' * 400}\n/history\n"))
    assert main(["chat", "--server", served.url, "--api-key", "secret"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"evotok chat: {served.url}: The conversation has ") and said.err.count("\n") == 1
    assert said.err.endswith(
        " the limit is 511: shorten the question, use fewer images, or start a new conversation.\n"
    )
    assert said.out == "(nothing yet)\n"


def test_large_images_are_resized_before_sending(parts):
    """As PNG they would exceed the size limit of a request."""
    photograph = Image.linear_gradient("L").convert("RGB").resize((3000, 1500))
    with running(parts, Limits(pixels=1024 * 512)) as served:
        client = ServerClient(served.url)
        content = [{"type": "image", "image": photograph}, {"type": "text", "text": "what is this?"}]
        assert "".join(client.chat([{"role": "user", "content": content}], 4))
    assert photograph.size == (3000, 1500)


def test_chat_escapes_control_characters_of_a_server(capsys):
    class Client:
        def chat(self, messages, max_tokens):
            yield from ("a\x1b[2J", "\tcat\u202e")

    chat = Chat(Client(), None)
    assert chat.ask("what is this?") == "a\x1b[2J\tcat\u202e"
    assert capsys.readouterr().out == "a\\x1b[2J\tcat\\u202e\n"


MODELS = b'{"data": [{"id": "a"}]}'


class Impostor(BaseHTTPRequestHandler):
    """Server with malformed responses; the path selects one."""

    def do_GET(self):
        answers = {
            "/page": (200, b"<html>"),
            "/moved": (302, b""),
            "/empty": (200, b'{"data": []}'),
            "/list": (200, b'{"data": ["a"]}'),
            "/bad": (500, b"x"),
        }
        self.answer(*answers.get(self.path.removesuffix("/v1/models"), (200, MODELS)))

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        text = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
        answers = {
            "/short": text,
            "/text": text + b"data: hello\n\n",
            "/other": text + b'data: {"choices": 5}\n\n',
            "/error": text + b'data: {"error": "no"}\n\n',
            "/none": b"{}",
            "/fewer": b'{"data": []}',
            "/letters": b'{"data": [{"b64_json": "\xc3\xa9"}]}',
        }
        self.answer(200, answers["/" + self.path.split("/")[1]])

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Location", "http://127.0.0.1:9/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Logs nothing."""


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
        ("/list", "this is no server of OpenAI's interface"),
        ("/moved", "HTTP status 302: this is no server"),
        ("/bad", "HTTP status 500: this is no server"),
    ],
)
def test_wrong_address_is_reported_in_one_line(impostor, path, message, capsys):
    assert main(["chat", "--server", impostor + path, "--prompt", "hello"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("evotok chat: http://127.0.0.1:") and message in line


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("short", "the answer is incomplete"),
        ("text", "no server of"),
        ("other", "no server of"),
        ("error", "no server"),
    ],
)
def test_malformed_stream_raises_an_error(impostor, path, message):
    pieces = ServerClient(f"{impostor}/{path}").chat([{"role": "user", "content": []}], 4)
    assert next(pieces) == "a"
    with pytest.raises(ValueError, match=message):
        next(pieces)


@pytest.mark.parametrize(
    ("path", "message"), [("none", "no server"), ("fewer", "0 images instead of 2"), ("letters", "no server")]
)
def test_missing_images_raise_an_error(impostor, path, message):
    with pytest.raises(ValueError, match=message) as error:
        ServerClient(f"{impostor}/{path}").generate_images("a cat", 1, 2)
    assert not isinstance(error.value, BusyServerError), "a retry would not help"


def test_wrong_key_is_reported(served, capsys):
    assert main(["chat", "--server", served.url, "--api-key", "other", "--prompt", "hello"]) == 2
    assert "Send the server's API key" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["chat"], ["chat", "mini", "--server", "http://127.0.0.1:9"]])
def test_chat_command_requires_a_checkpoint_or_a_server(words, capsys):
    assert main(words) == 2
    assert "give either a CHECKPOINT" in capsys.readouterr().err
