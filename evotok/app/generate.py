"""The tab Draw: images from text, shown while they are written; those of a server when they are finished."""

import random
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from PIL import Image

from evotok.app.limits import TIME_LIMIT, check_number, check_text
from evotok.app.running import CodeIteratorStreamer, Stop, steps
from evotok.inference import read_image_prompt
from evotok.serving.client import ServerClient


MAX_IMAGES = 8
MAX_SEED = 2**32 - 1
UNWRITTEN = (232, 234, 238)
"""Colour of positions that are not written yet."""
PREVIEW_SHARE = 0.25
"""Previews take at most about this share of the time."""
PREVIEW_SECONDS = 0.2


class Order(NamedTuple):
    """What to draw; `seed` None draws other images each time."""

    prompt: str
    negative_prompt: str = ""
    guidance_scale: float = 7.5
    num_images: int = 4
    seed: int | None = None
    temperature: float = 1.0


class Drawing(NamedTuple):
    """Images as far as they are written: `positions` of `total` after `seconds`."""

    images: list[Image.Image]
    positions: int
    total: int
    seconds: float
    seed: int

    @property
    def finished(self) -> bool:
        """Whether every position is written."""
        return self.positions == self.total

    @property
    def images_per_second(self) -> float:
        """Speed so far; unfinished images count in part."""
        return len(self.images) * self.positions / self.total / max(self.seconds, 1e-6)


def read_seed(text: str | int | None) -> int | str | None:
    """Reads a seed; None when it is left empty, and what is no number as it is, for `draw` to refuse."""
    text = str("" if text is None else text).strip()
    try:
        return int(text) if text else None
    except ValueError:
        return text


def draw(model, processor, order: Order, seconds: float = TIME_LIMIT) -> Iterator[Drawing]:
    """The images again and again while they are written; the last time finished, unless the time was up.

    Args:
        model: in evaluation mode; or a `ServerClient`, with `processor` None.

    Raises:
        ValueError: no prompt, one that is too long, or a number out of its range.
    """
    order = _check(order)
    seed = random.randrange(MAX_SEED + 1) if order.seed is None else order.seed
    if processor is None:
        yield _draw_by_server(model, order, seed)
        return
    inputs = read_image_prompt(model, processor, order.prompt, order.negative_prompt)
    stop = Stop(seconds)
    streamer = CodeIteratorStreamer(stop)

    def work() -> None:
        model.generate(
            **inputs,
            generation_mode="image",
            guidance_scale=order.guidance_scale,
            temperature=order.temperature,
            num_return_sequences=order.num_images,
            generator=torch.Generator(model.device).manual_seed(seed),
            streamer=streamer,
        )

    total = model.config.vq_config.num_positions
    written, started, next_preview = [], time.monotonic(), 0.0
    for codes in steps(work, streamer, stop):
        written.append(codes)
        now = time.monotonic()
        if len(written) == total or (now >= next_preview and not streamer.waiting):
            images = preview(model, processor, torch.stack(written, dim=1))
            spent = time.monotonic() - now
            next_preview = time.monotonic() + max(PREVIEW_SECONDS, spent * (1 / PREVIEW_SHARE - 1))
            yield Drawing(images, len(written), total, time.monotonic() - started, seed)
    if len(written) < total and written:
        images = preview(model, processor, torch.stack(written, dim=1))
        yield Drawing(images, len(written), total, time.monotonic() - started, seed)


def _draw_by_server(client: ServerClient, order: Order, seed: int) -> Drawing:
    settings = {
        "negative_prompt": order.negative_prompt,
        "guidance_scale": order.guidance_scale,
        "temperature": order.temperature,
    }
    started = time.monotonic()
    images = client.generate_images(order.prompt, seed, order.num_images, **settings)
    return Drawing(images, 1, 1, time.monotonic() - started, seed)


def _check(order: Order) -> Order:
    prompt = check_text(order.prompt, "The prompt")
    if not prompt:
        raise ValueError("Write what to draw first.")
    check_number(order.guidance_scale, 1, 20, "Guidance")
    check_number(order.temperature, 0, 2, "Temperature")
    count = int(check_number(order.num_images, 1, MAX_IMAGES, "The number of images"))
    seed = None if order.seed is None else int(check_number(order.seed, 0, MAX_SEED, "The seed"))
    negative = check_text(order.negative_prompt, "The negative prompt")
    return order._replace(prompt=prompt, negative_prompt=negative, num_images=count, seed=seed)


@torch.inference_mode()
def preview(model, processor, codes: torch.LongTensor) -> list[Image.Image]:
    """Images of the first positions (M, p, L); what is not written yet is grey.

    The decoder wants all N positions: those written are repeated, which keeps its statistics as they will be.
    """
    config = model.config.vq_config
    written = codes.shape[1]
    filled = codes[:, torch.arange(config.num_positions) % written].to(model.device)
    images = processor.post_process_image_generation(model.decode_image_tokens(filled))
    if written < config.num_positions:
        open_cells = (torch.arange(config.num_positions) >= written).view(config.grid_size, config.grid_size)
        mask = Image.fromarray(open_cells.mul(255).to(torch.uint8).numpy())
        for image in images:
            image.paste(UNWRITTEN, mask=mask.resize(image.size, Image.Resampling.NEAREST))
    return images
