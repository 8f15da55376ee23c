"""Limits of the input of the page's visitors, and its checks."""

from pathlib import Path
from typing import Any

from PIL import Image

from evotok.data.errors import image_reason
from evotok.processing.image_loading_evotok import EvoTokImageError, load_image


MAX_UPLOAD_BYTES = 12 * 2**20
"""Size of an uploaded file, which Gradio checks."""
MAX_PIXELS = 24_000_000
MAX_SIDE = 1024
"""Longest side of images that are kept: a conversation stays in memory for as long as the page is open."""
MAX_CHARACTERS = 2000
MAX_IMAGES = 8
"""Input images of a conversation."""
MAX_GENERATED_IMAGES = 8
MAX_NEW_TOKENS = 256
TIME_LIMIT = 120.0
"""Longest time of one answer or one batch of images, in seconds."""
QUEUE_LENGTH = 64
"""Waiting events of all visitors."""
WAITING_OF_ADDRESS = 8
WAITING_OF_SESSION = 4
"""Waiting and running events of one address, and of one session."""
STATE_SECONDS = 3600
"""Time that uploads, images and conversations are kept after their last use, in seconds."""
MAX_SESSIONS = 200
SESSIONS_OF_ADDRESS = 32
IDLE_SECONDS = 900
"""Time after which a session without an open connection is idle, and makes room for a new one, in seconds."""
CONNECTIONS = 1024
CONNECTIONS_OF_ADDRESS = 64
HEAD_SECONDS = 10
"""Longest time until the head of a request has arrived, in seconds."""
BODY_SECONDS = 60
"""Longest time until the body of a request has arrived, in seconds."""
UPLOAD_BYTES_OF_ADDRESS = 128 * 2**20
UPLOAD_BYTES_OF_ALL = 2**30
"""Total size of the uploads that are kept."""


def check_text(text: str | None, name: str) -> str:
    """Returns a text without spaces around it.

    Raises:
        ValueError: it is longer than `MAX_CHARACTERS`.
    """
    text = (text or "").strip()
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{name} has {len(text)} characters, at most {MAX_CHARACTERS} are read: shorten it.")
    return text


def check_number(value: Any, low: float, high: float, name: str) -> float:
    """Checks a number that no component of Gradio checks.

    Raises:
        ValueError: it is no number, or not within the limits.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} is {str(value)[:40]}: give a number from {low:.10g} to {high:.10g}.")
    return value


def open_upload(path: str, folder: str) -> Image.Image:
    """Opens an uploaded file as an upright RGB image, no side longer than `MAX_SIDE`.

    Args:
        path: untrusted: Gradio checks only paths that are marked as file data.
        folder: of uploads.

    Raises:
        ValueError: not uploaded, no image, damaged or too large; one line with the name of the file, not its folder.
    """
    name = Path(path).name
    if not Path(path).resolve().is_relative_to(Path(folder).resolve()) or not Path(path).is_file():
        raise ValueError(f"{name[:80]}: was not uploaded to this page: add it as a file.")
    try:
        image = load_image(Path(path).read_bytes(), max_pixels=MAX_PIXELS)
    except EvoTokImageError as error:
        raise ValueError(f"{name}: {image_reason(error)}") from None
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image
