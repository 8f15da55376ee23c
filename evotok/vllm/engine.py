"""The engine `vllm` of `evotok serve`: vLLM's continuous batching behind the interface of `evotok.serving`.

    chat     one request of vLLM; prompts are rendered here, with the same checks as in the other engine
    images   one request an image, two with guidance; codes are returned as logprobs, and the worker decodes them

vLLM is not among the requirements of this package, see docs/serving.md.
"""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from transformers import GenerationConfig
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError, VLLMError
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from evotok import EvoTokConfig, EvoTokProcessor
from evotok.commands.checkpoints import find_checkpoint
from evotok.inference import fit_image, read_image_prompt, remaining_tokens
from evotok.modeling_evotok.sampling_evotok import EvoTokCodeSampler, read_settings
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
from evotok.vllm.generation import KEY, SETTINGS, Row


if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

MAX_VLLM_SEED = 2**63
MAX_IMAGES = 64
"""Most input images of a conversation; vLLM profiles its memory with them. The server's limit is lower by default."""
CPU_CACHE_BYTES = 2**32
"""Largest size of the KV cache by default on a CPU, in bytes; on a GPU vLLM chooses the size."""


def load_vllm(checkpoint: str, max_batch: int, metrics: Metrics, options: Mapping[str, Any] | None = None) -> Engine:
    """Starts vLLM with a checkpoint.

    Args:
        options: arguments of vLLM's engine (`AsyncEngineArgs`), which override those set here.

    Raises:
        ValueError: no such checkpoint, one with adapters, arguments that vLLM refuses, or vLLM does not start.
    """
    found = find_checkpoint(checkpoint)
    if found.base is not None:
        raise ValueError(f"{checkpoint}: adapters on another checkpoint: merge them with `evotok export`.")
    config = EvoTokConfig.from_pretrained(found.folder)
    processor = EvoTokProcessor.from_pretrained(found.folder)
    arguments = engine_arguments(str(found.folder), config, max_batch) | dict(options or {})
    try:
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    except TypeError as error:  # an unknown argument
        raise ValueError(f"--engine-option: {error}") from error
    except RuntimeError as error:  # of another process, which has logged the cause
        raise ValueError(f"vLLM does not start: {error}") from error
    # An option, or a lack of memory, may make the context shorter than the model's.
    config.text_config.max_position_embeddings = engine.model_config.max_model_len
    return VllmEngine(engine, config, processor, GenerationConfig.from_pretrained(found.folder), max_batch, metrics)


