"""Requests and responses of OpenAI's interface that this server supports.

An unsupported field is refused, unless its value changes nothing. https://platform.openai.com/docs/api-reference
"""

import base64
import binascii
import random
import re
import time
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from evotok.commands.options import MAX_SEED
from evotok.data.errors import image_reason
from evotok.processing.image_loading_evotok import EvoTokImageError, load_image
from evotok.serving.engine import ChatRequest, GeneratedImages, ImageRequest, TextPiece
from evotok.serving.errors import ApiError
from evotok.serving.limits import Limits


DEFAULT_MAX_TOKENS = 256
# Scores are multiplied by the guidance scale and divided by the temperature, and stay finite within these limits. A
# lower temperature is replaced by 0, which gives the same result.
MAX_GUIDANCE_SCALE = 1000
MIN_TEMPERATURE = 1e-4
MAX_TOP_K = 2**31 - 1
# Values of OpenAI's fields that change nothing here; some clients always send them.
_NEUTRAL = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "stop": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "logit_bias": ({},),
}
_IMAGE_NEUTRAL = {
    "output_format": ("png",),
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "stream": (False,),
}
_IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Temperature = Annotated[
    Finite, Field(ge=0), AfterValidator(lambda temperature: temperature if temperature >= MIN_TEMPERATURE else 0.0)
]
TopK = Annotated[int, Field(ge=0, le=MAX_TOP_K)]
TopP = Annotated[Finite, Field(gt=0, le=1)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @staticmethod
    def _drop(content: Any, neutral: dict[str, tuple]) -> Any:
        """Removes the fields that change nothing: None, neutral values, and fields of a user's account."""
        if not isinstance(content, dict):
            return content
        return {
            name: value
            for name, value in content.items()
            if not (value is None or name in _IGNORED or any(value == one for one in neutral.get(name, ())))
        }


class ImageUrl(_Body):
    """URL of an image; `detail` is ignored."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class Part(_Body):
    """Text or an image of a message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if (self.text is None) == (self.type == "text") or (self.image_url is None) == (self.type == "image_url"):
            raise ValueError(f"a part of type {self.type} has the field {self.type}, and no other")
        return self


class Message(_Body):
    """Message of a conversation; a plain text becomes a list of one part."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part]

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, message: Any) -> Any:
        message = cls._drop(message, {"tool_calls": ([],), "annotations": ([],)})
        if isinstance(message, dict) and isinstance(message.get("content"), str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        return message


class StreamOptions(_Body):
    """Options of a stream."""

    include_usage: bool = False


class ChatBody(_Body):
    """Body of `POST /v1/chat/completions`."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Temperature, Field(le=2)] = 0.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    seed: Seed | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, content: Any) -> Any:
        return cls._drop(content, _NEUTRAL)

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options requires stream=true")
        return self

    @property
    def with_usage(self) -> bool:
        """Returns whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def to_request(self, limits: Limits, fit_image: Callable[[Image.Image], Image.Image]) -> ChatRequest:
        """Decodes the images and builds the engine's request; takes seconds for large images.

        Raises:
            ApiError: more messages, text or images than the limits allow, or an image that cannot be used.
        """
        if len(self.messages) > limits.messages:
            raise ApiError(400, f"{len(self.messages)} messages, the limit is {limits.messages}: send fewer.")
        parts = [part for message in self.messages for part in message.content]
        images = sum(part.type == "image_url" for part in parts)
        if images > limits.images:
            reason = f"{images} images, the limit is {limits.images}: send fewer."
            raise ApiError(400, reason, "too_many_images", "messages")
        check_length([part.text for part in parts if part.text is not None], limits, "messages")
        messages = [_read_message(message, index, limits, fit_image) for index, message in enumerate(self.messages)]
        max_tokens = self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS
        return ChatRequest(messages, max_tokens, self.temperature, self.top_k, self.top_p, self.seed, self.stream)


class ImageBody(_Body):
    """Body of `POST /v1/images/generations`; fields after `response_format` go into the client's `extra_body`."""

    model: str | None = None
    prompt: Annotated[str, Field(min_length=1)]
    n: Annotated[int, Field(ge=1)] = 1
    size: str = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    seed: Seed | None = None
    negative_prompt: str = ""
    guidance_scale: Annotated[Finite, Field(ge=0, le=MAX_GUIDANCE_SCALE)] | None = None
    guidance_min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, content: Any) -> Any:
        return cls._drop(content, _IMAGE_NEUTRAL)

    def to_request(self, limits: Limits, image_size: int) -> ImageRequest:
        """Builds the engine's request; image i has the seed `seed + i`, so that it can be generated alone.

        Raises:
            ApiError: more images or text than the limits allow, or another size than the model's.
        """
        if not self.prompt.strip():
            raise ApiError(400, "The prompt is empty: write a prompt.", None, "prompt")
        if self.n > limits.images:
            raise ApiError(400, f"n is {self.n}, the limit is {limits.images}: request fewer.", "too_many_images", "n")
        only = f"{image_size}x{image_size}"
        if self.size not in ("auto", only):
            raise ApiError(400, f"size is {self.size[:20]!r}, this model has only {only}.", "unsupported_size", "size")
        check_length([self.prompt, self.negative_prompt], limits, "prompt")
        seed = random.randrange(MAX_SEED + 1) if self.seed is None else self.seed
        names = ("guidance_scale", "guidance_min_p", "temperature", "top_k", "top_p")
        sampling = tuple((name, getattr(self, name)) for name in names if getattr(self, name) is not None)
        seeds = tuple((seed + index) % (MAX_SEED + 1) for index in range(self.n))
        return ImageRequest(self.prompt, self.negative_prompt, seeds, sampling)


