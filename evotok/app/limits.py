"""What a visitor may ask for, and one line that says so where it is too much."""

from pathlib import Path
from typing import Any

from PIL import Image

from evotok.processing.image_loading_evotok import EvoTokImageError, load_image


MAX_UPLOAD_BYTES = 12 * 2**20
MAX_PIXELS = 24_000_000
MAX_SIDE = 1024
"""Images are kept no larger than this: a visitor's conversation stays in memory for as long as the page is open."""
MAX_CHARACTERS = 2000
MAX_IMAGES = 8
MAX_NEW_TOKENS = 256
TIME_LIMIT = 120.0
"""Seconds that one answer or one batch of images may take."""
QUEUE_LENGTH = 64
"""Events of all visitors that may wait."""
WAITING_OF_ADDRESS = 8
WAITING_OF_SESSION = 4
"""Events of one address, and of one tab, that wait or are computed."""
STATE_SECONDS = 3600
"""How long uploads, images and conversations are kept after their last use."""
MAX_SESSIONS = 200
SESSIONS_OF_ADDRESS = 32
IDLE_SECONDS = 900
"""A session without an open connection is idle after so long, and makes room for a new one."""
CONNECTIONS = 1024
CONNECTIONS_OF_ADDRESS = 64
HEAD_SECONDS = 10
"""How long a connection may take to send the head of a request."""
BODY_SECONDS = 60
"""How long a request may take to send its body."""
UPLOAD_BYTES_OF_ADDRESS = 128 * 2**20
UPLOAD_BYTES_OF_ALL = 2**30
"""Uploads that are kept at a time."""


def check_text(text: str | None, name: str) -> str:
    """The text without spaces around it.

    Raises:
        ValueError: it is longer than the page takes.
    """
    text = (text or "").strip()
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{name} has {len(text)} characters, at most {MAX_CHARACTERS} are read: shorten it.")
    return text


def check_number(value: Any, low: float, high: float, name: str) -> float:
    """Checks a number of a request to the page, which any program can send.

    Raises:
        ValueError: it is no number, or not within the limits.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} is {str(value)[:40]}: give a number from {low:.10g} to {high:.10g}.")
    return value


def open_upload(path: str, folder: str) -> Image.Image:
    """An uploaded file as an upright RGB image, no side longer than `MAX_SIDE`.

    Args:
        path: as the request names it, which may be any file of the machine.
        folder: where uploads lie.

    Raises:
        ValueError: not uploaded, no image, damaged or too large; one line with the name of the file, not its folder.
    """
    name = Path(path).name
    if not Path(path).resolve().is_relative_to(Path(folder).resolve()) or not Path(path).is_file():
        raise ValueError(f"{name[:80]}: was not uploaded to this page: add it as a file.")
    size = Path(path).stat().st_size
    if size > MAX_UPLOAD_BYTES:
        raise ValueError(f"{name}: {size / 2**20:.0f} MB, at most {MAX_UPLOAD_BYTES / 2**20:.0f} are read: shrink it.")
    try:
        image = load_image(Path(path).read_bytes(), max_pixels=MAX_PIXELS)
    except EvoTokImageError as error:
        reason = str(error).removeprefix("image: ").replace(", or raise max_pixels", "")
        raise ValueError(f"{name}: {reason}") from None
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image
