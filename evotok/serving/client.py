"""Client of a running server, for commands that take `--server` or `engine=`; it needs only the standard library."""

import base64
import http.client
import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener


if TYPE_CHECKING:
    from PIL import Image

TIMEOUT_SECONDS = 600.0
MAX_SIDE = 1024
"""Longest side of images that are sent, in pixels, unless the model's is longer: a large PNG exceeds the limit of a
request."""
BUSY = (429, 500, 502, 503, 504)
"""Statuses of a server, or of a proxy before it, after which a request may be retried."""
_NO_SERVER = "this is no server of OpenAI's interface: give another --server."


class BusyServerError(ValueError):
    """Raised when a server is busy or unavailable; the request may be retried, or sent to another server."""


class _NoRedirects(HTTPRedirectHandler):
    """Handler that raises an error for a redirect, which would receive the API key."""

    def redirect_request(self, *args: Any) -> None:
        """Returns None, so that urllib raises the redirect as an `HTTPError`."""


class ServerClient:
    """Client of a server, for the first of its models.

    Args:
        url: address, with or without `/v1`.
        api_key: if the server requires one.

    Raises:
        ValueError: not an address, or not a server with OpenAI's interface.
    """

    def __init__(self, url: str, api_key: str | None = None):
        self.url = url.rstrip("/").removesuffix("/v1")
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"{url!r} is no address of a server: give one such as http://127.0.0.1:8000.")
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._opener = build_opener(_NoRedirects)
        try:
            found = self._json("/v1/models")["data"][0]
            self.model, self.image_size = found["id"], found.get("image_size")
            self._max_side = max(MAX_SIDE, self.image_size or 0)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(f"{self.url}: {_NO_SERVER}") from None

    def chat(self, messages: list[dict[str, Any]], max_tokens: int) -> Iterator[str]:
        """Yields the text of the next message as it arrives; the answer is aborted when the iterator is closed.

        Args:
            messages: as the chat template reads them, with PIL images.

        Raises:
            ValueError: the server refuses the request, with its message, or the answer is incomplete.
        """
        body = {"model": self.model, "messages": [_to_openai(message, self._max_side) for message in messages]}
        with self._open("/v1/chat/completions", body | {"max_tokens": max_tokens, "stream": True}) as response:
            for data in self._events(response):
                yield self._text_of(data)

    def generate_image(self, prompt: str, seed: int, **settings: Any) -> "Image.Image":
        """Generates one image.

        Args:
            settings: fields of the request such as `guidance_scale`; the server has defaults for the others.

        Raises:
            ValueError: the server refuses the request, with its message; `BusyServerError` if it may be retried.
        """
        return self.generate_images(prompt, seed, 1, **settings)[0]

    def generate_images(self, prompt: str, seed: int, count: int, **settings: Any) -> list["Image.Image"]:
        """Generates images of one prompt, the seeds `seed`, `seed + 1` and so on; raises as `generate_image`."""
        from evotok.processing.image_loading_evotok import load_image

        body = {"model": self.model, "prompt": prompt, "seed": seed, "n": count, "response_format": "b64_json"}
        found = self._json("/v1/images/generations", body | settings)
        try:
            files = [base64.b64decode(item["b64_json"]) for item in found["data"]]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.url}: {_NO_SERVER}") from None
        if len(files) != count:
            raise ValueError(f"{self.url}: {len(files)} images instead of {count}: give another --server.")
        return [load_image(file) for file in files]

    def _json(self, path: str, body: dict[str, Any] | None = None) -> Any:
        with self._open(path, body) as response:
            try:
                return json.load(response)
            except (ValueError, OSError, http.client.HTTPException):
                raise BusyServerError(f"{self.url}: {_NO_SERVER}") from None

    def _open(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            return self._opener.open(Request(self.url + path, data, self._headers), timeout=TIMEOUT_SECONDS)
        except HTTPError as error:
            kind = BusyServerError if error.code in BUSY else ValueError
            raise kind(f"{self.url}: {_reason(error)}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            raise BusyServerError(
                f"{self.url}: no server answers ({reason}): start one with `evotok serve`, or give another --server."
            ) from None

    def _events(self, response: Any) -> Iterator[bytes]:
        """Yields the data of the events of a stream up to its end."""
        try:
            for line in response:
                if line.startswith(b"data: "):
                    data = line.removeprefix(b"data: ").strip()
                    if data == b"[DONE]":
                        return
                    yield data
        except (OSError, http.client.HTTPException):
            pass
        raise ValueError(f"{self.url}: the answer is incomplete: retry the request.")

    def _text_of(self, data: bytes) -> str:
        """Returns the text of one event of a stream."""
        try:
            event = json.loads(data)
            if "error" not in event:
                return "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            reason = event["error"]["message"]
        except (ValueError, KeyError, TypeError, AttributeError):
            reason = _NO_SERVER
        raise ValueError(f"{self.url}: {reason}")


def _reason(error: HTTPError) -> str:
    """Reads the reason of a refusal from the body of the response."""
    try:
        return json.loads(error.read(65536))["error"]["message"]
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        return f"HTTP status {error.code}: {_NO_SERVER}"


def _to_openai(message: dict[str, Any], max_side: int) -> dict[str, Any]:
    """Converts a message to one whose images are data URLs, with no side longer than `max_side` pixels."""
    content = []
    for part in message["content"]:
        if part["type"] == "text":
            content.append(part)
            continue
        image, file = part["image"], io.BytesIO()
        if max(image.size) > max_side:
            image = image.copy()
            image.thumbnail((max_side, max_side))
        image.save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    return message | {"content": content}
