"""The tab Generate: images from a prompt, with previews by a model in this process, finished by a server."""

import random
import time
from collections.abc import Iterator
from typing import NamedTuple

import gradio as gr
import torch
from PIL import Image

from evotok.app.events import GENERATION, IMMEDIATE, show_errors
from evotok.app.examples import Examples
from evotok.app.limits import MAX_GENERATED_IMAGES, STATE_SECONDS, TIME_LIMIT, check_number, check_text
from evotok.inference import preview_images, read_image_prompt, stream_codes


MAX_SEED = 2**32 - 1
PREVIEW_SHARE = 0.25
"""Approximate share of the time that previews take."""
PREVIEW_SECONDS = 0.2
"""Least time between two previews."""


class GenerationArguments(NamedTuple):
    """Arguments of one generation.

    Args:
        seed: whole number, or its text; random when None or empty.
    """

    prompt: str
    negative_prompt: str = ""
    guidance_scale: float = 7.5
    num_images: int = 4
    seed: int | str | None = None
    temperature: float = 1.0


class Progress(NamedTuple):
    """Images after `positions` of `total` positions and `seconds`."""

    images: list[Image.Image]
    positions: int
    total: int
    seconds: float
    seed: int

    @property
    def is_finished(self) -> bool:
        """Returns whether all positions are generated."""
        return self.positions == self.total

    @property
    def images_per_second(self) -> float:
        """Returns the images per second; unfinished ones count by their share of positions."""
        return len(self.images) * self.positions / self.total / max(self.seconds, 1e-6)


def generate(model, processor, arguments: GenerationArguments, seconds: float = TIME_LIMIT) -> Iterator[Progress]:
    """Yields previews while images are generated, then the images; unfinished ones after the time limit.

    Args:
        model: in evaluation mode; or a `ServerClient`, with `processor` None.
        arguments: numbers in range, as the sliders of Gradio have checked.

    Raises:
        ValueError: no prompt, one that is too long, or a bad seed.
    """
    prompt = check_text(arguments.prompt, "The prompt")
    negative_prompt = check_text(arguments.negative_prompt, "The negative prompt")
    if not prompt:
        raise ValueError("Write a prompt first.")
    seed = read_seed(arguments.seed)
    num_images = int(arguments.num_images)
    sampling = {"guidance_scale": arguments.guidance_scale, "temperature": arguments.temperature}
    started = time.monotonic()
    if processor is None:
        images = model.generate_images(prompt, seed, num_images, negative_prompt=negative_prompt, **sampling)
        yield Progress(images, 1, 1, time.monotonic() - started, seed)
        return
    total, generated, next_preview = model.config.vq_config.num_positions, [], 0.0

    def progress() -> Progress:
        images = preview_images(model, processor, torch.stack(generated, dim=1))
        return Progress(images, len(generated), total, time.monotonic() - started, seed)

    stream = stream_codes(
        model,
        read_image_prompt(model, processor, prompt, negative_prompt),
        seconds,
        num_return_sequences=num_images,
        generator=torch.Generator(model.device).manual_seed(seed),
        **sampling,
    )
    for codes in stream:
        generated.append(codes)
        now = time.monotonic()
        if len(generated) == total or now >= next_preview:
            preview = progress()
            spent = time.monotonic() - now
            next_preview = time.monotonic() + max(PREVIEW_SECONDS, spent * (1 / PREVIEW_SHARE - 1))
            yield preview
    if 0 < len(generated) < total:
        yield progress()


def read_seed(seed: int | str | None) -> int:
    """Reads a seed; a random one when it is left empty.

    Raises:
        ValueError: it is no whole number, or out of range.
    """
    text = str("" if seed is None else seed).strip()
    if not text:
        return random.randrange(MAX_SEED + 1)
    try:
        number = int(text)
    except ValueError:
        number = text
    return int(check_number(number, 0, MAX_SEED, "The seed"))


