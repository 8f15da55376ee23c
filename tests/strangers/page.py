"""The page of `evotok app` as programs of strangers meet it over HTTP: requests, orders, questions and files."""

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from strangers.case import SECRET, Case, Group, Place, StatusError
from strangers.images import noise, saved


API = "/gradio_api"
ORDER = {"prompt": "a frog", "negative": "", "guidance": 7.5, "images": 1, "seed": 1, "temperature": 1.0}


class Visitor:
    """Speaks to a page that is being served as its own browser code does, but sends what it likes.

    Args:
        url: of the page.
        address: of this machine that requests come from; each address has limits of its own.
    """

    def __init__(self, url: str, address: str = "127.0.0.1"):
        import httpx

        self.url = url
        # A request that is refused before its body was read closes the connection.
        limits = httpx.Limits(max_keepalive_connections=0)
        transport = httpx.HTTPTransport(local_address=address, limits=limits)
        self.client = httpx.Client(base_url=url, timeout=60, transport=transport, trust_env=False)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """Components and handlers of the page."""
        return self.client.get("/config").json()

    def handler(self, element: str, event: str = "click") -> int:
        """Number of the handler of an event of the element with that id."""
        names = {component["id"]: component["props"].get("elem_id") for component in self.config["components"]}
        return next(
            dependency["id"]
            for dependency in self.config["dependencies"]
            if any(names.get(target) == element and name == event for target, name in dependency["targets"])
        )

    def join(self, element: str, data: list, event: str = "click", session: str = "stranger", about: Any = None):
        """The answer of the queue to one event; `about` is what the event itself says, such as which message it is of."""
        body = {"data": data, "fn_index": self.handler(element, event), "session_hash": session, "event_data": about}
        return self.client.post(f"{API}/queue/join", json=body)

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Uploads a file; returns it as the page's own forms name it."""
        answer = self.client.post(f"{API}/upload", files={"files": (name, content)})
        assert answer.status_code == 200, answer.text
        return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    @contextmanager
    def messages(self, session: str = "stranger") -> Iterator[Iterator[dict[str, Any]]]:
        """What the page says to a session, message by message; leaving the context breaks the connection off."""
        with self.client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as stream:
            yield (json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:"))

    def ask(
        self, element: str, data: list, event: str = "click", session: str = "stranger", about: Any = None
    ) -> list[dict[str, Any]]:
        """All that the page says to one event."""
        joined = self.join(element, data, event, session, about)
        assert joined.status_code == 200, joined.text
        said = []
        with self.messages(session) as messages:
            for message in messages:
                said.append(message)
                if message["msg"] in ("process_completed", "close_stream"):
                    break
        return said


def check_harmless(text: str) -> None:
    """No traceback, no file of the machine, no path of the program."""
    for leak in ("Traceback", 'File "', "site-packages", "root:", SECRET):
        assert leak not in text, f"tells {leak!r}: {text[:300]}"


def send(place: Place, request: tuple[str, str, dict[str, Any]]) -> str:
    """What the page answers to a request.

    Raises:
        StatusError: a status of 400 or more.
    """
    import httpx

    method, route, content = request
    client = place.materials.visitor.client
    try:
        answer = client.request(method, f"{API}/{route}", **content)
    except httpx.ReadError:  # refused before all of the body was read
        raise StatusError("the connection is closed") from None
    check_harmless(answer.text)
    if answer.status_code >= 400:
        raise StatusError(f"HTTP {answer.status_code}")
    return answer.text


def order(place: Place, given: tuple[str, str, list]) -> list[dict[str, Any]]:
    """What comes of an event on the page.

    Raises:
        ValueError: the line that the page shows.
        StatusError: what Gradio itself says of a value that its form cannot send, if anything.
    """
    element, event, data = given
    messages = place.materials.visitor.ask(element, data, event)
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


def case(given: str, gets: str, build: Callable[[Place], Any], good: Callable[[Any], None] | None = None) -> Case:
    """A case that finds the page open: starting it is no part of the case."""

    def make(place: Place) -> Any:
        assert place.materials.visitor
        return build(place)

    return Case(given, gets, make, good)


# --- requests ---------------------------------------------------------------------------------------------------------


def body(route: str, name: str, content: bytes, gets: str) -> Case:
    request = ("POST", route, {"content": content, "headers": {"content-type": "application/json"}})
    return case(f"`POST {route}` with {name}", gets, lambda place: request)


def post(route: str, given: dict[str, Any], gets: str) -> Case:
    name = json.dumps(given)
    return case(f"`POST {route}` with `{name}`", gets, lambda place: ("POST", route, {"json": given}))


def get(path: str, gets: str, lay: Callable[[Place], Any] = lambda place: None) -> Case:
    return case(f"`GET {path}`", gets, lambda place: (lay(place), ("GET", path, {}))[1])


GARBAGE = {
    "nothing": b"",
    "half a brace": b"{",
    "a list": b"[]",
    "a text": b'"x"',
    "bytes that are no UTF-8": b"\xff\xfe",
    "data that are a number": b'{"data": 7}',
    "5000 brackets": b"[" * 5000,
}
ROUTES = ("queue/join", "cancel", "reset", "run/predict")
UNUSED = (
    "api/predict",
    "call/predict",
    "call/v2/predict",
    "component_server",
    "vibe-edit",
    "process_recording",
    "stream/x",
)
PUBLIC = "https://example.org/a.png"
REQUESTS = [
    *(
        body(route, name, content, "HTTP 400" if name == "5000 brackets" else "HTTP 422")
        for route in ROUTES
        for name, content in GARBAGE.items()
    ),
    body("queue/join", "a handler of letters", b'{"fn_index": "x", "data": []}', "HTTP 422"),
    *(
        post("queue/join", {"data": [], "fn_index": index, "session_hash": "stranger"}, gets)
        for index, gets in ((-1, "HTTP 422"), (10**6, "HTTP 422"), (None, "HTTP 400"))
    ),
    post("run/predict", {"data": ["a frog"]}, "HTTP 422"),
    *(
        case(
            f"`POST run/predict` of the slider with `{json.dumps(data)}`",
            "HTTP 422",
            lambda place, data=data: (
                "POST",
                "run/predict",
                {"json": {"data": data, "fn_index": place.materials.visitor.handler("depth", "change")}},
            ),
        )
        for data in ([], [None, "x"], [None, 99])
    ),
    *(
        post("queue/join", {"data": [[{"path": address}]], "fn_index": 0, "session_hash": "stranger"}, "HTTP 403")
        for address in (PUBLIC, "http://127.0.0.1:1/a.png")
    ),
    *(post(route, {"data": ["a frog"]}, "HTTP 404") for route in UNUSED),
    case(
        "`POST queue/join` of 2 MB",
        "HTTP 413",
        lambda place: ("POST", "queue/join", {"json": {"data": ["a" * 2**21], "session_hash": "stranger"}}),
    ),
    case(
        "`GET info` of `Host: evil.example`",
        "HTTP 421",
        lambda place: ("GET", "info", {"headers": {"host": "evil.example"}}),
    ),
    case(
        "`POST upload` from the site `https://evil.example`",
        "HTTP 403",
        lambda place: (
            "POST",
            "upload",
            {"files": {"files": ("a.png", b"0")}, "headers": {"origin": "https://evil.example"}},
        ),
    ),
    case(
        "`POST queue/join` from another site, as the browser says",
        "HTTP 403",
        lambda place: ("POST", "queue/join", {"json": {"data": []}, "headers": {"sec-fetch-site": "cross-site"}}),
    ),
    case(
        "`POST upload` that does not say how long it is",
        "HTTP 411",
        lambda place: ("POST", "upload", {"content": iter([b"0"]), "headers": {"content-type": "image/png"}}),
    ),
    get("queue/data?session_hash=nobody", "HTTP 404"),
    get("file=/etc/passwd", "HTTP 403"),
    get("file=%2e%2e/%2e%2e/etc/passwd", "HTTP 403"),
    get("file=..%2f..%2fetc%2fpasswd", "HTTP 403"),
    get("file=file:///etc/passwd", "HTTP 403"),
    get("file=http://127.0.0.1:1/", "HTTP 403"),
    get(f"file={PUBLIC}", "HTTP 403"),
    get(f"file/{PUBLIC}", "HTTP 404"),
    get(f"file={'a' * 300}.png", "HTTP 403"),
    get("file=own.png", "HTTP 403", lambda place: place.write("own.png", b"x")),
    get("file=link.png", "HTTP 403", lambda place: place.link("link.png", place.outside / f"{SECRET}.png")),
    get("file=..%2foutside%2frecipe.yaml", "HTTP 403"),
    get("upload_progress?upload_id=../x", "HTTP 404"),
    get("proxy=http://127.0.0.1:1/", "HTTP 404"),
    get("proxy=http://[", "HTTP 404"),
    get("custom_component/x/client/component/y.js", "HTTP 404"),
    get("dev/reload", "HTTP 404"),
    get("%00", "HTTP 404"),
    get("file=%00", "HTTP 403"),
    case(
        "`POST upload` of 13 MB",
        "HTTP 413",
        lambda place: ("POST", "upload", {"files": {"files": ("big.png", b"0" * (13 * 2**20))}}),
    ),
    case(
        "`POST upload` of no form",
        "HTTP 400",
        lambda place: ("POST", "upload", {"content": b"x", "headers": {"content-type": "image/png"}}),
    ),
]


# --- what the three tabs are sent -------------------------------------------------------------------------------------


def drawn(given: str, gets: str, good: Callable[[Any], None] | None = None, **changes) -> Case:
    return case(given, gets, lambda place: ("draw-go", "click", list((ORDER | changes).values())), good)


def is_whole(messages: list[dict[str, Any]]) -> None:
    """Checks that an image was drawn."""
    assert "16 of 16 positions" in json.dumps(messages[-1])


def asked(given: str, gets: str, box: Any) -> Case:
    return case(given, gets, lambda place: ("question", "submit", [box, None]))


def looked_at(given: str, gets: str, path: Any, **image: Any) -> Case:
    image = {"path": path} | (image or {"meta": {"_type": "gradio.FileData"}})
    return case(given, gets, lambda place: ("source", "change", [image, 2]))


def _picture_here(place: Place) -> tuple[str, str, list]:
    return "source", "change", [{"path": str(place.path / place.write("own.png", saved(noise(8, 8), "PNG")))}, 2]


ORDERS = [
    drawn("no prompt", "Write what to draw first.", prompt=""),
    drawn("prompt of spaces", "Write what to draw first.", prompt=" \n "),
    drawn(
        "prompt of 5000 letters",
        "The prompt has 5000 characters, at most 2000 are read: shorten it.",
        prompt="a" * 5000,
    ),
    drawn(
        "prompt over the model's context",
        "The prompt has … tokens, this model reads at most 112 before an image: shorten it.",
        prompt="0xq7" * 400,
    ),
    drawn(
        "negative prompt over the model's context",
        "The negative prompt has … tokens, this model reads at most 112 before an image: shorten it.",
        negative="0xq7" * 400,
    ),
    drawn(
        "negative prompt of 5000 letters",
        "The negative prompt has 5000 characters, at most 2000 are read: shorten it.",
        negative="a" * 5000,
    ),
    drawn("guidance of a billion", "Value 1000000000.0 is greater than maximum value 15.", guidance=1e9),
    drawn("guidance below 1", "Value 0 is less than minimum value 1.", guidance=0),
    drawn("guidance that is a text", "Error", guidance="strong"),
    drawn("guidance that is a list", "Error", guidance=[7]),
    drawn("a million images", "Value 1000000 is greater than maximum value 8.", images=10**6),
    drawn("no image", "Value 0 is less than minimum value 1.", images=0),
    drawn("number of images that is missing", "Error", images=None),
    drawn("seed below 0", "The seed is -5: give a number from 0 to 4294967295.", seed=-5),
    drawn("seed that is a text", "The seed is x: give a number from 0 to 4294967295.", seed="x"),
    drawn("temperature that is a text", "Error", temperature="hot"),
    drawn("temperature of 3", "Value 3 is greater than maximum value 2.", temperature=3),
    drawn("prompt that is a number", "drawn as its digits", is_whole, prompt=7),
    drawn("prompt that is an object", "drawn as text, and no file is read", is_whole, prompt={"path": "/etc/passwd"}),
    case("order of two values", "Error", lambda place: ("draw-go", "click", ["a frog", ""])),
    asked("question that is missing", "Write a question first.", None),
    asked("question that is a number", "Error", 7),
    asked("question of no words", "Write a question first.", {"text": "  ", "files": []}),
    asked("question whose text is a number", "Error", {"text": 5, "files": []}),
    asked("question whose files are a text", "Error", {"text": "hi", "files": "x"}),
    asked(
        "question of 5000 letters",
        "The question has 5000 characters, at most 2000 are read: shorten it.",
        {"text": "a" * 5000, "files": []},
    ),
    asked(
        "question over the model's context",
        "The conversation has … tokens, the model reads fewer than 128: shorten the question, show fewer images, or "
        "begin anew.",
        {"text": "0xq7" * 400, "files": []},
    ),
    asked("question about a file of the machine", "Error", {"text": "x", "files": [{"path": "/etc/passwd"}]}),
    looked_at("picture that is a file of the machine", "Error", "/etc/passwd"),
    looked_at("picture by a path that climbs out", "Error", "../../etc/passwd"),
    looked_at(
        "file of the machine that says it is no upload",
        "passwd: was not uploaded to this page: add it as a file.",
        "/etc/passwd",
        meta={"_type": "x"},
    ),
    case(
        "picture of the machine that does not say what it is",
        "own.png: was not uploaded to this page: add it as a file.",
        _picture_here,
    ),
    looked_at("picture of an empty name", "Error", ""),
    case(
        "level that there is not",
        "Value: 99 (type: <class 'int'>) is not in the list of choices: [1, 2, 3, 4]",
        lambda place: ("levels", "change", [None, None, [99]]),
    ),
    case("levels that are a number", "Error", lambda place: ("levels", "change", [None, None, 7])),
]

GROUPS = [
    Group("Requests to the page", "HTTP requests to `evotok app`", send, REQUESTS, refusal="status"),
    Group(
        "Orders to the page", "the events of `evotok app`, as its own forms send them", order, ORDERS, refusal="line"
    ),
]
