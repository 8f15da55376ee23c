"""What the page lets in: of all that Gradio serves no more than this page's own code asks for, in the form it does.

Gradio would also fetch public addresses for a visitor, and answer what its forms never send with a failure of its own.
"""

import json
import logging
import re

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 2**20
"""Of a request that is no upload: texts are short, and images are sent as the names of uploads."""
_READ = re.compile(
    r"/(config|favicon\.ico|manifest\.json|robots\.txt|theme\.css|pwa_icon(/\d+)?)?/?"
    r"|/(assets|static|svelte)/.+"
    r"|/gradio_api/(app_id|info|login_check|queue/data|queue/status|startup-events|theme\.css|token|upload_progress|user)/?"
    r"|/gradio_api/(file=|heartbeat/).+"
)
_WRITTEN = re.compile(r"/gradio_api/(upload|queue/join|run/.+|cancel|reset)/?")


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str):
        self.response = PlainTextResponse(reason, status)


class Gate:
    """ASGI middleware that refuses what is not for this page, with a status and one line.

    Args:
        app: what Gradio serves.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        at_once = "/run/" in scope["path"]
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                # Handlers that do not wait in the queue only show what is there: one fails for what it was given.
                if at_once and message["status"] == 500:
                    message = message | {"status": 422}
            await send(message)

        try:
            return await self.app(scope, await _checked(scope, receive), send_on)
        except _RefusedError as refused:
            return await refused.response(scope, receive, send)
        except Exception as error:
            if started or isinstance(error, OSError):
                raise  # a fault of the machine
            logger.info("refused %s %s", scope["method"], scope["path"], exc_info=error)
            return await PlainTextResponse("The page does not send such requests.", 422)(scope, receive, send)


async def _checked(scope: Scope, receive: Receive) -> Receive:
    """Where to receive the request from, after what was read of it here.

    Raises:
        _RefusedError: it goes no further.
    """
    path, writes = scope["path"], scope["method"] == "POST"
    if not (_WRITTEN if writes else _READ).fullmatch(path):
        raise _RefusedError(404, "There is no such thing on this page.")
    if "://" in path:
        raise _RefusedError(403, "The page reads no addresses.")
    if not writes or path.rstrip("/").endswith("/upload"):
        return receive
    body = await _body(receive)
    if _has_address(body):
        raise _RefusedError(403, "The page reads no addresses: upload the file.")
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return unread.pop() if unread else await receive()

    return receive_again


async def _body(receive: Receive) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > MAX_BODY_BYTES:
            raise _RefusedError(413, f"A request has at most {MAX_BODY_BYTES} bytes.")
    return b"".join(parts)


def _has_address(body: bytes) -> bool:
    """Whether the place of a file is an address somewhere in the JSON; what is no JSON is Gradio's to refuse."""
    try:
        unseen = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    while unseen:
        value = unseen.pop()
        if isinstance(value, dict):
            if "://" in str(value.get("path")):
                return True
            unseen += value.values()
        elif isinstance(value, list):
            unseen += value
    return False
