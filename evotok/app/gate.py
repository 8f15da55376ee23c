"""What the page lets in: of all that Gradio serves no more than this page's own code asks for, in the form it does.

Gradio would also answer to any name of a host (and so to a site that has its own name point here), take uploads from
any site, fetch public addresses for a visitor, wait without end for the rest of a request, and answer what its forms
never send with a failure of its own.
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
"""Of a request that is no upload: texts are short, and images are sent as the names of uploads."""
SECURITY_HEADERS = {
    # Nothing of what is shown is fetched from, or sent to, another site; Gradio's own page has scripts in it.
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
    """ASGI middleware that refuses what is not for this page, with a status and one line.

    Args:
        app: what Gradio serves.
        visitors: limits per address and session.
        hosts: names of this machine, beside `localhost` and addresses in numbers, which no other site can have;
            `.example.org` stands for all names that end so.
    """

    def __init__(self, app: ASGIApp, visitors: Visitors, hosts: Iterable[str] = ()):
        self.app, self.visitors, self.hosts = app, visitors, {"localhost", *hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        at_once = "/run/" in scope["path"]
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                # Handlers that do not wait in the queue only show what is there: one fails for what it was given.
                if at_once and message["status"] == 500:
                    message = message | {"status": 422}
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
            logger.info("broken off: %s %s", scope["method"], scope["path"])
        except Exception as error:
            if started or isinstance(error, OSError):
                raise  # a fault of the machine
            logger.info("refused %s %s", scope["method"], scope["path"], exc_info=error)
            await PlainTextResponse("The page does not send such requests.", 422)(scope, receive, send_on)

    async def _admit(self, scope: Scope, receive: "_Body") -> tuple[Receive, str | None]:
        """Checks a request before Gradio gets it.

        Returns:
            Where to receive the request from, after what was read of it here, and the session that it belongs to.

        Raises:
            RefusedError: it goes no further.
        """
        path, writes = scope["path"].rstrip("/"), scope["method"] == "POST"
        address = scope["client"][0] if scope.get("client") else ""
        if not (_WRITTEN if writes else _READ).fullmatch(scope["path"]):
            raise RefusedError(404, "There is no such thing on this page.")
        if "://" in path:
            raise RefusedError(403, "The page reads no addresses.")
        if not writes:
            session = _session_of(scope)
            if path.endswith("/queue/data"):
                self.visitors.check_joined(session)
            if session:
                self.visitors.enter(address, session)
            return receive.rest, session
        if path.endswith("/upload"):
            size = Headers(scope=scope).get("content-length", "")
            if not size.isdecimal():  # browsers say how much they send
                raise RefusedError(411, "An upload says how long it is.")
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
    """Receives the body of a request, which must be there in time."""

    def __init__(self, receive: Receive):
        self.rest = receive
        self._end = asyncio.get_running_loop().time() + BODY_SECONDS
        self._whole = False

    async def __call__(self) -> Message:
        """One message.

        Raises:
            RefusedError: the time is up.
        """
        if self._whole:
            return await self.rest()  # waits until the visitor leaves
        try:
            async with asyncio.timeout_at(self._end):
                message = await self.rest()
        except TimeoutError:
            raise RefusedError(408, f"A request is sent within {BODY_SECONDS} seconds.") from None
        self._whole = not message.get("more_body", False)
        return message

    async def read(self) -> bytes:
        """All of it.

        Raises:
            RefusedError: the time is up, or it is too long.
        """
        parts, size = [], 0
        while not self._whole:
            parts.append((await self()).get("body", b""))
            size += len(parts[-1])
            if size > MAX_BODY_BYTES:
                raise RefusedError(413, f"A request has at most {MAX_BODY_BYTES} bytes.")
        return b"".join(parts)


def _check_origin(scope: Scope, hosts: Iterable[str]) -> None:
    """Checks that a request is meant for this page, and comes from it if it changes something.

    Raises:
        RefusedError: another name of a host, or another site.
    """
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not is_own_host(host, hosts):
        raise RefusedError(421, "This page is not at that address.")
    if scope["method"] not in ("GET", "HEAD"):
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != host
        if foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise RefusedError(403, "The page takes nothing from other sites.")


def _session_of(scope: Scope) -> str | None:
    """The session that a request to read belongs to."""
    if scope["path"].startswith(_HEARTBEAT):
        return scope["path"].removeprefix(_HEARTBEAT).strip("/")
    return next(iter(parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", ())), None)


def _check_body(body: bytes) -> str | None:
    """Looks for addresses in the places of files; what is no JSON is Gradio's to refuse.

    Returns:
        The session.

    Raises:
        RefusedError: there is one.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    unseen: list[Any] = [content]
    while unseen:
        value = unseen.pop()
        if isinstance(value, dict):
            if "://" in str(value.get("path")):
                raise RefusedError(403, "The page reads no addresses: upload the file.")
            unseen += value.values()
        elif isinstance(value, list):
            unseen += value
    session = content.get("session_hash") if isinstance(content, dict) else None
    return session if isinstance(session, str) else None
