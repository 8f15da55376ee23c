"""The page itself: three tabs over `chat`, `draw` and `inside`, one generation at a time for all visitors."""

import functools
import math
import tempfile
from collections.abc import Callable, Iterator
from inspect import isgeneratorfunction
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.processing_utils import save_pil_to_cache
from PIL import Image
from starlette.middleware import Middleware

from evotok.app.chat import answer
from evotok.app.draw import MAX_IMAGES, Drawing, Order, draw
from evotok.app.examples import Examples, find_examples
from evotok.app.gate import Gate
from evotok.app.inside import Inspection, inspect, swap
from evotok.app.limits import MAX_UPLOAD_BYTES, QUEUE_LENGTH, open_upload
from evotok.app.theme import CSS, THEME
from evotok.commands.conversation import Conversation
from evotok.training.messages import one_line


SHOWN_SIDE = 320
"""Of images in the conversation and of decoded ones, in pixels."""
STATE_SECONDS = 3600
# Generations wait for one another; decoding is short and waits for nobody who draws.
GENERATION = {"concurrency_limit": 1, "concurrency_id": "generation", "api_visibility": "private"}
DECODING = {
    "concurrency_limit": 1,
    "concurrency_id": "decoding",
    "api_visibility": "private",
    "show_progress": "hidden",
}
AT_ONCE = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def build_page(model, processor) -> gr.Blocks:
    """The page over a model and its processor, ready to `launch(**launch_options())`."""
    folder = tempfile.mkdtemp(prefix="evotok-app-")
    examples = find_examples(model.config.vq_config.image_size, Path(folder))
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

        ask.click(_friendly(ask_about), [drawn, chosen, conversation], [tabs, conversation, transcript], **AT_ONCE)
        look.click(_friendly(_look_into), [drawn, chosen], [tabs, source], **AT_ONCE)
    page.queue(max_size=QUEUE_LENGTH, api_open=False)
    return page


def launch_options() -> dict[str, Any]:
    """Arguments of `launch` that go with the page, whatever the address."""
    return {
        "theme": THEME,
        "css": CSS,
        "footer_links": [],
        "max_file_size": MAX_UPLOAD_BYTES,
        "state_session_capacity": 200,
        "show_error": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "app_kwargs": {"middleware": [Middleware(Gate)]},
    }


def _headline(model) -> str:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    size = f"{millions:.0f} million" if millions < 1000 else f"{millions / 1000:.1f} billion"
    config = model.config.vq_config
    return (
        "# EvoTok\nOne model that reads images and draws them.\n\n"
        f"{size} parameters · images of {config.image_size} px in {config.num_positions} positions and "
        f"{config.num_codebooks} levels · {model.device.type}"
    )


