"""Inference for the command line, the page and the server: answers and images, in batches or as streams.

`evotok.eval.inference` reads prompts and runs plain batches, for the suites too. A server reads each prompt separately,
so that only a prompt that is too long fails, and then stacks the prompts.

Shapes: B prompts of a batch, T tokens of the longest, V vocabulary, M images, N positions of an image, L levels.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BatchFeature,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TextStreamer,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from evotok.data.errors import escape_controls
from evotok.eval.inference import (  # noqa: F401 - public names of this module too
    answer,
    answer_questions,
    generate_images,
    read_chat,
    read_image_prompt,
    remaining_tokens,
)


UNFINISHED = (232, 234, 238)
"""Colour of positions that are not generated yet."""


class StoppedError(Exception):
    """Raised in a callback or a streamer to end a generation."""


# --- batches of requests ----------------------------------------------------------------------------------------------


class TextSampling(NamedTuple):
    """Sampling of one answer of a batch.

    Args:
        max_new_tokens: longest answer.
        temperature: 0 for the likeliest token.
        top_k, top_p: 0, and 1, for no limit.
        seed: for reproducible answers; random when None.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


class Answer(NamedTuple):
    """Token ids of an answer, and the reason of its end: the end-of-text token (`stop`) or the limit (`length`)."""

    ids: list[int]
    finish_reason: str


def fit_image(processor, image: Image.Image) -> Image.Image:
    """Resizes an input image as the image processor does; the processor's output is the same for both images.

    Waiting requests then take less memory.
    """
    size = processor.image_processor.size
    if image.size == (size["width"], size["height"]) and image.mode == "RGB":
        return image
    pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    return processor.post_process_image_generation(pixels)[0]