def build_generate_tab(model, processor, examples: Examples) -> tuple[gr.State, gr.State, gr.Button, gr.Button]:
    """Builds the tab.

    Returns:
        States of the last `Progress` and of the index of the selected image; buttons that send it to the other tabs.
    """
    generated, selected = gr.State(None, time_to_live=STATE_SECONDS), gr.State(0)
    with gr.Row(elem_id="generate"):
        with gr.Column(min_width=280, elem_id="generate-prompt"):
            gr.Markdown(examples.scope.generate, elem_classes="hint", elem_id="generate-scope")
            prompt = gr.Textbox(
                label="Prompt", placeholder="What to generate", lines=1, max_lines=4, elem_id="prompt", autofocus=True
            )
            gr.Examples([[text] for text in examples.prompts], prompt, label="Try one", elem_id="generate-examples")
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="generate-start", scale=2, min_width=120)
                stop = gr.Button("Stop", elem_id="generate-stop", scale=1, min_width=80)
        with gr.Column(min_width=280, elem_id="generate-result"):
            status = gr.HTML(_render_status(None), elem_id="status")
            gallery = gr.Gallery(
                show_label=False, columns=2, height="auto", format="png", object_fit="contain", interactive=False,
                buttons=["download", "fullscreen"], elem_id="gallery",
            )  # fmt: skip
            with gr.Row(elem_classes="buttons"):
                ask = gr.Button("Ask about it", size="sm", min_width=120, scale=0, elem_id="ask", interactive=False)
                look = gr.Button(
                    "Look inside it", size="sm", min_width=120, scale=0, elem_id="look", interactive=False,
                    visible=processor is not None,
                )  # fmt: skip
        with gr.Column(min_width=280, elem_id="generate-settings"):
            guidance = gr.Slider(1, 15, 7.5, step=0.5, label="Guidance (CFG)", elem_id="guidance", buttons=[])
            count = gr.Slider(1, MAX_GENERATED_IMAGES, 4, step=1, label="Images", elem_id="count", buttons=[])
            with gr.Accordion("More", open=False):
                negative = gr.Textbox(
                    label="Negative prompt", placeholder="What the images should not show", elem_id="negative"
                )
                with gr.Row():
                    # Not a gr.Number: an empty one becomes 0 when it is shown.
                    seed = gr.Textbox(label="Seed", placeholder="random by default", max_lines=1, elem_id="seed")
                    heat = gr.Slider(0, 2, 1, step=0.05, label="Temperature", elem_id="temperature", buttons=[])

    def run(prompt, negative, guidance, count, seed, heat) -> Iterator[tuple]:
        if warning := examples.scope.warn_about_prompt(str(prompt)):
            gr.Warning(warning, duration=8, title="")
        arguments = GenerationArguments(prompt, negative, guidance, count, seed, heat)
        off, on, progress = gr.Button(interactive=False), gr.Button(interactive=True), None
        for progress in generate(model, processor, arguments):
            captioned = [(image, f"{str(prompt)[:100]}, image {n}") for n, image in enumerate(progress.images, start=1)]
            yield captioned, _render_status(progress), progress, off, on, on
        if progress is None or not progress.is_finished:
            gr.Warning(f"Stopped at the time limit of {TIME_LIMIT:g} seconds: the images are unfinished.", title="")

    running = gr.on(
        [start.click, prompt.submit],
        show_errors(run),
        [prompt, negative, guidance, count, seed, heat],
        [gallery, status, generated, start, ask, look],
        show_progress="minimal",
        show_progress_on=status,
        **GENERATION,
    )
    stop.click(None, cancels=[running], **IMMEDIATE)
    # A cancelled generation ends after its current step, and until then Gradio ignores a click on `start`: the button
    # is off during a generation. After an error Gradio runs `failure` alone.
    for end in (running.then, running.failure):
        end(
            lambda progress: (_render_status(progress, has_ended=True), gr.Button(interactive=True)),
            generated, [status, start], **IMMEDIATE,
        )  # fmt: skip
    gallery.select(_selected_index, None, selected, **IMMEDIATE)
    start.click(lambda: 0, None, selected, **IMMEDIATE)
    return generated, selected, ask, look


def selected_image(generated: Progress | None, selected: int) -> Image.Image:
    """Returns the selected image of the last generation.

    Raises:
        ValueError: there is none.
    """
    if generated is None:
        raise ValueError("Generate an image first.")
    return generated.images[min(selected, len(generated.images) - 1)]


def _selected_index(event: gr.SelectData) -> int:
    return event.index


def _render_status(progress: Progress | None, has_ended: bool = False) -> str:
    """Renders a progress bar, positions, speed and seed as HTML, without text of the visitor."""
    if progress is None:
        return '<div class="status"><span>Images appear here while they are generated.</span></div>'
    speed = "stopped" if has_ended and not progress.is_finished else f"{progress.images_per_second:.2f} images/s"
    return (
        f'<div class="status"><div class="bar"><i style="width: {progress.positions / progress.total:.0%}"></i></div>'
        f"<span>{progress.positions} of {progress.total} positions · {speed} · seed {progress.seed}</span></div>"
    )