def check_length(texts: list[str], limits: Limits, param: str) -> None:
    """Raises ApiError for more characters than a request may have; the tokens are counted by the engine."""
    length = sum(map(len, texts))
    if length > limits.characters:
        raise ApiError(
            400, f"{length} characters, the limit is {limits.characters}: shorten the text.", "text_too_long", param
        )


def _read_message(message: Message, index: int, limits: Limits, fit_image: Callable) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    content = []
    for number, part in enumerate(message.content):
        where = f"messages.{index}.content.{number}"
        if part.image_url is None:
            content.append({"type": "text", "text": part.text})
        elif role == "user":
            content.append({"type": "image", "image": fit_image(read_image(part.image_url.url, limits, where))})
        else:
            raise ApiError(400, f"An image in a message of the {role}: send it as the user's.", None, where)
    return {"role": role, "content": content}


def read_image(url: str, limits: Limits, where: str) -> Image.Image:
    """Decodes the image of a data URL, or fetches it from an allowed host.

    Raises:
        ApiError: any other URL, or not an image; it names the field `where`.
    """
    if match := _DATA_URL.match(url):
        try:
            source: bytes | str = base64.b64decode(url[match.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(400, "The data URL is not base64: encode the image again.", "invalid_image", where) from None
    elif _host(url) in limits.image_hosts:
        source = url
    else:
        reason = "Only data URLs are read (data:image/png;base64,...): send the image itself."
        raise ApiError(400, reason, "unsupported_image_url", where)
    try:
        return load_image(source, max_pixels=limits.pixels)
    except EvoTokImageError as error:
        raise ApiError(400, f"The image cannot be used: {image_reason(error)}", "invalid_image", where) from None


def _host(url: str) -> str | None:
    """Returns the host of an address that `load_image` would fetch; other text is parsed as a path."""
    try:
        return urlsplit(url).hostname if url.startswith(("http://", "https://")) else None
    except ValueError:
        return None


class ChatAnswer:
    """Response to a `ChatBody`: one object, or the chunks of a stream.

    Args:
        model: its name.
        with_usage: whether a stream ends with a chunk that has `usage`, which is null in the others.
    """

    def __init__(self, model: str, with_usage: bool = False):
        self.with_usage = with_usage
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, pieces: list[TextPiece]) -> dict[str, Any]:
        """Builds the response as one object."""
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": pieces[-1].finish_reason}
        return self._head | {"object": "chat.completion", "choices": [choice], "usage": _usage(pieces[-1])}

    def opening(self) -> dict[str, Any]:
        """Builds the first chunk, without text."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def chunk(self, piece: TextPiece) -> dict[str, Any]:
        """Builds a chunk of text; the last one has the finish reason."""
        return self._chunk({"content": piece.text} if piece.text else {}, piece.finish_reason)

    def usage(self, last: TextPiece) -> dict[str, Any]:
        """Builds the chunk after the last one, with the number of tokens."""
        return self._head | {"object": "chat.completion.chunk", "choices": [], "usage": _usage(last)}

    def _chunk(self, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self.with_usage else {}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]} | usage


def _usage(piece: TextPiece) -> dict[str, int]:
    total = piece.prompt_tokens + piece.completion_tokens
    return {
        "prompt_tokens": piece.prompt_tokens,
        "completion_tokens": piece.completion_tokens,
        "total_tokens": total,
    }


def image_answer(request: ImageRequest, found: GeneratedImages, files: list[bytes], size: int) -> dict[str, Any]:
    """Builds the response to an `ImageBody`: PNG files in base64, each with its seed."""
    data = [
        {"b64_json": base64.b64encode(file).decode("ascii"), "seed": seed}
        for file, seed in zip(files, request.seeds, strict=True)
    ]
    usage = {
        "input_tokens": found.prompt_tokens,
        "output_tokens": found.image_tokens,
        "total_tokens": found.prompt_tokens + found.image_tokens,
        "input_tokens_details": {"text_tokens": found.prompt_tokens, "image_tokens": 0},
    }
    return {"created": int(time.time()), "data": data, "size": f"{size}x{size}", "output_format": "png", "usage": usage}
