"""The page of `evotok app` over HTTP: requests, events, files of the machine, many requests at once."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from page_client import API, ORDER, SECRET, Visitor, check_harmless

from untrusted.case import Group, StatusError, Workspace, case, kind


def start_page(workspace: Workspace) -> None:
    """Serves the page before its first case, of which the start is no part."""
    assert workspace.materials.visitor


def send(workspace: Workspace, request: dict[str, Any]) -> str:
    """Returns the body of the response to a request.

    Raises:
        StatusError: a status of 400 or more.
    """
    import httpx

    try:
        answer = workspace.materials.visitor.client.request(**request)
    except httpx.ReadError:  # refused before all of the body was read
        raise StatusError("the connection is closed") from None
    check_harmless(answer.text)
    if answer.status_code >= 400:
        raise StatusError(f"HTTP {answer.status_code}")
    return answer.text


def request(method: str, route: str, **content: Any):
    return lambda _: {"method": method, "url": f"{API}/{route}", **content}


def get(route: str, **content: Any):
    return request("GET", route, **content)


def post(route: str, **content: Any):
    return request("POST", route, **content)


def slider(workspace: Workspace) -> dict[str, Any]:
    """Posts a depth that the slider does not have."""
    index = workspace.materials.visitor.handler("depth", "change")
    return post("run/predict", json={"data": [None, 99], "fn_index": index})(workspace)


JSON = {"content-type": "application/json"}
FETCH = {"data": [[{"path": "http://127.0.0.1:1/a.png"}]], "fn_index": 0, "session_hash": "visitor"}
FILE = {"files": {"files": ("a.png", b"0")}}
REQUESTS = [
    kind("body that no form sends", "HTTP {}")(
        case("half a brace", post("queue/join", content=b"{", headers=JSON), "422"),
        case("list", post("cancel", json=[]), "422"),
        case("value out of range", slider, "422"),
        case("JSON nested deeply", post("queue/join", content=b"[" * 5000, headers=JSON), "400"),
    ),
    kind("length of a body", "HTTP {}", limit="1 MiB, uploads 12 MiB")(
        case("event of 2 MB", post("queue/join", json={"data": ["a" * 2**21]}), "413"),
        case("upload of 13 MB", post("upload", files={"files": ("a.png", bytes(13 * 2**20))}), "413"),
        case("no length", post("upload", content=iter([b"0"]), headers={"content-type": "image/png"}), "411"),
    ),
    kind("another host or site", "HTTP {}")(
        case("host", get("info", headers={"host": "evil.example"}), "421"),
        case("site", post("upload", headers={"origin": "https://evil.example"}, **FILE), "403"),
    ),
    kind("address to be fetched", "HTTP 403")(case("in an event", post("queue/join", json=FETCH)), case("as a file", get("file=https://example.org/a.png"))),
    kind("file of the machine", "HTTP 403")(
        case("absolute path", get("file=/etc/passwd")),
        case("path that climbs out", get("file=..%2f..%2fetc%2fpasswd")),
        case("null byte", get("file=%00")),
        case("link", lambda workspace: get(f"file={workspace.link('a.png', workspace.outside / f'{SECRET}.png')}")(workspace)),
    ),
    kind("route that the page does not use", "HTTP 404")(
        case("component server", post("component_server", json={"data": ["a frog"]})), case("proxy", get("proxy=http://127.0.0.1:1/"))
    ),
]


def order(workspace: Workspace, given: tuple[str, str, list]) -> list[dict[str, Any]]:
    """Returns the messages that answer an event of the page.

    Raises:
        ValueError: the line that the page shows.
        StatusError: the error of Gradio, for a value that its form cannot send.
    """
    element, name, data = given
    messages = workspace.materials.visitor.ask(element, data, name)
    check_harmless(json.dumps(messages))
    last = messages[-1]
    assert last["msg"] == "process_completed", last
    if not last["success"]:
        raise StatusError(last["output"].get("error") or "Error")
    lines = [message["log"] for message in messages if message["msg"] == "log"]
    if lines:
        [line] = lines
        raise ValueError(line)
    return messages


def draw(**changes: Any):
    return lambda _: ("generate-start", "click", list((ORDER | changes).values()))


def ask(text: Any, *files: dict[str, Any]):
    return lambda _: ("question", "submit", [{"text": text, "files": list(files)}, None])


def inspect(path: str, kind: str):
    return lambda _: ("source", "change", [{"path": path, "meta": {"_type": kind}}, 2])


def is_whole(messages: list[dict[str, Any]]) -> None:
    assert "16 of 16 positions" in json.dumps(messages[-1])


EVENTS = [
    kind("prompt or question", "{}.", limit="2,000 characters, `max_position_embeddings`")(
        case("empty", draw(prompt=" \n "), "Write a prompt first"),
        case("characters of a prompt", draw(prompt="a" * 5000), "The prompt has 5000 characters, at most 2000 are read: shorten it"),
        case("characters of a question", ask("a" * 5000), "The question has 5000 characters, at most 2000 are read: shorten it"),
        case("tokens of a prompt", draw(negative="0xq7" * 400), "The negative prompt has … tokens; the limit before an image is 112: shorten it"),
        case("tokens of a question", ask("0xq7" * 400), "The conversation has … tokens; the limit is 127: shorten the question, …"),
    ),
    kind("range of a number", "{}", limit="of the field")(
        case("guidance", draw(guidance=1e9), "Value 1000000000.0 is greater than maximum value 15."),
        case("seed", draw(seed=-5), "The seed is -5: give a number from 0 to 4294967295."),
        case("level", lambda _: ("levels", "change", [None, None, [99]]), "Value: 99 (type: <class 'int'>) is not in the list of choices: [1, 2, 3, 4]"),
    ),
    kind("value that no form sends", "Error")(
        case("text for a number", draw(guidance="strong")),
        case("missing value", lambda _: ("generate-start", "click", ["a frog", ""])),
        case("file of the machine as an image", inspect("/etc/passwd", "gradio.FileData")),
        case("file of the machine in a question", ask("x", {"path": "/etc/passwd"})),
    ),
    kind("file that was not uploaded", "passwd: was not uploaded to this page: add it as a file.")(inspect("/etc/passwd", "x")),
    kind("object for a prompt", "its text; no file is read")(draw(prompt={"path": "/etc/passwd"}), check=is_whole),
]


EIGHT = list((ORDER | {"images": 8}).values())
NO_IMAGE = [None, None, None]  # the data of "Ask about it" before an image is generated
HEAD = b"POST /gradio_api/queue/join HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@contextmanager
def visiting(workspace: Workspace) -> Iterator[Callable[[int], Visitor]]:
    """Yields a function: a visitor from the address 127.0.0.NUMBER, which has limits of its own."""
    with ExitStack() as stack:

        def visitor(number: int) -> Visitor:
            visitor = Visitor(workspace.materials.visitor.url, f"127.0.0.{number}")
            stack.enter_context(visitor.client)
            return visitor

        yield visitor


def act(workspace: Workspace, action: Callable[[Workspace], Any]) -> Any:
    """Returns the result of an action.

    Raises:
        StatusError: the last response has a status of 400 or more.
    """
    answer = action(workspace)
    status = getattr(answer, "status_code", 200)
    if status >= 400:
        raise StatusError(f"HTTP {status}: {answer.text}")
    return answer


def join_often(workspace: Workspace) -> Any:
    """Queues generations of one address, in four sessions, until one is refused; then cancels them."""
    with visiting(workspace) as visitor:
        greedy, joined = visitor(211), []
        for number in range(200):
            session = f"greedy{number % 4}"
            answer = greedy.join("generate-start", EIGHT, session=session)
            if answer.status_code != 200:
                break
            joined.append({"session_hash": session, "fn_index": greedy.handler("generate-start"), **answer.json()})
        for body in joined:
            greedy.client.post(f"{API}/cancel", json=body)
        return answer


def open_sessions(workspace: Workspace) -> Any:
    """Opens sessions of one address until one is refused."""
    with visiting(workspace) as visitor:
        many = visitor(212)
        answers = (many.join("ask", NO_IMAGE, session=f"junk{number}") for number in range(230))
        return next(answer for answer in answers if answer.status_code != 200)


def image_among_sessions(workspace: Workspace) -> Any:
    """Generates an image, and uses it after another address has opened all sessions that it can."""
    with visiting(workspace) as visitor:
        honest = visitor(213)
        honest.ask("generate-start", list(ORDER.values()), session="honest")
        open_sessions(workspace)
        return honest.ask("ask", NO_IMAGE, session="honest")[-1]


def upload_often(workspace: Workspace) -> Any:
    """Uploads files until one is refused."""
    with mock.patch("evotok.app.visitors.UPLOAD_BYTES_OF_ADDRESS", 2**20), visiting(workspace) as visitor:
        hoarder = visitor(214)
        answers = (hoarder.client.post(f"{API}/upload", files={"files": ("a.png", b"0" * 2**18)}) for _ in range(9))
        return next(answer for answer in answers if answer.status_code != 200)


def half(part: bytes, limit: str):
    """Sends a part of a request and waits for the end of the connection."""

    def action(workspace: Workspace) -> Any:
        url = workspace.materials.visitor.client.base_url
        with mock.patch(limit, 0.3), socket.create_connection((url.host, url.port), timeout=10) as connection:
            connection.sendall(part)
            received = b""
            while piece := connection.recv(4096):
                received += piece
        line = received.decode().partition("\r\n")[0].removeprefix("HTTP/1.1 ")
        raise StatusError(line or "the connection is closed")

    return lambda _: action


FETCHING = "![x](https://evil.example/x.png) <form action='https://evil.example'><input></form>"


def answered(workspace: Workspace) -> str:
    """Returns an answer of the model as the page shows it."""
    with mock.patch("evotok.app.chat.stream_answer", lambda *_: iter([FETCHING])), visiting(workspace) as visitor:
        messages = visitor(216).ask("question", [{"text": "a frog", "files": []}, None], "submit", "reader")
    content = messages[-1]["output"]["data"][1][-1]["content"]
    return content[0]["text"] if isinstance(content, list) else content


def is_plain(text: str) -> None:
    assert text == FETCHING.replace("<", "&lt;").replace(">", "&gt;")


def behind_a_proxy(workspace: Workspace) -> Callable[[Workspace], Any]:
    """Serves another page while the environment names a proxy that does not answer; before the case, because Gradio
    makes a folder of its own."""
    from evotok.app.server import serve
    from evotok.commands.app import listen

    dead, model, processor = "http://127.0.0.1:9", workspace.materials.model, workspace.materials.processor
    environment = {"HTTP_PROXY": dead, "http_proxy": dead, "NO_PROXY": "", "no_proxy": ""}
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch("tempfile.tempdir", str(workspace.path.parent)),
        serve(model, processor, listen("127.0.0.1", None)) as served,
    ):
        visitor = Visitor(served.url)
        with visitor.client as client:
            answer = client.get("/config")
    return lambda _: answer


def is_ok(answer: Any) -> None:
    assert answer.status_code == 200


def has_image(message: dict[str, Any]) -> None:
    assert message["success"] and ".png" in str(message["output"])


LOAD = [
    kind("requests of one address", "HTTP {}.", limit="8 that wait, 32 sessions, 128 MiB an hour")(
        case("200 generations", lambda _: join_often, "503: Too many of your requests are waiting: let one finish first"),
        case("230 sessions", lambda _: open_sessions, "503: Too many pages are open: close one, or come back later"),
        case("uploads", lambda _: upload_often, "413: At most 1 MB can be uploaded in 60 minutes: wait a while"),
    ),
    kind("image of a session among many", "it is kept")(lambda _: image_among_sessions, check=has_image),
    kind("half a request", "{}", limit="10 s, body 60 s")(
        case("line", half(b"GET / HT", "evotok.app.server.Connection.head_seconds"), "the connection is closed"),
        case("head", half(HEAD, "evotok.app.server.Connection.head_seconds"), "the connection is closed"),
        case("body", half(HEAD + b"content-length: 500\r\nconnection: close\r\n\r\n{", "evotok.app.gate.BODY_SECONDS"), "408 Request Timeout"),
    ),
    kind("answer with an image of another site and a form", "plain text")(lambda _: answered, check=is_plain),
    kind("proxy of the environment that does not answer", "the page is served")(behind_a_proxy, check=is_ok),
]

GROUPS = [
    Group("The page", "request", send, REQUESTS, start_page),
    Group("The page", "event", order, EVENTS, start_page),
    Group("The page", "many requests", act, LOAD, start_page),
]
