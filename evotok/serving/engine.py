"""Interface between the HTTP side of the server and its engine, and the registry of engines.

An engine receives checked and decoded requests, and yields text in pieces and images when they are finished. Closing
the iterator of a request or cancelling its task aborts it; the engine then drops all state of it.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple


if TYPE_CHECKING:
    from PIL import Image

    from evotok.serving.metrics import Metrics


class ChatRequest(NamedTuple):
    """Request for the next message of a conversation.

    Args:
        messages: as the chat template reads them, images in place, each from `Engine.fit_image`.
        max_tokens: longest answer in tokens, which the context may shorten.
        temperature: 0 for the likeliest token.
        top_k, top_p: 0, and 1, for no limit.
        seed: for reproducible answers; random when None.
        stream: whether the answer is yielded in pieces while it is generated, or in one piece.
    """

    messages: list[dict[str, Any]]
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stream: bool = False


class TextPiece(NamedTuple):
    """Text generated since the last piece; the last one has the `finish_reason` `stop` or `length`, the others None."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int


class ImageRequest(NamedTuple):
    """Request for images of one prompt.

    Args:
        seeds: one for each image.
        sampling: names and values of sampling arguments of `generate(generation_mode="image")`; the checkpoint's values
            are used for the others.
    """

    prompt: str
    negative_prompt: str
    seeds: tuple[int, ...]
    sampling: tuple[tuple[str, float], ...] = ()


class GeneratedImages(NamedTuple):
    """Images of one request, in the order of its seeds."""

    images: list["Image.Image"]
    prompt_tokens: int
    image_tokens: int


class RequestError(ValueError):
    """Raised for a request that the engine refuses, such as one that exceeds the context."""


class EngineError(Exception):
    """Raised when a batch fails or the engine is closed."""


class Engine(ABC):
    """Interface of an engine, which runs one model for many requests at once."""

    image_size: int
    """Width and height of the generated images, in pixels."""

    @abstractmethod
    def fit_image(self, image: "Image.Image") -> "Image.Image":
        """Resizes an input image to the model's image size, so that waiting requests take less memory."""

    @abstractmethod
    def chat(self, request: ChatRequest) -> AsyncGenerator[TextPiece, None]:
        """Generates an answer.

        Raises:
            RequestError: the conversation does not fit into the context.
            EngineError: the engine failed.
        """

    @abstractmethod
    async def generate_images(self, request: ImageRequest) -> GeneratedImages:
        """Generates images.

        Raises:
            RequestError: the prompt does not fit into the context.
            EngineError: the engine failed.
        """

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Returns whether the engine processes requests."""

    @abstractmethod
    def close(self) -> None:
        """Stops the engine; open requests fail."""


def load_transformers(checkpoint: str, max_batch: int, metrics: "Metrics", options: Mapping[str, Any]) -> Engine:
    """Loads a checkpoint for batched generation with Transformers in this process.

    Raises:
        ValueError: no such checkpoint, one that cannot be loaded, or any option: this engine has none.
    """
    if options:
        raise ValueError(f"--engine-option {next(iter(options))}: the engine transformers has none: leave it out.")
    from evotok.commands.checkpoints import load_multimodal
    from evotok.serving.transformers_engine import TransformersEngine

    return TransformersEngine(*load_multimodal(checkpoint), max_batch, metrics)


FIXED_OPTIONS = (
    *("model", "scheduler_cls", "worker_cls", "async_scheduling", "logprobs_mode"),
    *("speculative_config", "pipeline_parallel_size", "data_parallel_size"),
)
"""Arguments of vLLM's engine that image generation depends on: other values make images wrong, or never finish them."""


def load_vllm(checkpoint: str, max_batch: int, metrics: "Metrics", options: Mapping[str, Any]) -> Engine:
    """Starts vLLM with a checkpoint, in its own processes.

    Raises:
        ValueError: no such checkpoint, one that vLLM cannot serve, or one of `FIXED_OPTIONS`.
        ImportError: vLLM is not installed.
    """
    if fixed := next((name for name in options if name in FIXED_OPTIONS), None):
        raise ValueError(f"--engine-option {fixed}: image generation requires a fixed value: leave it out.")
    try:
        import vllm  # noqa: F401
    except ImportError:
        raise ImportError("vLLM is not installed: see docs/serving.md, or use --engine transformers") from None
    from evotok.vllm.engine import load_vllm as load

    return load(checkpoint, max_batch, metrics, options)


Loader = Callable[[str, int, "Metrics", Mapping[str, Any]], Engine]
ENGINES: dict[str, Loader] = {"transformers": load_transformers, "vllm": load_vllm}
"""Name -> function of checkpoint, largest batch, metrics and options of the engine."""