def stack_prompts(prompts: Sequence[BatchFeature], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Stacks single prompts into one batch, left-padded; images keep the order of their prompts."""
    stacked = {}
    for name in prompts[0].keys() | {"pixel_values"}:
        tensors = [prompt[name] for prompt in prompts if name in prompt]
        if name == "pixel_values" and tensors:
            stacked[name] = torch.cat(tensors)
        elif tensors:
            padding = 0 if name.endswith("attention_mask") else pad_token_id
            rows = [tensor[0] for tensor in tensors]
            stacked[name] = pad_sequence(rows, batch_first=True, padding_value=padding, padding_side="left")
    return stacked


class RowSampler(LogitsProcessor):
    """Logits processor with settings and a seed for each row; Transformers samples a batch with one generator.

    Logits get Gumbel noise, whose argmax is a sample of their softmax: `generate` then runs greedily.
    """

    def __init__(self, sampling: Sequence[TextSampling], device: torch.device):
        self._warpers: list[list[Any]] = []
        self._generators: list[torch.Generator | None] = []
        for row in sampling:
            warpers = [TemperatureLogitsWarper(row.temperature)] if row.temperature > 0 else []
            warpers += [TopKLogitsWarper(row.top_k)] if row.top_k > 0 else []
            warpers += [TopPLogitsWarper(row.top_p)] if row.top_p < 1 else []
            generator = torch.Generator(device) if row.temperature > 0 else None
            if generator is not None:
                generator.manual_seed(row.seed) if row.seed is not None else generator.seed()
            self._warpers.append(warpers)
            self._generators.append(generator)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Adds noise to the warped logits of sampled rows: (B, T), (B, V) float32 -> (B, V)."""
        for row, (warpers, generator) in enumerate(zip(self._warpers, self._generators, strict=True)):
            if generator is None:
                continue
            warped = scores[row, None]
            for warper in warpers:
                warped = warper(input_ids[row, None], warped)
            scores[row] = warped[0] - torch.empty_like(warped[0]).exponential_(generator=generator).log()
        return scores


TokenListener = Callable[[int, int, str | None], bool]
"""Function of a row, its new token, and its finish reason or None; returns True to end the row."""


class RowObserver(StoppingCriteria):
    """Stopping criterion with a limit for each row, which collects the tokens; Transformers has one limit for a batch.

    Args:
        limits: longest answer of each row.
        eos_token_ids: end-of-text tokens.
        on_token: called for each new token.
    """

    def __init__(self, limits: Sequence[int], eos_token_ids: set[int], on_token: TokenListener | None):
        self._limits, self._eos, self._on_token = limits, eos_token_ids, on_token
        self.answers = [Answer([], "length") for _ in limits]
        self._done = [False] * len(limits)

    def __call__(self, input_ids: torch.Tensor, scores: Any = None, **kwargs) -> torch.Tensor:
        """Returns which rows are finished: (B, T) -> (B,)."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self._done[row]:
                continue
            ids = self.answers[row].ids
            ids.append(token)
            reason = "stop" if token in self._eos else "length" if len(ids) >= self._limits[row] else None
            if reason is not None:
                self.answers[row] = Answer(ids, reason)
            stopped = self._on_token is not None and self._on_token(row, token, reason)
            self._done[row] = stopped or reason is not None
        return torch.tensor(self._done, device=input_ids.device)


@torch.inference_mode()
def answer_batch(
    model,
    prompts: Sequence[BatchFeature],
    sampling: Sequence[TextSampling],
    on_token: TokenListener | None = None,
) -> list[Answer]:
    """Generates the next answer of each conversation in one batch; a row depends on no other.

    Args:
        model: in evaluation mode.
        prompts: from `read_chat`, each alone.
        sampling: of each prompt, within the limit that `read_chat` returns.
        on_token: called for each new token, including the end-of-text token.
    """
    eos = model.generation_config.eos_token_id
    eos_token_ids = set(eos if isinstance(eos, (list, tuple)) else [eos])
    limits = [row.max_new_tokens for row in sampling]
    observer = RowObserver(limits, eos_token_ids, on_token)
    model.generate(
        **stack_prompts(prompts, _pad_token_id(model)),
        do_sample=False,
        max_new_tokens=max(limits),
        logits_processor=LogitsProcessorList([RowSampler(sampling, model.device)]),
        stopping_criteria=StoppingCriteriaList([observer]),
    )
    return observer.answers


@torch.inference_mode()
def generate_batch(
    model,
    processor,
    prompts: Sequence[BatchFeature],
    seeds: Sequence[int],
    is_wanted: Callable[[], bool] = lambda: True,
    **sampling: Any,
) -> list[Image.Image]:
    """Generates one image of each prompt in one batch; an image depends on its own prompt and seed alone.

    Args:
        model: in evaluation mode.
        prompts: from `read_image_prompt`, each alone.
        seeds: of each image.
        is_wanted: called after each position; False stops the generation.
        sampling: more arguments of `generate(generation_mode="image")`, such as `guidance_scale` or `top_p`.

    Raises:
        StoppedError: `is_wanted` returned False.
    """

    def check(position: int, codes: torch.Tensor) -> None:
        if not is_wanted():
            raise StoppedError

    codes = model.generate(
        **stack_prompts(prompts, _pad_token_id(model)),
        generation_mode="image",
        generator=[torch.Generator(model.device).manual_seed(seed) for seed in seeds],
        callback=check,
        **sampling,
    )
    return processor.post_process_image_generation(model.decode_image_tokens(codes))


def _pad_token_id(model) -> int:
    """Returns the token of masked positions, which no result depends on."""
    pad = model.generation_config.pad_token_id
    return 0 if pad is None else pad


# --- streams ----------------------------------------------------------------------------------------------------------

# One stream generates at a time in this process; one that was closed holds the lock until its current step ends.
_GENERATING = threading.Lock()
_END = object()


class VisibleStreamer(TextStreamer):
    """Streamer that prints an answer, with the control characters of a terminal escaped."""

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Prints a piece of the answer."""
        super().on_finalized_text(escape_controls(text), stream_end)


class StopSignal(StoppingCriteria):
    """Stopping criterion that ends a generation on request or at a deadline.

    Args:
        seconds: longest time of the generation.
    """

    def __init__(self, seconds: float):
        self._deadline = time.monotonic() + seconds
        self._requested = threading.Event()

    def stop(self) -> None:
        """Requests the end of the generation after its current step."""
        self._requested.set()

    @property
    def is_set(self) -> bool:
        """Returns whether the generation has to end, for either reason."""
        return self._requested.is_set() or time.monotonic() > self._deadline

    def __call__(self, input_ids: torch.Tensor, scores: Any = None, **kwargs) -> torch.Tensor:
        """Returns whether each row is finished: (B, T) -> (B,), all rows together."""
        return torch.full((len(input_ids),), self.is_set, device=input_ids.device)


class CodeIteratorStreamer:
    """Streamer of images: iterates over the codes (M, L) of each position, as `TextIteratorStreamer` over text."""

    def __init__(self, signal: StopSignal):
        self._signal, self._queue = signal, SimpleQueue()

    def put(self, codes: torch.Tensor) -> None:
        """Queues the codes of a position; called by `generate`.

        Raises:
            StoppedError: the generation has to end.
        """
        self._queue.put(codes)
        if self._signal.is_set:
            raise StoppedError

    def end(self) -> None:
        """Ends the iteration; called by `generate` after the last position, and by `stream_in_thread` in any case."""
        self._queue.put(_END)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._queue.get, _END)


