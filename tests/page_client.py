"""HTTP client for the page of `evotok app`: sends the requests of the page's browser code, or others."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


API = "/gradio_api"
ORDER = {"prompt": "a frog", "negative": "", "guidance": 7.5, "images": 1, "seed": 1, "temperature": 1.0}
SECRET = "canary"  # text of the files outside the folder of a test, which no response may contain


class Visitor:
    """Client of one visitor.

    Args:
        url: of the page.
        address: source address of the requests, one of this machine; limits are per address.
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
        """Returns the components and event handlers of the page."""
        return self.client.get("/config").json()

    def handler(self, element: str, event: str = "click") -> int:
        """Returns the index of the handler of an event of the element with that id."""
        names = {component["id"]: component["props"].get("elem_id") for component in self.config["components"]}
        return next(
            dependency["id"]
            for dependency in self.config["dependencies"]
            if any(names.get(target) == element and name == event for target, name in dependency["targets"])
        )

    def join(self, element: str, data: list, event: str = "click", session: str = "visitor", about: Any = None):
        """Posts one event to the queue; `about` is the event's own data, such as the index of a message."""
        body = {"data": data, "fn_index": self.handler(element, event), "session_hash": session, "event_data": about}
        return self.client.post(f"{API}/queue/join", json=body)

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Uploads a file; returns it as the page's forms name it."""
        answer = self.client.post(f"{API}/upload", files={"files": (name, content)})
        assert answer.status_code == 200, answer.text
        return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    @contextmanager
    def messages(self, session: str = "visitor") -> Iterator[Iterator[dict[str, Any]]]:
        """Iterates over the messages to a session; leaving the context closes the connection."""
        with self.client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as stream:
            yield (json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:"))

    def ask(
        self, element: str, data: list, event: str = "click", session: str = "visitor", about: Any = None
    ) -> list[dict[str, Any]]:
        """Returns all messages that answer one event."""
        joined = self.join(element, data, event, session, about)
        assert joined.status_code == 200, joined.text
        received = []
        with self.messages(session) as messages:
            for message in messages:
                received.append(message)
                if message["msg"] in ("process_completed", "close_stream"):
                    break
        return received


def check_harmless(text: str) -> None:
    """Asserts that a response holds no traceback, no file of the machine and no path of the program."""
    for leak in ("Traceback", 'File "', "site-packages", "root:", SECRET):
        assert leak not in text, f"leaks {leak!r}: {text[:300]}"
