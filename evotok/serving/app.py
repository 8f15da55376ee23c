"""FastAPI application with OpenAI's endpoints over an engine."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import anyio
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from evotok.serving.engine import ChatRequest, Engine, EngineError, RequestError, TextPiece
from evotok.serving.errors import ApiError, from_validation
from evotok.serving.gate import Gate
from evotok.serving.limits import Limits
from evotok.serving.metrics import Metrics
from evotok.serving.protocol import ChatAnswer, ChatBody, ImageBody, image_answer


logger = logging.getLogger(__name__)

DECODERS = 2
"""Number of threads that decode and encode images; a large image takes seconds and 100 MB."""
Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")


class _ClientLeftError(Exception):
    """Raised when the client disconnects before the response."""


def build_app(
    engine: Engine,
    model: str,
    limits: Limits,
    metrics: Metrics,
    api_key: str | None = None,
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """Builds the application, which closes the engine when it is shut down.

    Args:
        model: its name in requests and responses.
        api_key, hosts: see `Gate`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_sync(engine.close)

    gate = Middleware(Gate, limits=limits, metrics=metrics, api_key=api_key, hosts=hosts)
    app = FastAPI(lifespan=lifespan, middleware=[gate], openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(HTTPException, _answer_http_error)  # pyright: ignore[reportArgumentType]  # of this type only
    server = _Server(engine, model, limits, metrics)
    app.add_api_route("/v1/chat/completions", server.chat, methods=["POST"])
    app.add_api_route("/v1/images/generations", server.generate_images, methods=["POST"])
    app.add_api_route("/v1/models", server.list_models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", server.get_model, methods=["GET"])
    app.add_api_route("/health", server.health, methods=["GET"])
    app.add_api_route("/metrics", server.render_metrics, methods=["GET"])
    return app


class _Server:
    """Endpoints of one engine."""

    def __init__(self, engine: Engine, model: str, limits: Limits, metrics: Metrics):
        self._engine, self._model, self._limits, self._metrics = engine, model, limits, metrics
        self._decoders = anyio.CapacityLimiter(DECODERS)

    async def chat(self, request: Request) -> Response:
        """Handles `POST /v1/chat/completions`."""
        started = asyncio.get_running_loop().time()
        async with self._answering(started) as deadline:
            body = await self._read(request, ChatBody)
            asked = await self._in_thread(body.to_request, self._limits, self._engine.fit_image)
            answer = ChatAnswer(self._model, body.with_usage)
            del body  # which holds the images in base64, before the request waits
            pieces = self._pieces(asked, started, deadline)
            if not asked.stream:
                return JSONResponse(answer.whole(await self._unless_left(request, _collect(pieces))))
            first = await self._unless_left(request, anext(pieces))
            return _AnswerStream(answer, first, pieces, self._to_api_error, self._metrics)

    async def generate_images(self, request: Request) -> Response:
        """Handles `POST /v1/images/generations`."""
        async with self._answering(asyncio.get_running_loop().time()):
            body = await self._read(request, ImageBody)
            asked = body.to_request(self._limits, self._engine.image_size)
            found = await self._unless_left(request, self._engine.generate_images(asked))
            files = await self._in_thread(lambda: [_to_png(image) for image in found.images])
            return JSONResponse(image_answer(asked, found, files, self._engine.image_size))

    async def list_models(self) -> dict[str, Any]:
        """Handles `GET /v1/models`."""
        return {"object": "list", "data": [self._describe()]}

    async def get_model(self, name: str) -> dict[str, Any]:
        """Handles `GET /v1/models/NAME`."""
        self._check_model(name)
        return self._describe()

    async def health(self) -> Response:
        """Handles `GET /health`: 200 while the engine processes requests, else 503."""
        alive = self._engine.is_alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def render_metrics(self) -> Response:
        """Handles `GET /metrics`."""
        return PlainTextResponse(self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _describe(self) -> dict[str, Any]:
        size = self._engine.image_size
        return {"id": self._model, "object": "model", "created": 0, "owned_by": "evotok", "image_size": size}

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self._model):
            reason = f"This server has only the model {self._model!r}, not {name[:80]!r}."
            raise ApiError(404, reason, "model_not_found", "model")

    @asynccontextmanager
    async def _answering(self, started: float) -> AsyncIterator[float]:
        """Limits the time of a request until its response starts, and converts every failure to an `ApiError`.

        Yields:
            Deadline of the request on the event loop's clock.
        """
        deadline = started + self._limits.seconds
        try:
            async with asyncio.timeout_at(deadline):
                yield deadline
        except (_ClientLeftError, ClientDisconnect):
            self._metrics.aborted.inc()
            raise ApiError(499, "The client disconnected.") from None
        except Exception as error:  # noqa: BLE001 - every failure becomes an `ApiError`
            raise self._to_api_error(error) from None

    def _to_api_error(self, error: Exception) -> ApiError:
        if isinstance(error, ApiError):
            return error
        if isinstance(error, RequestError):
            return ApiError(400, str(error), "context_length_exceeded")
        if isinstance(error, EngineError):
            return ApiError(503, str(error), "engine_failed")
        if isinstance(error, TimeoutError):
            reason = f"No answer within {self._limits.seconds:g} s, the limit: request less, or retry later."
            return ApiError(504, reason, "timeout")
        logger.error("A request failed", exc_info=error)
        return ApiError(500, "The server failed: see its log.", "internal_error")

    async def _read(self, request: Request, kind: type[Body]) -> Body:
        """Reads and validates the body of a request; its bytes are not kept.

        Raises:
            ApiError: not JSON, too large, or not valid for `kind`.
        """
        # A browser sends some other content types to another site without a preflight request.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "Send JSON, with Content-Type: application/json.", "unsupported_media_type")
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > self._limits.body_bytes:
                limit = f"{self._limits.body_bytes / 2**20:g} MiB"
                raise ApiError(413, f"The request is larger than {limit}, the limit: shrink its images.", "too_large")
        try:
            body = kind.model_validate_json(content)
        except ValidationError as error:
            raise from_validation(error) from None
        self._check_model(body.model)
        return body

    async def _in_thread(self, function, *args: Any) -> Any:
        return await run_sync(function, *args, limiter=self._decoders)

    async def _unless_left(self, request: Request, work: Awaitable[Result]) -> Result:
        """Returns the result of `work`, which is cancelled when the client disconnects.

        Raises:
            _ClientLeftError: the client disconnected.
        """
        tasks = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_leave(request))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                raise _ClientLeftError
            return tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pieces(self, asked: ChatRequest, started: float, deadline: float) -> AsyncGenerator[TextPiece, None]:
        """Yields the pieces of an answer; raises TimeoutError at the deadline."""
        loop, is_first = asyncio.get_running_loop(), True
        async with aclosing(self._engine.chat(asked)) as pieces:
            while True:
                async with asyncio.timeout_at(deadline):
                    piece = await anext(pieces)
                if is_first:
                    self._metrics.first_token_seconds.observe(loop.time() - started)
                is_first = False
                yield piece
                if piece.finish_reason is not None:
                    return


class _AnswerStream(StreamingResponse):
    """Response of server-sent events. The generation stops when the response ends or the client disconnects.

    Args:
        answer: builds the chunks.
        first: first piece of the answer.
        pieces: the remaining pieces.
        to_api_error: converts an exception to an `ApiError`.
        metrics: updated here.
    """

    def __init__(
        self,
        answer: ChatAnswer,
        first: TextPiece,
        pieces: AsyncGenerator[TextPiece, None],
        to_api_error: Callable[[Exception], ApiError],
        metrics: Metrics,
    ):
        events = self._events(answer, first)
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._opened = events, pieces
        self._to_api_error, self._metrics, self._is_whole = to_api_error, metrics, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events, and closes both generators, which Starlette would leave to the garbage collector."""
        events, pieces = self._opened
        try:
            async with aclosing(pieces), aclosing(events):
                await super().__call__(scope, receive, send)
        finally:
            if not self._is_whole:
                self._metrics.aborted.inc()

    async def _events(self, answer: ChatAnswer, first: TextPiece) -> AsyncGenerator[str, None]:
        yield _event(answer.opening())
        last = first
        yield _event(answer.chunk(first))
        try:
            async for last in self._opened[1]:
                yield _event(answer.chunk(last))
        except Exception as error:  # noqa: BLE001 - the status is sent already: the error is an event
            self._is_whole = True
            yield _event(self._to_api_error(error).content)
            return
        if answer.with_usage:
            yield _event(answer.usage(last))
        self._is_whole = True  # some clients close the connection as soon as they have read the end
        yield "data: [DONE]\n\n"


async def _collect(pieces: AsyncGenerator[TextPiece, None]) -> list[TextPiece]:
    async with aclosing(pieces):
        return [piece async for piece in pieces]


async def _wait_for_leave(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    """Handles paths and methods that do not exist."""
    answer = ApiError(error.status_code, f"{request.method} {request.url.path[:80]}: {error.detail}.").response()
    answer.headers.update(error.headers or {})
    return answer


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _to_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
