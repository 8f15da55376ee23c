"""Checks of a request before the application reads it: host, API key, and the number of open requests."""

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
"""Paths that need no API key; load balancers have none."""
DISCARD_SECONDS = 5.0
"""Longest time to receive the rest of the body of a refused request, in seconds."""
ENDPOINTS = ("/v1/chat/completions", "/v1/images/generations", "/v1/models", "/health", "/metrics")


class Gate:
    """ASGI middleware that refuses requests before their body is read, with OpenAI's errors, and counts all.

    Args:
        app: application that handles the admitted requests.
        limits: of the server.
        metrics: updated here.
        api_key: clients must send it as `Authorization: Bearer KEY`; None for no key.
        hosts: host names of the server, beside IP addresses; None for any. The check prevents DNS rebinding, by which a
            page of another site reaches a server on the loopback address.
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
        """Handles one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.monotonic(), 499  # as in nginx: the client disconnected before the response

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
        """Counts a request as open within a context; a refused request is not counted while its body is read.

        Raises:
            ApiError: as many requests as the limit allows are open.
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
    """Receives the rest of a body; a client that is still sending when the connection closes loses the response."""
    try:
        async with asyncio.timeout(DISCARD_SECONDS):
            while most > 0 and (message := await receive())["type"] == "http.request":
                most -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        pass