def _friendly(function: Callable) -> Callable:
    """The function, whose ValueErrors are said to the visitor in one line and change nothing on the page.

    Any other error is a fault of ours: Gradio shows it as "Error", and its traceback in the terminal only.
    """

    def say(error: ValueError) -> dict:
        gr.Warning(one_line(error), duration=8, title="")
        return gr.skip()

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
    """An image field whose handlers get the path: the project's own loader opens files of strangers, not Gradio's."""
    image = gr.Image(type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"], **kwargs)
    image.preprocess = lambda payload: payload.path if payload else None
    return image


# --- Chat -------------------------------------------------------------------------------------------------------------


def _chat_tab(model, processor, examples: Examples) -> tuple[gr.State, gr.Chatbot]:
    conversation = gr.State(None, time_to_live=STATE_SECONDS)
    transcript = gr.Chatbot(
        show_label=False, height="46vh", min_height=240, layout="bubble", buttons=[], allow_tags=False,
        placeholder="Add an image below and ask about it.", elem_id="transcript", feedback_options=None,
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

    def reply(sent: dict[str, Any], state: Conversation | None) -> Iterator[tuple]:
        state = state or Conversation()
        images = [open_upload(path, box.GRADIO_CACHE) for path in sent.get("files") or []]
        pieces = answer(model, processor, state, sent.get("text") or "", images)
        text = next(pieces)
        shown = _transcript(state, transcript.GRADIO_CACHE)
        yield gr.MultimodalTextbox(value=None), shown, state
        for text in pieces:
            shown[-1]["content"] = text
            yield gr.skip(), shown, state

    asked = box.submit(
        _friendly(reply), [box, conversation], [box, transcript, conversation],
        show_progress="minimal", show_progress_on=transcript, **GENERATION,
    )  # fmt: skip
    stop.click(None, cancels=[asked], **AT_ONCE)
    new.click(lambda: (None, [], None), None, [conversation, transcript, box], cancels=[asked], **AT_ONCE)
    return conversation, transcript


def _transcript(conversation: Conversation, cache: str) -> list[dict[str, Any]]:
    """The conversation as Gradio shows it."""
    shown = []
    for message in conversation.messages:
        for part in message["content"]:
            content = part["text"] if part["type"] == "text" else _thumbnail(part["image"], cache)
            shown.append({"role": message["role"], "content": content})
    return shown + [{"role": "user", "content": _thumbnail(image, cache)} for image in conversation.pending]


def _thumbnail(image: Image.Image, cache: str) -> dict[str, str]:
    small = image.copy()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return {"path": save_pil_to_cache(small, cache, format="png")}


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
            prompt = gr.Textbox(label="Prompt", placeholder="What to draw", lines=2, elem_id="prompt", autofocus=True)
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
                ask = gr.Button("Ask about it", size="sm", min_width=120, scale=0, elem_id="ask")
                look = gr.Button("Look inside it", size="sm", min_width=120, scale=0, elem_id="look")
        with gr.Column(min_width=280, elem_id="draw-settings"):
            guidance = gr.Slider(1, 15, 7.5, step=0.5, label="Guidance (CFG)", elem_id="guidance", buttons=[])
            count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images", elem_id="count", buttons=[])
            with gr.Accordion("More", open=False):
                negative = gr.Textbox(label="Negative prompt", placeholder="What to keep away from", elem_id="negative")
                with gr.Row():
                    seed = gr.Number(None, label="Seed", precision=0, placeholder="another each time", elem_id="seed")
                    heat = gr.Slider(0, 2, 1, step=0.05, label="Temperature", elem_id="temperature", buttons=[])

    def paint(prompt, negative, guidance, count, seed, heat) -> Iterator[tuple]:
        for drawing in draw(model, processor, Order(prompt, negative, guidance, count, seed, heat)):
            yield drawing.images, _status(drawing), drawing, gr.Button(interactive=False)
        if not drawing.finished:
            gr.Warning("The time was up: this is as far as it came.", title="")

    painted = gr.on(
        [go.click, prompt.submit],
        _friendly(paint),
        [prompt, negative, guidance, count, seed, heat],
        [gallery, status, drawn, go],
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

    def encode(path: str | None) -> Inspection | None:
        return inspect(model, processor, open_upload(path, source.GRADIO_CACHE)) if path else None

    def encode_first(path: str | None, depth: int) -> tuple:
        found = encode(path)
        if found is None:
            return None, None, "", None, []
        frame = pd.DataFrame({"level": range(1, levels + 1), "similarity": found.similarity})
        lowest = math.floor(10 * min(found.similarity)) / 10
        captions = [(picture, f"{level}") for level, picture in enumerate(found.maps, start=1)]
        return found, *_decoded(found, depth), gr.LinePlot(frame, y_lim=[lowest, 1]), captions

    def exchange(first: Inspection | None, second: Inspection | None, which: list[int]) -> tuple[list, str]:
        if first is None or second is None:
            return [], ""
        mixtures = swap(model, processor, first.codes, second.codes, sorted(which))
        said = [f"{mixture.to_own:.2f} like before and {mixture.to_other:.2f} like the other" for mixture in mixtures]
        pictures = [_enlarge(mixture.image) for mixture in mixtures]
        return pictures, f"Meaning of the first image now: {said[0]}; of the other: {said[1]}."

    encoded = source.change(_friendly(encode_first), [source, depth], [first, decoded, figure, plot, maps], **DECODING)
    also = other.change(_friendly(encode), other, second, **DECODING)
    depth.change(_friendly(_decoded), [first, depth], [decoded, figure], **AT_ONCE)
    for follow in (encoded.then, also.then, which.change):
        follow(_friendly(exchange), [first, second, which], [swapped, likeness], **DECODING)
    return source


def _decoded(found: Inspection | None, depth: int) -> tuple[Image.Image | None, str]:
    """Picture of the first `depth` levels, and how good it is."""
    if found is None:
        return None, ""
    depth = min(max(int(depth), 1), len(found.images))
    return _enlarge(
        found.images[depth - 1]
    ), f"{depth} of {len(found.images)} levels · PSNR {found.psnr[depth - 1]:.1f} dB"


def _enlarge(image: Image.Image) -> Image.Image:
    side = max(SHOWN_SIDE, image.width)
    return image.resize((side, side), Image.Resampling.LANCZOS)