def engine_arguments(folder: str, config: EvoTokConfig, max_batch: int) -> dict[str, Any]:
    """Builds the arguments of vLLM's engine: those that image generation requires, and sizes for model and batch."""
    text, positions = config.text_config, config.vq_config.num_positions
    rows, length = 2 * max_batch, text.max_position_embeddings  # a guided image is two rows
    arguments = {
        "model": folder,
        "max_model_len": length,
        "max_num_seqs": rows,
        "limit_mm_per_prompt": {"image": min(MAX_IMAGES, max(1, length // positions))},
        "scheduler_cls": "evotok.vllm.scheduler.EvoTokScheduler",
        "worker_cls": "evotok.vllm.worker.EvoTokWorker",
        "async_scheduling": False,
        "logprobs_mode": "raw_logits",
        "max_logprobs": max(20, config.vq_config.num_pixel_codebooks),
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head * 4 * length * rows
        arguments |= {
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_memory_bytes": min(cache, CPU_CACHE_BYTES),
        }
    return arguments


class VllmEngine(Engine):
    """Engine that sends requests to vLLM, which batches them in each step.

    Args:
        engine: vLLM's engine, with the arguments of `engine_arguments`.
        config, processor, generation: of its checkpoint; the context is that of the engine where it is shorter.
        max_batch: conversations, or images, at once; the metrics count more as waiting.
        metrics: updated here.
    """

    def __init__(
        self,
        engine: AsyncLLM,
        config: EvoTokConfig,
        processor: EvoTokProcessor,
        generation: GenerationConfig,
        max_batch: int,
        metrics: Metrics,
    ):
        self._engine, self._config, self._processor, self._generation = engine, config, processor, generation
        self._metrics = metrics
        self.image_size = config.vq_config.image_size
        # The functions that read prompts use nothing else of a model.
        self._model = cast(Any, SimpleNamespace(config=config, device=torch.device("cpu")))
        self._reader = ThreadPoolExecutor(1, "evotok-reader")
        self._open, self._is_closed = 0, False
        metrics.watch(lambda: max(0, self._open - max_batch), lambda: min(self._open, max_batch))

    @property
    def is_alive(self) -> bool:
        """Returns whether vLLM runs."""
        return not self._is_closed and not self._engine.errored

    def fit_image(self, image: Image.Image) -> Image.Image:
        """Resizes an input image as the image processor does."""
        return fit_image(self._processor, image)

    async def chat(self, request: ChatRequest) -> AsyncGenerator[TextPiece, None]:
        """Generates an answer."""
        prompt, room = await self._read(self._read_chat, request.messages)
        params = SamplingParams(
            max_tokens=min(request.max_tokens, room),
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            seed=None if request.seed is None else request.seed % MAX_VLLM_SEED,
            output_kind=RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY,
        )
        tokens = 0
        async with self._counted(), aclosing(self._run(prompt, params)) as outputs:
            async for output in outputs:
                [answer] = output.outputs
                if answer.finish_reason not in (None, "stop", "length"):
                    raise EngineError("vLLM ended this answer early.")
                tokens += len(answer.token_ids)
                self._metrics.tokens.inc(len(answer.token_ids))
                yield TextPiece(answer.text, answer.finish_reason, len(output.prompt_token_ids or ()), tokens)

    async def generate_images(self, request: ImageRequest) -> GeneratedImages:
        """Generates images, each in a batch with all other requests."""
        conversation = [{"role": "user", "content": [{"type": "text", "text": request.prompt}]}]
        given = conversation, request.negative_prompt, request.seeds
        codes, tokens = await self.generate_codes(*given, **dict(request.sampling))
        [files, *_] = await self._call("decode_images", codes)
        size = self.image_size, self.image_size
        images = [Image.frombytes("RGB", size, file) for file in files]
        self._metrics.images.inc(len(images))
        return GeneratedImages(images, tokens, self._config.vq_config.num_positions * len(images))

    async def generate_codes(
        self, messages: list[dict[str, Any]], negative_prompt: str, seeds: Sequence[int], **sampling: Any
    ) -> tuple[list[list[list[int]]], int]:
        """Generates the codes of images.

        Args:
            messages: the prompt, as the chat template reads it, with PIL images or without.
            seeds: one for each image.
            sampling: arguments of `generate(generation_mode="image")`; the checkpoint has values for
                the others.

        Returns:
            Codes (M, N, L), and the tokens of the prompt.

        Raises:
            RequestError: the prompt does not fit into the context, or a setting is out of its range.
            EngineError: vLLM has ended, or the model's scores are not finite.
        """
        try:
            settings = read_settings(self._generation, None, dict(sampling))
            values = {name: settings[name] for name in SETTINGS}
            EvoTokCodeSampler(**values)
        except ValueError as error:
            raise RequestError(str(error)) from error
        prompts, tokens = await self._read(self._read_image_prompts, messages, negative_prompt)
        rows = [Row(uuid.uuid4().hex, True, seed, tuple(values.values())) for seed in seeds]
        return await _gather([self._generate_image(row, prompts) for row in rows]), tokens

    def close(self) -> None:
        """Stops vLLM's processes."""
        self._is_closed = True
        self._engine.shutdown()
        self._reader.shutdown(wait=False)

    def _read_chat(self, messages: list[dict[str, Any]]) -> tuple[dict[str, Any], int]:
        """Returns a prompt for vLLM, which inserts the positions of images, and the tokens left for the answer."""
        text = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids, images = self._processor.tokenizer.encode(text, add_special_tokens=False), _images_of(messages)
        room = remaining_tokens(len(ids) + len(images) * (self._processor.num_image_tokens - 1), self._config)
        if not images:
            return {"prompt_token_ids": ids}, room
        return {"prompt": text, "multi_modal_data": {"image": images}}, room

    def _read_image_prompts(
        self, messages: list[dict[str, Any]], negative_prompt: str
    ) -> tuple[list[dict[str, Any]], int]:
        """Returns both prompts of an image, and the number of tokens of the first."""
        inputs = read_image_prompt(self._model, self._processor, messages, negative_prompt)
        prompt: dict[str, Any] = {"prompt_token_ids": inputs["input_ids"][0].tolist()}
        if images := _images_of(messages):
            text = self._processor.apply_chat_template(messages, tokenize=False, generation_mode="image")
            prompt = {"prompt": text, "multi_modal_data": {"image": images}}
        negative = {"prompt_token_ids": inputs["negative_prompt_ids"][0].tolist()}
        return [prompt, negative], inputs["input_ids"].shape[1]

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        """Counts a conversation, or an image of one or two rows, as open within a context."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def _read(self, read: Callable, *content: Any) -> Any:
        """Reads a prompt in the one thread that may use the processor's tokenizer."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, read, *content)
        except ValueError as error:
            raise RequestError(str(error)) from error

    async def _run(self, prompt: dict[str, Any], params: SamplingParams) -> AsyncGenerator[Any, None]:
        """Yields the outputs of one request of vLLM, which is aborted when the iterator is closed.

        Raises:
            RequestError: vLLM refuses the request.
            EngineError: vLLM has ended, or failed.
        """
        name, is_finished = uuid.uuid4().hex, False
        try:
            async with aclosing(self._engine.generate(prompt, params, name)) as outputs:
                async for output in outputs:
                    is_finished = output.finished
                    yield output
        except VLLMClientError as error:
            raise RequestError(str(error)) from error
        except VLLMError as error:
            raise EngineError("vLLM failed: see its log.") from error
        finally:
            if not is_finished:  # vLLM aborts a running request itself, but not one that is being added
                await self._engine.abort(name)

    async def _generate_image(self, row: Row, prompts: list[dict[str, Any]]) -> list[list[int]]:
        """Generates the codes (N, L) of an image."""
        rows = [row, row._replace(is_conditional=False)] if row.is_guided else [row]
        async with self._counted():
            work = [self._generate_row(row, prompt) for row, prompt in zip(rows, prompts, strict=False)]
            outputs = await _gather(work)
        codes = outputs[0]
        if len(codes) != self._config.vq_config.num_positions or min(map(min, codes)) < 0:
            raise EngineError(
                "The model's scores of codes are NaN or infinite, so no image was generated: check the weights."
            )
        return codes

    async def _generate_row(self, row: Row, prompt: dict[str, Any]) -> list[list[int]]:
        """Generates the codes (N, L) of the image of one row; those of both rows are the same."""
        levels = list(range(self._config.vq_config.num_pixel_codebooks))
        params = SamplingParams(
            max_tokens=self._config.vq_config.num_positions,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            logprobs=len(levels),
            logprob_token_ids=levels,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={KEY: row.to_dict()},
        )
        # All tokens after the prompt are equal, though the codes differ: the prefix cache must not share them.
        prompt = prompt | {"cache_salt": f"{row.image}-{row.is_conditional}"}
        async with aclosing(self._run(prompt, params)) as outputs:
            [output] = [output async for output in outputs]
        if output.outputs[0].finish_reason != "length":
            raise EngineError("vLLM ended this image early.")
        return [[int(found[level].logprob) for level in levels] for found in output.outputs[0].logprobs]

    async def _call(self, method: str, *args: Any) -> list[Any]:
        """Calls a method of every worker, and returns the results."""
        try:
            return await self._engine.collective_rpc(method, args=args)
        except VLLMError as error:
            raise EngineError("vLLM failed: see its log.") from error

    async def count_images(self) -> int:
        """Counts the unfinished images on the workers."""
        return max(await self._call("count_images"))


def _images_of(messages: list[dict[str, Any]]) -> list[Image.Image]:
    return [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]


async def _gather(work: "Iterable[Coroutine[Any, Any, Any]]") -> list[Any]:
    """Returns results in order; the first failure, or a cancellation, cancels all."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
