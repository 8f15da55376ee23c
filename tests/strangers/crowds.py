"""The page of `evotok app` under more than one visitor sends: crowds, half requests, answers that would fetch or post."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from strangers.case import Case, Group, Place, StatusError
from strangers.page import API, ORDER, Visitor


EIGHT = list((ORDER | {"images": 8}).values())
NOTHING = [None, None, None]  # what "Ask about it" sends where nothing was drawn
HEAD = b"POST /gradio_api/queue/join HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@contextmanager
def visiting(place: Place) -> Iterator[Callable[[int], Visitor]]:
    """Function: a visitor of the page from the address 127.0.0.NUMBER, which has limits of its own."""
    with ExitStack() as stack:

        def visitor(number: int) -> Visitor:
            visitor = Visitor(place.materials.visitor.url, f"127.0.0.{number}")
            stack.enter_context(visitor.client)
            return visitor

        yield visitor


def come(place: Place, act: Callable[[Place], Any]) -> Any:
    """What comes of it.

    Raises:
        StatusError: the last answer has a status of 400 or more.
    """
    answer = act(place)
    status = getattr(answer, "status_code", 200)
    if status >= 400:
        raise StatusError(f"HTTP {status}: {answer.text}")
    return answer


def case(given: str, gets: str, act: Callable[[Place], Any], good: Callable[[Any], None] | None = None) -> Case:
    """A case that finds the page open."""

    def make(place: Place) -> Callable[[Place], Any]:
        assert place.materials.visitor
        return act

    return Case(given, gets, make, good)


def join_without_end(place: Place) -> Any:
    """Drawings of one address, in four tabs, until one is refused; then they are cancelled."""
    with visiting(place) as visitor:
        greedy, joined = visitor(211), []
        for number in range(200):
            session = f"greedy{number % 4}"
            answer = greedy.join("draw-go", EIGHT, session=session)
            if answer.status_code != 200:
                break
            joined.append({"session_hash": session, "fn_index": greedy.handler("draw-go"), **answer.json()})
        for body in joined:
            greedy.client.post(f"{API}/cancel", json=body)
        return answer


def open_sessions(place: Place) -> Any:
    """Sessions of nobody, until one is refused."""
    with visiting(place) as visitor:
        many = visitor(212)
        answers = (many.join("ask", NOTHING, session=f"junk{number}") for number in range(230))
        return next(answer for answer in answers if answer.status_code != 200)


def drawn_among_sessions(place: Place) -> Any:
    """Somebody's image, asked about when another address has opened all the sessions that it can."""
    with visiting(place) as visitor:
        honest = visitor(213)
        honest.ask("draw-go", list(ORDER.values()), session="honest")
        open_sessions(place)
        return honest.ask("ask", NOTHING, session="honest")[-1]


def upload_without_end(place: Place) -> Any:
    """Files, until one is refused."""
    with mock.patch("evotok.app.visitors.UPLOAD_BYTES_OF_ADDRESS", 2**20), visiting(place) as visitor:
        hoarder = visitor(214)
        answers = (hoarder.client.post(f"{API}/upload", files={"files": ("a.png", b"0" * 2**18)}) for _ in range(9))
        return next(answer for answer in answers if answer.status_code != 200)


def half(part: bytes, limit: str) -> Callable[[Place], Any]:
    """What a connection gets that sends only so much and waits."""

    def send(place: Place) -> Any:
        url = place.materials.visitor.client.base_url
        with mock.patch(limit, 0.3), socket.create_connection((url.host, url.port), timeout=10) as connection:
            connection.sendall(part)
            said = b""
            while piece := connection.recv(4096):
                said += piece
        raise StatusError(said.decode().partition("\r\n")[0].removeprefix("HTTP/1.1 ") or "the connection is closed")

    return send


def answered(place: Place) -> str:
    """An answer of the model's as the page shows it."""
    with mock.patch("evotok.app.chat.steps", lambda *_: iter([FETCHING])), visiting(place) as visitor:
        messages = visitor(216).ask("question", [{"text": "a frog", "files": []}, None], "submit", "reader")
    content = messages[-1]["output"]["data"][1][-1]["content"]
    return content[0]["text"] if isinstance(content, list) else content


def behind_a_proxy(place: Place) -> Callable[[Place], Any]:
    """What another page gives that was opened while the environment named a proxy that does not answer. It is opened
    when the case is made: Gradio makes a folder of its own then."""
    from evotok.app.server import serve
    from evotok.commands.app import listen

    dead, model, processor = "http://127.0.0.1:9", place.materials.model, place.materials.processor
    environment = {"HTTP_PROXY": dead, "http_proxy": dead, "NO_PROXY": "", "no_proxy": ""}
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch("tempfile.tempdir", str(place.path.parent)),
        serve(model, processor, listen("127.0.0.1", None)) as served,
    ):
        visitor = Visitor(served.url)
        with visitor.client as client:
            answer = client.get("/config")
    return lambda _: answer


def is_there(answer: Any) -> None:
    assert answer.status_code == 200


def is_of_the_session(message: dict[str, Any]) -> None:
    assert message["success"] and ".png" in str(message["output"])


FETCHING = "![x](https://evil.example/x.png) <form action='https://evil.example'><input></form>"


def is_plain(text: str) -> None:
    """As it was said, where Markdown is not rendered, and without a tag."""
    assert text == FETCHING.replace("<", "&lt;").replace(">", "&gt;")


CROWDS = [
    case(
        "200 drawings of one address",
        "HTTP 503: Too many of your requests are waiting: let one finish first.",
        join_without_end,
    ),
    case(
        "230 sessions of one address",
        "HTTP 503: Too many pages are open: close one, or come back later.",
        open_sessions,
    ),
    case("image of a session among 230 of another address", "it is kept", drawn_among_sessions, is_of_the_session),
    case(
        "uploads without end",
        "HTTP 413: At most 1 MB are taken in 60 minutes: wait a while.",
        upload_without_end,
    ),
    case("half a line", "the connection is closed", half(b"GET / HT", "evotok.app.server.HEAD_SECONDS")),
    case("half a head", "the connection is closed", half(HEAD, "evotok.app.server.HEAD_SECONDS")),
    case(
        "half a body",
        "408 Request Timeout",
        half(HEAD + b"content-length: 500\r\nconnection: close\r\n\r\n{", "evotok.app.gate.BODY_SECONDS"),
    ),
    case("answer with a picture of another site and a form", "plain text", answered, is_plain),
    Case("proxy in the environment that does not answer", "the page is there", behind_a_proxy, is_there),
]

GROUPS = [Group("Crowds on the page", "many requests to `evotok app`", come, CROWDS, refusal="status")]
