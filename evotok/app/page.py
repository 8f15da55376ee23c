"""The page itself: three tabs over `chat`, `draw` and `inside`, one generation at a time for all visitors."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import escape as escape_html
from html import unescape
from inspect import isgeneratorfunction
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from evotok.app.chat import answer
from evotok.app.draw import MAX_IMAGES, Drawing, Order, draw, read_seed
from evotok.app.examples import Examples, find_examples
from evotok.app.inside import Inspection, inspect, swap
from evotok.app.limits import QUEUE_LENGTH, STATE_SECONDS, check_number, open_upload
from evotok.commands.conversation import Conversation, rewind
from evotok.training.messages import one_line


SHOWN_SIDE = 320
"""Of images in the conversation and of decoded ones, in pixels."""
DRAW_COMMAND = "/draw"
# Generations wait for one another; decoding is short and waits for nobody who draws.
GENERATION = {"concurrency_limit": 1, "concurrency_id": "generation", "api_visibility": "private"}
DECODING = {
    "concurrency_limit": 1,
    "concurrency_id": "decoding",
    "api_visibility": "private",
    "show_progress": "hidden",
}
# Files of untrusted input are opened by the project's own loader: these handlers get the place of a file, and Gradio,
# which would open it to convert it, or refuse it for its name, does not touch it.
FILES = {"preprocess": False}
# Without the queue Gradio shows no warnings: for handlers that cannot fail.
AT_ONCE = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def build_page(model, processor, folder: Path) -> gr.Blocks:
    """Builds the page over a model and its processor.

    Args:
        folder: for the images of the examples.
    """
    examples = find_examples(model.config.vq_config.image_size, folder)
    with gr.Blocks(title="EvoTok", analytics_enabled=False, delete_cache=(STATE_SECONDS, STATE_SECONDS)) as page:
        gr.Markdown(_headline(model), elem_id="title")
        with gr.Tabs() as tabs:
            with gr.Tab("Chat", id="chat"):
                conversation, transcript = _chat_tab(model, processor, examples)
            with gr.Tab("Draw", id="draw"):
                drawn, chosen, ask, look = _draw_tab(model, processor, examples)
            with gr.Tab("Look inside", id="inside"):
                source = _inside_tab(model, processor, examples)

        def ask_about(drawn: Drawing | None, chosen: int, state: Conversation | None) -> tuple:
            state = state or Conversation()
            state.pending = [_chosen(drawn, chosen)]
            return gr.Tabs(selected="chat"), state, _transcript(state, transcript.GRADIO_CACHE)

        ask.click(_friendly(ask_about), [drawn, chosen, conversation], [tabs, conversation, transcript], **DECODING)
        look.click(_friendly(_look_into), [drawn, chosen], [tabs, source], **DECODING)
    page.queue(max_size=QUEUE_LENGTH, api_open=False)
    return page


def _headline(model) -> str:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    size = f"{millions:.0f} million" if millions < 1000 else f"{millions / 1000:.1f} billion"
    config = model.config.vq_config
    return (
        "# EvoTok\nOne model that understands and generates images.\n\n"
        f"{size} parameters · images of {config.image_size} px in {config.num_positions} positions and "
        f"{config.num_codebooks} levels · {model.device.type}"
    )


def _friendly(function: Callable, refused: tuple | None = None) -> Callable:
    """Wraps a handler whose ValueErrors are shown to the visitor in one line.

    Any other error is a fault of ours: Gradio shows it as "Error", and its traceback in the terminal only.

    Args:
        refused: what the outputs become after a ValueError; they stay as they are when None.
    """

    def say(error: ValueError) -> Any:
        gr.Warning(one_line(error), duration=8, title="")
        return gr.skip() if refused is None else refused

    @functools.wraps(function)
    def run(*args):
        try:
            return function(*args)
        except ValueError as error:
            return say(error)

    @functools.wraps(function)
    def run_steps(*args):
        try:
            yield from function(*args)
        except ValueError as error:
            yield say(error)

    return run_steps if isgeneratorfunction(function) else run


def _upload(**kwargs) -> gr.Image:
    """Builds an image field for handlers that take `FILES`."""
    return gr.Image(type="filepath", format="png", sources=["upload", "clipboard"], **kwargs)


# --- Chat -------------------------------------------------------------------------------------------------------------


def _chat_tab(model, processor, examples: Examples) -> tuple[gr.State, gr.Chatbot]:
    conversation = gr.State(None, time_to_live=STATE_SECONDS)
    gr.Markdown(examples.scope.chat, elem_classes="hint", elem_id="chat-scope")
    # Plain text, with `render_markdown` off and HTML escaped, which Gradio would show all the same: images of other
    # sites would be fetched, and forms be live.
    transcript = gr.Chatbot(
        show_label=False, height="46vh", min_height=240, layout="bubble", buttons=["copy"], allow_tags=False,
        placeholder="Add an image below and ask about it.", elem_id="transcript", feedback_options=None,
        render_markdown=False, latex_delimiters=[], editable="user", group_consecutive_messages=False,
    )  # fmt: skip
    box = gr.MultimodalTextbox(
        show_label=False, placeholder="Attach an image and ask", sources=["upload"],
        file_count="multiple", file_types=["image"], max_plain_text_length=10_000, elem_id="question", max_lines=6,
    )  # fmt: skip
    with gr.Row(elem_classes="buttons"):
        stop = gr.Button("Stop", size="sm", min_width=90, scale=0, elem_id="chat-stop")
        new = gr.Button("New conversation", size="sm", min_width=160, scale=0, elem_id="chat-new")
    rows = [
        {"text": question, "files": [path]}
        for path, question in zip(examples.pictures, examples.questions, strict=False)
    ]
    if rows:
        gr.Examples(rows, box, label="Try one", elem_id="chat-examples")

    def reply(sent: dict[str, Any] | None, state: Conversation | None) -> Iterator[tuple]:
        sent = sent or {}
        images = [open_upload(file["path"], box.GRADIO_CACHE) for file in sent.get("files") or []]
        yield from say(sent.get("text") or "", state or Conversation(), images)

    def again(state: Conversation | None, event: gr.RetryData) -> Iterator[tuple]:
        before, question = rewind(state or Conversation(), _index(event))
        yield from say(question, before)

    def change(state: Conversation | None, event: gr.EditData) -> Iterator[tuple]:
        before, _ = rewind(state or Conversation(), _index(event))
        yield from say(unescape(str(event.value or "")), before)

    def say(question: str, state: Conversation, images: list[Image.Image] | None = None) -> Iterator[tuple]:
        """Shows the question at once, then the answer while it grows, or the image that is asked for."""
        command, _, prompt = question.strip().partition(" ")
        if command == DRAW_COMMAND:
            yield from _draw_in_chat(model, processor, prompt, state, transcript.GRADIO_CACHE)
            return
        pieces = answer(model, processor, state, question, images or [], scope=examples.scope)
        text = next(pieces)
        shown = _transcript(state, transcript.GRADIO_CACHE)
        yield gr.MultimodalTextbox(value=None), shown, state
        for text in pieces:
            shown[-1]["content"] = escape(text)
            yield gr.skip(), shown, state

    outputs = [box, transcript, conversation]
    progress = {"show_progress": "minimal", "show_progress_on": transcript}
    asked = [
        box.submit(_friendly(reply), [box, conversation], outputs, **progress, **FILES, **GENERATION),
        transcript.retry(_friendly(again), conversation, outputs, **progress, **GENERATION),
        transcript.edit(_friendly(change), conversation, outputs, **progress, **GENERATION),
    ]
    stop.click(None, cancels=asked, **AT_ONCE)
    new.click(lambda: (None, [], None), None, [conversation, transcript, box], cancels=asked, **AT_ONCE)
    return conversation, transcript


def escape(text: str) -> str:
    """Makes plain text of what would be HTML."""
    return escape_html(text, quote=False)


def _index(event: gr.EventData) -> int:
    """Which of the parts that are shown an event is about."""
    index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
    return int(check_number(index, 0, 10**6, "The message"))


def _draw_in_chat(model, processor, prompt: str, state: Conversation, cache: str) -> Iterator[tuple]:
    """Generates an image, which goes with the next question."""
    before = _transcript(state, cache) + [{"role": "user", "content": escape(f"{DRAW_COMMAND} {prompt}")}]
    drawing = None
    for drawing in draw(model, processor, Order(prompt.strip(), num_images=1)):
        image = {"role": "assistant", "content": _thumbnail(drawing.images[0], cache)}
        yield gr.MultimodalTextbox(value=None), [*before, image], gr.skip()
    if drawing is None or not drawing.finished:
        raise ValueError("The time was up before the image was finished: try again.")
    state = replace(state, pending=[*state.pending, drawing.images[0]])
    yield gr.skip(), _transcript(state, cache), state


def _transcript(conversation: Conversation, cache: str) -> list[dict[str, Any]]:
    """The conversation as Gradio shows it."""
    shown = []
    for message in conversation.messages:
        for part in message["content"]:
            content = escape(part["text"]) if part["type"] == "text" else _thumbnail(part["image"], cache)
            shown.append({"role": message["role"], "content": content})
    return shown + [{"role": "user", "content": _thumbnail(image, cache)} for image in conversation.pending]


def _thumbnail(image: Image.Image, cache: str) -> dict[str, str]:
    small = image.copy()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return {"path": save_pil_to_cache(small, cache, format="png"), "alt_text": "Image of the conversation"}


def _chosen(drawn: Drawing | None, chosen: int) -> Image.Image:
    if drawn is None:
        raise ValueError("Draw something first.")
    return drawn.images[min(chosen, len(drawn.images) - 1)]


def _look_into(drawn: Drawing | None, chosen: int) -> tuple:
    return gr.Tabs(selected="inside"), _chosen(drawn, chosen)


# --- Draw -------------------------------------------------------------------------------------------------------------


def _draw_tab(model, processor, examples: Examples) -> tuple[gr.State, gr.State, gr.Button, gr.Button]:
    drawn, chosen = gr.State(None, time_to_live=STATE_SECONDS), gr.State(0)
    with gr.Row(elem_id="draw"):
        with gr.Column(min_width=280, elem_id="draw-order"):
            gr.Markdown(examples.scope.draw, elem_classes="hint", elem_id="draw-scope")
            prompt = gr.Textbox(
                label="Prompt", placeholder="What to draw", lines=1, max_lines=4, elem_id="prompt", autofocus=True
            )
            gr.Examples([[text] for text in examples.prompts], prompt, label="Try one", elem_id="draw-examples")
            with gr.Row():
                go = gr.Button("Draw", variant="primary", elem_id="draw-go", scale=2, min_width=120)
                stop = gr.Button("Stop", elem_id="draw-stop", scale=1, min_width=80)
        with gr.Column(min_width=280, elem_id="draw-result"):
            status = gr.HTML(_status(None), elem_id="status")
            gallery = gr.Gallery(
                show_label=False, columns=2, height="auto", format="png", object_fit="contain", interactive=False,
                buttons=["download", "fullscreen"], elem_id="gallery",
            )  # fmt: skip
            with gr.Row(elem_classes="buttons"):
                ask = gr.Button("Ask about it", size="sm", min_width=120, scale=0, elem_id="ask", interactive=False)
                look = gr.Button("Look inside it", size="sm", min_width=120, scale=0, elem_id="look", interactive=False)
        with gr.Column(min_width=280, elem_id="draw-settings"):
            guidance = gr.Slider(1, 15, 7.5, step=0.5, label="Guidance (CFG)", elem_id="guidance", buttons=[])
            count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images", elem_id="count", buttons=[])
            with gr.Accordion("More", open=False):
                negative = gr.Textbox(label="Negative prompt", placeholder="What to keep away from", elem_id="negative")
                with gr.Row():
                    # Not a gr.Number: one that is empty becomes 0 as soon as it is shown.
                    seed = gr.Textbox(label="Seed", placeholder="another each time", max_lines=1, elem_id="seed")
                    heat = gr.Slider(0, 2, 1, step=0.05, label="Temperature", elem_id="temperature", buttons=[])

    following = gr.Button(interactive=True), gr.Button(interactive=True)

    def paint(prompt, negative, guidance, count, seed, heat) -> Iterator[tuple]:
        if warning := examples.scope.warning(str(prompt)):
            gr.Warning(warning, duration=8, title="")
        order = Order(prompt, negative, guidance, count, read_seed(seed), heat)
        for drawing in draw(model, processor, order):
            captioned = [(image, f"{str(prompt)[:100]}, image {n}") for n, image in enumerate(drawing.images, start=1)]
            yield captioned, _status(drawing), drawing, gr.Button(interactive=False), *following
        if not drawing.finished:
            gr.Warning("The time was up: this is as far as it came.", title="")

    painted = gr.on(
        [go.click, prompt.submit],
        _friendly(paint),
        [prompt, negative, guidance, count, seed, heat],
        [gallery, status, drawn, go, ask, look],
        show_progress="minimal",
        show_progress_on=status,
        **GENERATION,
    )
    stop.click(None, cancels=[painted], **AT_ONCE)
    # A cancelled drawing ends after the step that it is at, and until then Gradio passes over a click on `go`, without
    # a word: the button is off while there is a drawing. After an error Gradio runs `failure` alone.
    for end in (painted.then, painted.failure):
        end(_ended, drawn, [status, go], **AT_ONCE)
    gallery.select(_selected, None, chosen, **AT_ONCE)
    go.click(lambda: 0, None, chosen, **AT_ONCE)
    return drawn, chosen, ask, look


def _selected(event: gr.SelectData) -> int:
    return event.index


def _ended(drawing: Drawing | None) -> tuple[str, gr.Button]:
    return _status(drawing, ended=True), gr.Button(interactive=True)


def _status(drawing: Drawing | None, ended: bool = False) -> str:
    """Progress bar, positions, speed and seed; only numbers and words of ours."""
    if drawing is None:
        return '<div class="status"><span>What you draw appears here while it is written.</span></div>'
    said = "stopped" if ended and not drawing.finished else f"{drawing.images_per_second:.2f} images/s"
    share = f"{drawing.positions / drawing.total:.0%}"
    return (
        f'<div class="status"><div class="bar"><i style="width: {share}"></i></div>'
        f"<span>{drawing.positions} of {drawing.total} positions · {said} · seed {drawing.seed}</span></div>"
    )


# --- Look inside ------------------------------------------------------------------------------------------------------


def _inside_tab(model, processor, examples: Examples) -> gr.Image:
    config = model.config.vq_config
    levels, depths = config.num_codebooks, config.num_pixel_codebooks
    first, second = gr.State(None, time_to_live=STATE_SECONDS), gr.State(None, time_to_live=STATE_SECONDS)
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            gr.Markdown(examples.scope.inside, elem_classes="hint", elem_id="inside-scope")
            source = _upload(label="Image", height=280, elem_id="source")
            if examples.pictures:
                gr.Examples([[path] for path in examples.pictures], source, label="Try one", elem_id="inside-examples")
        with gr.Column(min_width=280):
            decoded = gr.Image(
                label="Decoded", height=280, format="png", interactive=False, buttons=["download"], elem_id="decoded"
            )
            depth = gr.Slider(1, depths, depths, step=1, label="Levels decoded", elem_id="depth", buttons=[])
            figure = gr.Markdown("", elem_classes="hint", elem_id="figure")
        with gr.Column(min_width=280):
            plot = gr.LinePlot(
                x="level", y="similarity", x_title="levels", y_title="cosine", x_lim=[1, levels], x_axis_format="d",
                height=280, label="Meaning", elem_id="plot", buttons=[],
            )  # fmt: skip
            gr.Markdown(f"How near the first levels come to what all {levels} mean.", elem_classes="hint")
    gr.Markdown("### Codes, level by level\nA square is a position; like codes have like colours.", elem_classes="hint")
    maps = gr.Gallery(
        show_label=False, columns=8, height="auto", format="png", object_fit="contain", interactive=False, buttons=[],
        elem_id="maps",
    )  # fmt: skip
    gr.Markdown(
        f"### Swap codes with another image\nThe first {depths} levels hold the pixels, all {levels} the meaning.",
        elem_classes="hint",
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=260):
            other = _upload(label="Other image", height=220, elem_id="other")
            if examples.pictures:
                gr.Examples([[path] for path in examples.pictures], other, label="Try one", elem_id="other-examples")
        with gr.Column(scale=2, min_width=260):
            which = gr.CheckboxGroup(list(range(1, levels + 1)), value=[1], label="Levels to swap", elem_id="levels")
            swapped = gr.Gallery(
                show_label=False, columns=2, height="auto", format="png", object_fit="contain", interactive=False,
                buttons=[], elem_id="swapped",
            )  # fmt: skip
            likeness = gr.Markdown("", elem_classes="hint", elem_id="likeness")

    nothing = None, None, "", None, []

    def encode(file: dict[str, Any] | None) -> tuple[Inspection | None, Any]:
        """The codes of an image, and what becomes of its field."""
        path = (file or {}).get("path")
        return inspect(model, processor, open_upload(path, source.GRADIO_CACHE)) if path else None, gr.skip()

    def encode_first(file: dict[str, Any] | None, depth: int) -> tuple:
        found, field = encode(file)
        if found is None:
            return *nothing, field
        frame = pd.DataFrame({"level": range(1, levels + 1), "similarity": found.similarity})
        lowest = math.floor(10 * min(found.similarity)) / 10
        captions = [(picture, f"{level}") for level, picture in enumerate(found.maps, start=1)]
        return found, *_decoded(found, depth), gr.LinePlot(frame, y_lim=[lowest, 1]), captions, field

    def exchange(first: Inspection | None, second: Inspection | None, which: list[int]) -> tuple[list, str]:
        if first is None or second is None:
            return [], ""
        mixtures = swap(model, processor, first.codes, second.codes, sorted(which))
        said = [f"{mixture.to_own:.2f} like before and {mixture.to_other:.2f} like the other" for mixture in mixtures]
        pictures = [_enlarge(mixture.image) for mixture in mixtures]
        return pictures, f"Meaning of the first image now: {said[0]}; of the other: {said[1]}."

    # What was shown of the image before would be taken for that of one which is refused.
    encoded = source.change(
        _friendly(encode_first, (*nothing, None)), [source, depth], [first, decoded, figure, plot, maps, source],
        **FILES, **DECODING,
    )  # fmt: skip
    also = other.change(_friendly(encode, (None, None)), other, [second, other], **FILES, **DECODING)
    depth.change(_friendly(_decoded), [first, depth], [decoded, figure], **AT_ONCE)
    for follow in (encoded.then, also.then, which.change):
        follow(_friendly(exchange), [first, second, which], [swapped, likeness], **DECODING)
    return source


def _decoded(found: Inspection | None, depth: int) -> tuple[Image.Image | None, str]:
    """Picture of the first `depth` levels, and how good it is."""
    if found is None:
        return None, ""
    depth = int(check_number(depth, 1, len(found.images), "The number of levels"))
    return _enlarge(
        found.images[depth - 1]
    ), f"{depth} of {len(found.images)} levels · PSNR {found.psnr[depth - 1]:.1f} dB"


def _enlarge(image: Image.Image) -> Image.Image:
    side = max(SHOWN_SIDE, image.width)
    return image.resize((side, side), Image.Resampling.LANCZOS)