def stream_in_thread(work: Callable[[], Any], streamer: Any, signal: StopSignal) -> Iterator[Any]:
    """Yields what `work` puts into `streamer`, while it runs in a thread.

    Closing this generator, as Gradio does for a button or a closed tab, ends the work.

    Args:
        work: calls `generate` with `streamer`.
        streamer: iterable, with an `end()`.
        signal: given to `work` too.

    Raises:
        Exception: any that `work` raised, after its last step.
    """
    failures = []

    def run() -> None:
        try:
            with _GENERATING:
                if not signal.is_set:
                    work()
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - raised again in the reader's thread
            failures.append(error)
        finally:
            streamer.end()

    threading.Thread(target=run, name="evotok-generation", daemon=True).start()
    try:
        yield from streamer
    finally:
        signal.stop()
    if failures:
        raise failures[0]


def stream_answer(
    model, processor, messages: list[dict[str, Any]], max_new_tokens: int, seconds: float
) -> Iterator[str]:
    """Returns an iterator over the pieces of the next answer of a conversation.

    Args:
        model: in evaluation mode.
        max_new_tokens: longest answer, which the context may shorten.
        seconds: longest time; the answer ends there.

    Raises:
        ValueError: the conversation does not fit into the context; raised by the call itself.
    """
    inputs, room = read_chat(model, processor, messages)
    signal = StopSignal(seconds)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def work() -> None:
        model.generate(
            **inputs,
            max_new_tokens=min(max_new_tokens, room),
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([signal]),
        )

    return stream_in_thread(work, streamer, signal)


def stream_codes(model, inputs: BatchFeature, seconds: float, **arguments: Any) -> Iterator[torch.Tensor]:
    """Returns an iterator over the codes (M, L) of each position of generated images.

    Args:
        model: in evaluation mode.
        inputs: from `read_image_prompt`.
        seconds: longest time; the stream ends there, with unfinished images.
        arguments: more arguments of `generate(generation_mode="image")`.
    """
    signal = StopSignal(seconds)
    streamer = CodeIteratorStreamer(signal)
    return stream_in_thread(
        lambda: model.generate(**inputs, generation_mode="image", streamer=streamer, **arguments), streamer, signal
    )


@torch.inference_mode()
def preview_images(model, processor, codes: torch.Tensor) -> list[Image.Image]:
    """Decodes the first positions (M, p, L) of images; the other positions are grey.

    The decoder takes all N positions. The p generated ones are repeated, so that its normalization is computed on their
    statistics.
    """
    config = model.config.vq_config
    positions = codes.shape[1]
    repeated = codes[:, torch.arange(config.num_positions) % positions].to(model.device)
    images = processor.post_process_image_generation(model.decode_image_tokens(repeated))
    if positions < config.num_positions:
        missing = (torch.arange(config.num_positions) >= positions).view(config.grid_size, config.grid_size)
        mask = Image.fromarray(missing.mul(255).to(torch.uint8).numpy())
        for image in images:
            image.paste(UNFINISHED, mask=mask.resize(image.size, Image.Resampling.NEAREST))
    return images
