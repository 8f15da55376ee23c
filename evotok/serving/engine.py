"""The interface between the HTTP side of the server and what runs the model, and the engines that exist.

An engine takes requests that are checked and decoded, and gives text piece by piece and images as they are finished.
A request is aborted by closing its iterator or cancelling its task: no engine may keep state of it then.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple


if TYPE_CHECKING:
    from PIL import Image

    from evotok.serving.metrics import Metrics


class ChatRequest(NamedTuple):
    """A conversation whose next message is to be generated.

    Args:
        messages: as the chat template reads them, images in place, each from `Engine.fit_image`.
        max_tokens: longest answer; the room that the context leaves when it is less.
        temperature: 0 takes the likeliest token.
        top_k, top_p: 0, and 1, for no limit.
        seed: for the same answer again; random when None.
        stream: whether pieces are wanted as soon as they are generated, or the answer in one piece.
    """

    messages: list[dict[str, Any]]
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stream: bool = False


class TextPiece(NamedTuple):
    """Text that was generated since the last piece; `finish_reason` (`stop` or `length`) is that of the last one."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int


class ImageRequest(NamedTuple):
    """Images of one prompt.

    Args:
        seeds: one for each image.
        sampling: names and values of sampling arguments of `generate(generation_mode="image")`; what is left out is the
            checkpoint's own.
    """

    prompt: str
    negative_prompt: str
    seeds: tuple[int, ...]
    sampling: tuple[tuple[str, float], ...] = ()


class GeneratedImages(NamedTuple):
    """The images of one request, in the order of its seeds."""

    images: list["Image.Image"]
    prompt_tokens: int
    image_tokens: int


class RequestError(ValueError):
    """A request that cannot be answered whatever the load: a prompt longer than the context."""


class EngineError(Exception):
    """A batch that failed, or an engine that is closed: not the fault of the request."""


class Engine(ABC):
    """Runs one model for many requests at once."""

    image_size: int
    """Width and height of its images, in pixels."""

    @abstractmethod
    def fit_image(self, image: "Image.Image") -> "Image.Image":
        """Resizes an input image to what the model reads of it, so that a request that waits holds no more."""

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
        """Whether requests are worked on."""

    @abstractmethod
    def close(self) -> None:
        """Ends what runs; requests that are still open fail."""


def load_transformers(checkpoint: str, max_batch: int, metrics: "Metrics", options: Mapping[str, Any]) -> Engine:
    """Loads a checkpoint for batched generation with Transformers in this process.

    Raises:
        ValueError: no such checkpoint, or one that cannot be loaded; options, of which there are none.
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
"""Arguments of vLLM's engine that image generation depends on: with others images would be wrong, or never finished."""


def load_vllm(checkpoint: str, max_batch: int, metrics: "Metrics", options: Mapping[str, Any]) -> Engine:
    """Starts vLLM with a checkpoint in processes of its own.

    Raises:
        ValueError: no such checkpoint, one that vLLM cannot serve, or an option that has to stay as it is.
        ImportError: vLLM is not installed.
    """
    if fixed := next((name for name in options if name in FIXED_OPTIONS), None):
        raise ValueError(f"--engine-option {fixed}: image generation needs it as it is: leave it out.")
    try:
        import vllm  # noqa: F401
    except ImportError:
        raise ImportError("vLLM is not installed: see docs/serving.md, or take --engine transformers") from None
    from evotok.vllm.engine import load_vllm as load

    return load(checkpoint, max_batch, metrics, options)


Loader = Callable[[str, int, "Metrics", Mapping[str, Any]], Engine]
ENGINES: dict[str, Loader] = {"transformers": load_transformers, "vllm": load_vllm}
"""Name -> function of checkpoint, largest batch, metrics and options of the engine's own."""
