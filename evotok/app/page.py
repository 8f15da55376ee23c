"""The page: its tabs, and the handlers that send images from one to another."""

from pathlib import Path

import gradio as gr

from evotok.app.chat import build_chat_tab, show_transcript
from evotok.app.events import DECODING, show_errors
from evotok.app.examples import find_examples
from evotok.app.generate import Progress, build_generate_tab, selected_image
from evotok.app.inside import build_inside_tab
from evotok.app.limits import QUEUE_LENGTH, STATE_SECONDS
from evotok.conversation import Conversation
from evotok.serving.client import ServerClient


def build_page(model, processor, folder: Path) -> gr.Blocks:
    """Builds the page of a model and its processor, or of a `ServerClient` and None, without the tab Look inside.

    Args:
        folder: for the images of the examples.
    """
    is_served = processor is None
    examples = find_examples(model.image_size if is_served else model.config.vq_config.image_size, folder)
    with gr.Blocks(title="EvoTok", analytics_enabled=False, delete_cache=(STATE_SECONDS, STATE_SECONDS)) as page:
        gr.Markdown(_headline(model), elem_id="title")
        with gr.Tabs() as tabs:
            with gr.Tab("Chat", id="chat"):
                conversation, transcript = build_chat_tab(model, processor, examples)
            with gr.Tab("Generate", id="generate"):
                generated, selected, ask, look = build_generate_tab(model, processor, examples)
            if not is_served:
                with gr.Tab("Look inside", id="inside"):
                    source = build_inside_tab(model, processor, examples)

        def ask_about(generated: Progress | None, selected: int, state: Conversation | None) -> tuple:
            state = state or Conversation()
            state.pending = [selected_image(generated, selected)]
            return gr.Tabs(selected="chat"), state, show_transcript(state, transcript.GRADIO_CACHE)

        def look_into(generated: Progress | None, selected: int) -> tuple:
            return gr.Tabs(selected="inside"), selected_image(generated, selected)

        outputs = [tabs, conversation, transcript]
        ask.click(show_errors(ask_about), [generated, selected, conversation], outputs, **DECODING)
        if not is_served:
            look.click(show_errors(look_into), [generated, selected], [tabs, source], **DECODING)
    page.queue(max_size=QUEUE_LENGTH, api_open=False)
    return page


def _headline(model) -> str:
    if isinstance(model, ServerClient):
        return f"# EvoTok\nOne model that understands and generates images.\n\n`{model.model}` at `{model.url}`"
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    size = f"{millions:.0f} million" if millions < 1000 else f"{millions / 1000:.1f} billion"
    config = model.config.vq_config
    return (
        "# EvoTok\nOne model that understands and generates images.\n\n"
        f"{size} parameters · images of {config.image_size} px in {config.num_positions} positions and "
        f"{config.num_codebooks} levels · {model.device.type}"
    )
