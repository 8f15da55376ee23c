"""The checks of a request before the application reads it: host, API key, and a free place among open requests."""

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evotok.connections import is_own_host
from evotok.serving.errors import ApiError
from evotok.serving.limits import Limits
from evotok.serving.metrics import Metrics


OPEN_PATHS = ("/health",)
"""That need no API key: load balancers have none."""
DISCARD_SECONDS = 5.0
"""Longest time for the rest of the body of a request that is refused."""
ENDPOINTS = ("/v1/chat/completions", "/v1/images/generations", "/v1/models", "/health", "/metrics")


class Gate:
    """ASGI middleware that refuses requests in OpenAI's form before a byte of their body is read, and counts all.

    Args:
        app: that answers what passes.
        limits: of the server.
        metrics: that are kept up.
        api_key: that clients must send as `Authorization: Bearer KEY`; None for none.
        hosts: names that the server is addressed by, beside addresses in numbers; None for any. A page in a browser
            reaches a server on the loopback address too, by a name of its own that points there.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        api_key: str | None = None,
        hosts: Sequence[str] | None = None,
    ):
        self._app, self._limits, self._metrics = app, limits, metrics
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()
        self._hosts = hosts
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.monotonic(), 499  # as nginx has it: the client left before there was an answer

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        unread = scope["method"] == "POST"

        async def receive_on() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message["type"] == "http.request" and message.get("more_body", False)
            return message

        try:
            self._check(scope)
            with self._place(scope["method"] == "POST"):
                await self._app(scope, receive_on, send_on)
        except ApiError as error:
            if unread:
                await _discard_body(receive, self._limits.body_bytes)
            await error.response()(scope, receive, send_on)
        finally:
            endpoint = scope["path"] if scope["path"] in ENDPOINTS else "other"
            self._metrics.requests.labels(endpoint, status).inc()
            self._metrics.seconds.labels(endpoint).observe(time.monotonic() - started)
        return None

    @contextmanager
    def _place(self, is_counted: bool) -> Iterator[None]:
        """Takes a place among the open requests. One that is refused has none, however slowly it is read to its end.

        Raises:
            ApiError: all are taken.
        """
        if is_counted and self._open >= self._limits.requests:
            reason = f"{self._limits.requests} requests are open, the limit: try again in a moment."
            raise ApiError(429, reason, "queue_full")
        self._open += is_counted
        try:
            yield
        finally:
            self._open -= is_counted

    def _check(self, scope: Scope) -> None:
        """Raises ApiError for a request that is addressed to another host, or lacks the API key."""
        headers = Headers(scope=scope)
        if self._hosts is not None and not is_own_host(headers.get("host", ""), self._hosts):
            raise ApiError(403, "This server is not addressed by that name: use its address.", "unknown_host")
        if self._authorization is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get("authorization", "").encode("latin-1")
            if not secrets.compare_digest(given, self._authorization):
                raise ApiError(401, "Send the server's API key: Authorization: Bearer KEY.", "invalid_api_key")


async def _discard_body(receive: Receive, most: int) -> None:
    """Receives the rest of a body: a client that still sends when the connection is closed does not see the answer."""
    try:
        async with asyncio.timeout(DISCARD_SECONDS):
            while most > 0 and (message := await receive())["type"] == "http.request":
                most -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        pass
