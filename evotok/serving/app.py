"""The application: OpenAI's endpoints over an engine."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
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

from evotok.serving.engine import Engine, EngineError, RequestError, TextPiece
from evotok.serving.errors import ApiError, from_validation
from evotok.serving.gate import Gate
from evotok.serving.limits import Limits
from evotok.serving.metrics import Metrics
from evotok.serving.protocol import ChatAnswer, ChatBody, ImageBody, image_answer


logger = logging.getLogger(__name__)

DECODERS = 2
"""Threads that decode images and encode them: a large image takes seconds and 100 MB."""
Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")


class _ClientLeftError(Exception):
    """The client closed its connection before it had an answer."""


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
        model: its name in requests and answers.
        api_key, hosts: see `Gate`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_sync(engine.close)

    gate = Middleware(Gate, limits=limits, metrics=metrics, api_key=api_key, hosts=hosts)
    app = FastAPI(lifespan=lifespan, middleware=[gate], openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(HTTPException, _answer_http_error)
    server = _Server(engine, model, limits, metrics)
    app.add_api_route("/v1/chat/completions", server.chat, methods=["POST"])
    app.add_api_route("/v1/images/generations", server.generate_images, methods=["POST"])
    app.add_api_route("/v1/models", server.list_models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", server.get_model, methods=["GET"])
    app.add_api_route("/health", server.health, methods=["GET"])
    app.add_api_route("/metrics", server.render_metrics, methods=["GET"])
    return app


class _Server:
    """The endpoints."""

    def __init__(self, engine: Engine, model: str, limits: Limits, metrics: Metrics):
        self._engine, self._model, self._limits, self._metrics = engine, model, limits, metrics
        self._decoders = anyio.CapacityLimiter(DECODERS)

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        started = asyncio.get_running_loop().time()
        async with self._answering(request, started) as deadline:
            body = await self._read(request, ChatBody)
            asked = await self._in_thread(body.to_request, self._limits, self._engine.fit_image)
            pieces = self._pieces(asked, started, deadline)
            answer = ChatAnswer(self._model)
            if not body.stream:
                return JSONResponse(answer.whole(await self._unless_left(request, _collect(pieces))))
            first = await self._unless_left(request, anext(pieces))
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = self._events(answer, first, pieces, with_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def generate_images(self, request: Request) -> Response:
        """`POST /v1/images/generations`."""
        async with self._answering(request, asyncio.get_running_loop().time()):
            body = await self._read(request, ImageBody)
            asked = body.to_request(self._limits, self._engine.image_size)
            found = await self._unless_left(request, self._engine.generate_images(asked))
            files = await self._in_thread(lambda: [_to_png(image) for image in found.images])
            return JSONResponse(image_answer(asked, found, files, self._engine.image_size))

    async def list_models(self) -> dict[str, Any]:
        """`GET /v1/models`."""
        return {"object": "list", "data": [self._describe()]}

    async def get_model(self, name: str) -> dict[str, Any]:
        """`GET /v1/models/NAME`."""
        self._check_model(name)
        return self._describe()

    async def health(self) -> Response:
        """`GET /health`: 200 while requests are worked on."""
        alive = self._engine.is_alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def render_metrics(self) -> Response:
        """`GET /metrics`."""
        return PlainTextResponse(self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _describe(self) -> dict[str, Any]:
        size = self._engine.image_size
        return {"id": self._model, "object": "model", "created": 0, "owned_by": "evotok", "image_size": size}

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self._model):
            reason = f"This server has the model {self._model!r} alone, not {name[:80]!r}."
            raise ApiError(404, reason, "model_not_found", "model")

    @asynccontextmanager
    async def _answering(self, request: Request, started: float) -> AsyncIterator[float]:
        """The time limit of a request until its answer begins; every failure becomes an error in OpenAI's form.

        Yields:
            When its time is up, in the loop's time.
        """
        deadline = started + self._limits.seconds
        try:
            async with asyncio.timeout_at(deadline):
                yield deadline
        except (_ClientLeftError, ClientDisconnect):
            self._metrics.aborted.inc()
            raise ApiError(499, "The client left.") from None
        except Exception as error:  # noqa: BLE001 - none may reach the client as it is
            raise self._to_api_error(error) from None

    def _to_api_error(self, error: Exception) -> ApiError:
        if isinstance(error, ApiError):
            return error
        if isinstance(error, RequestError):
            return ApiError(400, str(error), "context_length_exceeded")
        if isinstance(error, EngineError):
            return ApiError(503, str(error), "engine_failed")
        if isinstance(error, TimeoutError):
            reason = f"No answer within {self._limits.seconds:g} s, the limit: ask for less, or later."
            return ApiError(504, reason, "timeout")
        logger.error("A request failed", exc_info=error)
        return ApiError(500, "The server failed; its log says why.", "internal_error")

    async def _read(self, request: Request, kind: type[Body]) -> Body:
        """Reads and checks the body of a request, of which nothing is kept but the result.

        Raises:
            ApiError: not JSON, too large, or not what `kind` describes.
        """
        # A page of another site can have a browser send anything else without asking the server first.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "Send JSON, with Content-Type: application/json.", "unsupported_media_type")
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > self._limits.body_bytes:
                limit = f"{self._limits.body_bytes / 2**20:g} MiB"
                raise ApiError(413, f"The request is larger than {limit}, the limit: shrink its images.", "too_large")
        try:
            body = kind.model_validate_json(bytes(content))
        except ValidationError as error:
            raise from_validation(error) from None
        self._check_model(body.model)
        return body

    async def _in_thread(self, function, *args: Any) -> Any:
        return await run_sync(function, *args, limiter=self._decoders)

    async def _unless_left(self, request: Request, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`, which is cancelled when the client leaves.

        Raises:
            _ClientLeftError: it left.
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

    async def _pieces(self, asked, started: float, deadline: float) -> AsyncIterator[TextPiece]:
        """Pieces of an answer, the last one not after the deadline."""
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

    async def _events(
        self, answer: ChatAnswer, first: TextPiece, pieces: AsyncIterator[TextPiece], with_usage: bool
    ) -> AsyncIterator[str]:
        """The stream of one answer as server-sent events."""
        yield _event(answer.opening())
        last = first
        yield _event(answer.chunk(first))
        try:
            async with aclosing(pieces):
                async for last in pieces:
                    yield _event(answer.chunk(last))
        except Exception as error:  # noqa: BLE001 - the status is sent: what is left is an event
            yield _event(self._to_api_error(error).content)
            return
        except (GeneratorExit, asyncio.CancelledError):
            self._metrics.aborted.inc()
            raise
        if with_usage:
            yield _event(answer.usage(last))
        yield "data: [DONE]\n\n"


async def _collect(pieces: AsyncIterator[TextPiece]) -> list[TextPiece]:
    async with aclosing(pieces):
        return [piece async for piece in pieces]


async def _wait_for_leave(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    """Paths and methods that are not there."""
    return ApiError(error.status_code, f"{request.method} {request.url.path[:80]}: {error.detail}.").response()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _to_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
