"""ASGI middleware before Gradio, which refuses requests that the page does not send.

Gradio 6.31 limits the size of an uploaded file, the length of the queue and the files that are served. It does not:

- check the Host header, so that a site whose name points to this machine (DNS rebinding) could use the page;
  TrustedHostMiddleware of Starlette has no rule for IP addresses, and splits those of IPv6;
- refuse uploads and events from other sites: its CORS headers only keep their scripts from reading the response;
- switch off the routes that this page does not use, such as those that fetch, record or edit;
- refuse public addresses in the place of files: it fetches them for a visitor;
- limit the size of a request that is not an upload, or the time until its body has arrived; neither does uvicorn;
- limit sessions, waiting events and uploads of one address, see `visitors`;
- answer malformed requests with a status below 500, and without a traceback in the log;
- send a content security policy.
"""

import asyncio
import json
import logging
import re
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evotok.app.limits import BODY_SECONDS
from evotok.app.visitors import RefusedError, Visitors
from evotok.connections import is_own_host


logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 2**20
"""Size of a request that is not an upload; it has the names of uploads in place of images."""
SECURITY_HEADERS = {
    # Nothing is fetched from, or sent to, another site; Gradio's own page has inline scripts.
    "content-security-policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
    "form-action 'none'; base-uri 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
_READ = re.compile(
    r"/(config|favicon\.ico|manifest\.json|robots\.txt|theme\.css|pwa_icon(/\d+)?)?/?"
    r"|/(assets|static|svelte)/.+"
    r"|/gradio_api/(app_id|info|login_check|queue/data|queue/status|startup-events|theme\.css|token|upload_progress|user)/?"
    r"|/gradio_api/(file=|heartbeat/).+"
)
_WRITTEN = re.compile(r"/gradio_api/(upload|queue/join|run/.+|cancel|reset)/?")
_HEARTBEAT = "/gradio_api/heartbeat/"


class Gate:
    """ASGI middleware that answers a refused request with a status and one line.

    Args:
        app: the application of Gradio.
        visitors: limits per address and session.
        hosts: names of this machine, beside `localhost` and IP addresses; see `is_own_host`.
    """

    def __init__(self, app: ASGIApp, visitors: Visitors, hosts: Iterable[str] = ()):
        self.app, self.visitors, self.hosts = app, visitors, {"localhost", *hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_run = "/run/" in scope["path"]
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                # Handlers outside the queue fail only because of their input; Gradio returns 500 for it.
                if is_run and message["status"] == 500:
                    message = {**message, "status": 422}
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        try:
            _check_origin(scope, self.hosts)
            receive, session = await self._admit(scope, _Body(receive))
            with self.visitors.stream(session) if session and scope["method"] != "POST" else nullcontext():
                await self.app(scope, receive, send_on)
        except RefusedError as refused:
            if started:
                raise
            await PlainTextResponse(refused.reason, refused.status)(scope, receive, send_on)
        except ClientDisconnect:
            logger.info("disconnected: %s %s", scope["method"], scope["path"])
        except Exception as error:
            if started or isinstance(error, OSError):
                raise  # the response has begun, or the disk is full
            logger.info("refused %s %s", scope["method"], scope["path"], exc_info=error)
            await PlainTextResponse("The page sends no such request.", 422)(scope, receive, send_on)

    async def _admit(self, scope: Scope, receive: "_Body") -> tuple[Receive, str | None]:
        """Checks a request before Gradio receives it.

        Returns:
            The channel that Gradio receives the request from, and the session of the request.

        Raises:
            RefusedError: the request is refused.
        """
        path, writes = scope["path"].rstrip("/"), scope["method"] == "POST"
        address = scope["client"][0] if scope.get("client") else ""
        if not (_WRITTEN if writes else _READ).fullmatch(scope["path"]):
            raise RefusedError(404, "The page has no such route.")
        if "://" in path:
            raise RefusedError(403, "Addresses are not fetched: upload the file.")
        if not writes:
            session = _session_of(scope)
            if path.endswith("/queue/data"):
                self.visitors.check_joined(session)
            if session:
                self.visitors.enter(address, session)
            return receive.rest, session
        if path.endswith("/upload"):
            size = Headers(scope=scope).get("content-length", "")
            if not size.isdecimal():  # browsers always send it
                raise RefusedError(411, "An upload needs the header Content-Length.")
            self.visitors.upload(address, int(size))
            return receive, None
        body = await receive.read()
        session = _check_body(body)
        if session:
            self.visitors.enter(address, session)
        if path.endswith("/queue/join"):
            self.visitors.check_waiting(address, session or "")
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive.rest()

        return receive_again, session


class _Body:
    """Channel of the body of a request, with a time limit."""

    def __init__(self, receive: Receive):
        self.rest = receive
        self._end = asyncio.get_running_loop().time() + BODY_SECONDS
        self._whole = False

    async def __call__(self) -> Message:
        """Receives one message.

        Raises:
            RefusedError: the time limit has passed.
        """
        if self._whole:
            return await self.rest()  # returns when the visitor disconnects
        try:
            async with asyncio.timeout_at(self._end):
                message = await self.rest()
        except TimeoutError:
            raise RefusedError(408, f"The request did not arrive within {BODY_SECONDS} seconds.") from None
        self._whole = not message.get("more_body", False)
        return message

    async def read(self) -> bytes:
        """Receives the whole body.

        Raises:
            RefusedError: the time limit has passed, or the body is too large.
        """
        parts, size = [], 0
        while not self._whole:
            parts.append((await self()).get("body", b""))
            size += len(parts[-1])
            if size > MAX_BODY_BYTES:
                raise RefusedError(413, f"A request has at most {MAX_BODY_BYTES} bytes: shorten its texts.")
        return b"".join(parts)


def _check_origin(scope: Scope, hosts: Iterable[str]) -> None:
    """Checks the host of a request, and the site that a request with effects comes from.

    Raises:
        RefusedError: another host, or another site.
    """
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not is_own_host(host, hosts):
        raise RefusedError(421, "The page is not served under this host name: add it with --allow-host.")
    if scope["method"] not in ("GET", "HEAD"):
        origin = headers.get("origin")
        is_other_site = origin is not None and urlsplit(origin).netloc != host
        if is_other_site or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise RefusedError(403, "Requests from other sites are refused.")


def _session_of(scope: Scope) -> str | None:
    """Returns the session of a GET request."""
    if scope["path"].startswith(_HEARTBEAT):
        return scope["path"].removeprefix(_HEARTBEAT).strip("/")
    return next(iter(parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", ())), None)


def _check_body(body: bytes) -> str | None:
    """Checks that no file of an event is an address; a body that is not JSON is refused by Gradio.

    Returns:
        The session of the event.

    Raises:
        RefusedError: a file is an address.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    unchecked: list[Any] = [content]
    while unchecked:
        value = unchecked.pop()
        if isinstance(value, dict):
            if "://" in str(value.get("path")):
                raise RefusedError(403, "Addresses are not fetched: upload the file.")
            unchecked += value.values()
        elif isinstance(value, list):
            unchecked += value
    session = content.get("session_hash") if isinstance(content, dict) else None
    return session if isinstance(session, str) else None
