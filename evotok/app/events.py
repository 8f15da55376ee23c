"""Options, wrappers and fields that the event handlers of all tabs share."""

import functools
from collections.abc import Callable
from inspect import isgeneratorfunction
from typing import Any

import gradio as gr
from PIL import Image

from evotok.data.errors import one_line


SHOWN_SIDE = 320
"""Side of decoded images, and longest side of images in the conversation, in pixels."""
# One generation runs at a time; decoding is short, and does not wait for it.
GENERATION = {"concurrency_limit": 1, "concurrency_id": "generation", "api_visibility": "private"}
DECODING = {
    "concurrency_limit": 1,
    "concurrency_id": "decoding",
    "api_visibility": "private",
    "show_progress": "hidden",
}
# Handlers of files get paths, which `open_upload` checks and opens: Gradio would decode the image without these limits.
FILES = {"preprocess": False}
# For handlers that cannot fail: Gradio shows no warnings of handlers outside the queue.
IMMEDIATE = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def show_errors(function: Callable, outputs_after_error: tuple | None = None) -> Callable:
    """Wraps a handler so that a ValueError is shown to the visitor in one line.

    Gradio shows any other exception as "Error", and prints its traceback in the terminal.

    Args:
        outputs_after_error: values of the outputs after a ValueError; they stay as they are when None.
    """

    def show(error: ValueError) -> Any:
        gr.Warning(one_line(error), duration=8, title="")
        return gr.skip() if outputs_after_error is None else outputs_after_error

    @functools.wraps(function)
    def run(*args):
        try:
            return function(*args)
        except ValueError as error:
            return show(error)

    @functools.wraps(function)
    def run_steps(*args):
        try:
            yield from function(*args)
        except ValueError as error:
            yield show(error)

    return run_steps if isgeneratorfunction(function) else run


def input_image(**kwargs) -> gr.Image:
    """Builds the field of an input image, for handlers that take `FILES`."""
    return gr.Image(type="filepath", format="png", sources=["upload", "clipboard"], **kwargs)


def enlarge(image: Image.Image) -> Image.Image:
    """Resizes an image to at least `SHOWN_SIDE`."""
    side = max(SHOWN_SIDE, image.width)
    return image.resize((side, side), Image.Resampling.LANCZOS)
