"""The engine `transformers`: batched generation in one thread of this process, for machines without another engine."""

import asyncio
import copy
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from evotok.inference import (
    StoppedError,
    TextSampling,
    answer_batch,
    fit_image,
    generate_batch,
    read_chat,
    read_image_prompt,
)
from evotok.serving.batches import BatchQueue, Job
from evotok.serving.engine import (
    ChatRequest,
    Engine,
    EngineError,
    GeneratedImages,
    ImageRequest,
    RequestError,
    TextPiece,
)
from evotok.serving.metrics import Metrics


if TYPE_CHECKING:
    from PIL import Image
    from transformers import BatchFeature

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0


class _Chat(NamedTuple):
    prompt: "BatchFeature"
    sampling: TextSampling
    is_streamed: bool


class _Images(NamedTuple):
    prompt: "BatchFeature"
    seeds: tuple[int, ...]


class _TextStream:
    """Decoder of an answer, character by character; Transformers' streamer waits for the end of a word."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._ids, self._length = tokenizer, [], 0

    def add(self, token: int, is_last: bool) -> str:
        """Returns the text that the next token adds; none while a character is incomplete."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith("\ufffd") and not is_last:
            return ""
        piece, self._length = text[self._length :], len(text)
        if text.endswith("\n"):  # earlier text need not be decoded again
            self._ids, self._length = [], 0
        return piece


class _Row:
    """Collector of the tokens of one row; it emits pieces of a streamed answer, else the whole answer."""

    def __init__(self, job: Job, tokenizer: Any):
        self._job, self._tokenizer, self._ids = job, tokenizer, []
        self._prompt_tokens = job.content.prompt["input_ids"].shape[1]
        self._stream = _TextStream(tokenizer) if job.content.is_streamed else None

    def add(self, token: int, finish_reason: str | None) -> bool:
        """Adds the next token; returns whether the request is cancelled."""
        self._ids.append(token)
        text = ""
        if self._stream is not None:
            text = self._stream.add(token, finish_reason is not None)
        elif finish_reason is not None:
            text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text or finish_reason is not None:
            self._job.emit(TextPiece(text, finish_reason, self._prompt_tokens, len(self._ids)))
        return self._job.is_cancelled


class TransformersEngine(Engine):
    """Engine that generates in one thread: waiting text requests form one batch, as do images of equal settings.

    A batch runs to its end before the next one starts. When a client disconnects, a text row ends at once, and an image
    row with its batch.

    Args:
        model: in evaluation mode.
        processor: of the same checkpoint.
        max_batch: most rows of a batch; guidance doubles them inside the model.
        metrics: updated here.
    """

    def __init__(self, model: Any, processor: Any, max_batch: int, metrics: Metrics):
        self._model, self._processor, self._metrics = model, processor, metrics
        self.image_size = model.config.vq_config.image_size
        # A Rust tokenizer must not be used in one thread while another pads with it.
        self._tokenizer = copy.deepcopy(processor.tokenizer)
        self._reader = ThreadPoolExecutor(1, "evotok-reader")
        self._queue, self._batch = BatchQueue(max_batch), []
        self._is_closed = False
        metrics.watch(self._queue.__len__, lambda: len(self._batch))
        self._thread = threading.Thread(target=self._work, name="evotok-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Returns whether the thread runs."""
        return self._thread.is_alive() and not self._is_closed

    def fit_image(self, image: "Image.Image") -> "Image.Image":
        """Resizes an input image as the image processor does."""
        return fit_image(self._processor, image)

    async def chat(self, request: ChatRequest) -> AsyncGenerator[TextPiece, None]:
        """Generates an answer, in a batch with all other waiting text requests."""
        prompt, room = await self._read(read_chat, request.messages)
        limit = min(request.max_tokens, room)
        sampling = TextSampling(limit, request.temperature, request.top_k, request.top_p, request.seed)
        async with aclosing(self._submit("chat", 1, _Chat(prompt, sampling, request.stream))) as pieces:
            async for piece in pieces:
                yield piece
                if piece.finish_reason is not None:
                    return

    async def generate_images(self, request: ImageRequest) -> GeneratedImages:
        """Generates images, in a batch with all other waiting images of the same settings."""
        prompt = await self._read(read_image_prompt, request.prompt, request.negative_prompt)
        job = self._submit(request.sampling, len(request.seeds), _Images(prompt, request.seeds))
        async with aclosing(job) as results:
            return await anext(results)

    def close(self) -> None:
        """Stops the thread after the current step."""
        self._is_closed = True
        for job in self._queue.close():
            job.emit(EngineError("The server is shutting down."))
        self._thread.join(CLOSE_SECONDS)
        self._reader.shutdown(wait=False)

    async def _read(self, read: Callable, *content: Any) -> Any:
        """Reads a prompt in the one thread that may use the processor's tokenizer."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._reader, read, self._model, self._processor, *content)
        except ValueError as error:
            raise RequestError(str(error)) from error

    async def _submit(self, key: Any, rows: int, content: Any) -> AsyncGenerator[Any, None]:
        """Yields the results of a job, which is cancelled when the iterator is closed."""
        job = Job(key, rows, content)
        if not self._queue.put(job):
            raise EngineError("The server is shutting down.")
        try:
            async for result in job.results():
                yield result
        finally:
            self._queue.cancel(job)

    def _work(self) -> None:
        while batch := self._queue.take():
            self._batch = batch
            try:
                run = self._answer if isinstance(batch[0].content, _Chat) else self._generate
                run(batch)
            except StoppedError:
                self._fail(batch, "The server is shutting down.")
            except Exception:  # any failure ends only its own batch
                logger.exception("A batch of %d requests failed", len(batch))
                self._fail(batch, "The model failed on this batch.")
            self._batch = batch = []

    def _answer(self, batch: Sequence[Job]) -> None:
        self._metrics.batch_rows.labels("chat").observe(len(batch))
        rows = [_Row(job, self._tokenizer) for job in batch]

        def listen(row: int, token: int, finish_reason: str | None) -> bool:
            self._metrics.tokens.inc()
            if self._is_closed:
                raise StoppedError
            return rows[row].add(token, finish_reason)

        prompts = [job.content.prompt for job in batch]
        answer_batch(self._model, prompts, [job.content.sampling for job in batch], listen)

    def _generate(self, batch: Sequence[Job]) -> None:
        seeds = [seed for job in batch for seed in job.content.seeds]
        prompts = [job.content.prompt for job in batch for _ in job.content.seeds]
        self._metrics.batch_rows.labels("image").observe(len(seeds))
        images = generate_batch(
            self._model,
            self._processor,
            prompts,
            seeds,
            is_wanted=lambda: not self._is_closed and not all(job.is_cancelled for job in batch),
            **dict(cast("tuple[tuple[str, Any], ...]", batch[0].key)),
        )
        self._metrics.images.inc(len(images))
        positions = self._model.config.vq_config.num_positions
        for job in batch:
            own = [images.pop(0) for _ in job.content.seeds]
            prompt_tokens = job.content.prompt["input_ids"].shape[1]
            job.emit(GeneratedImages(own, prompt_tokens, positions * len(own)))

    def _fail(self, batch: Sequence[Job], reason: str) -> None:
        for job in batch:
            job.emit(EngineError(reason))
