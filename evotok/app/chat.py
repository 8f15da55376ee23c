"""The tab Chat: questions about images, answered by a model in this process or by a server."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape as escape_html
from html import unescape
from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from evotok.app.events import FILES, GENERATION, IMMEDIATE, SHOWN_SIDE, show_errors
from evotok.app.examples import UNLIMITED, Examples, Scope
from evotok.app.generate import GenerationArguments, generate
from evotok.app.limits import (
    MAX_IMAGES,
    MAX_NEW_TOKENS,
    STATE_SECONDS,
    TIME_LIMIT,
    check_number,
    check_text,
    open_upload,
)
from evotok.conversation import Conversation, rewind, without_refusals
from evotok.inference import stream_answer
from evotok.serving.client import ServerClient


DRAW_COMMAND = "/draw"


def answer(
    model,
    processor,
    conversation: Conversation,
    question: str,
    images: Sequence[Image.Image] = (),
    seconds: float = TIME_LIMIT,
    scope: Scope = UNLIMITED,
) -> Iterator[str]:
    """Yields the answer so far, an empty one first; question and answer are in the conversation from the start.

    If the iteration stops, the conversation keeps the answer so far; after an error it is as before. The answer to a
    question outside the scope is the reason, without the model.

    Args:
        model: in evaluation mode; or a `ServerClient`, with `processor` None.
        images: input images of the question, after those pending.
        scope: of the model.

    Raises:
        ValueError: no question, one that is too long, too many images, or more than fits into the context.
    """
    question = check_text(question, "The question")
    if not question:
        raise ValueError("Write a question first.")
    if len(conversation.images) + len(images) > MAX_IMAGES:
        raise ValueError(f"A conversation holds at most {MAX_IMAGES} images: start a new one.")
    before = replace(conversation)
    messages = replace(before, pending=[*before.pending, *images]).with_question(question)
    if refusal := scope.refuse_question(question, [*before.images, *images]):
        reply = {"role": "assistant", "content": [{"type": "text", "text": refusal}], "is_refusal": True}
        conversation.messages, conversation.pending = [*messages, reply], []
        yield refusal
        return
    prompt = without_refusals(messages)
    if processor is None:
        pieces = _stream_from_server(model, prompt, seconds)
    else:
        pieces = stream_answer(model, processor, prompt, MAX_NEW_TOKENS, seconds)
    reply = {"type": "text", "text": ""}
    conversation.messages, conversation.pending = [*messages, {"role": "assistant", "content": [reply]}], []
    yield ""
    try:
        for piece in pieces:
            reply["text"] += piece
            yield reply["text"]
    except Exception:
        conversation.messages, conversation.pending = before.messages, before.pending
        raise
    reply["text"] = reply["text"].strip() or "(no answer)"
    yield reply["text"]


def _stream_from_server(client: ServerClient, messages: list[dict[str, Any]], seconds: float) -> Iterator[str]:
    """Yields pieces of a server's answer, until the time limit."""
    end = time.monotonic() + seconds
    for piece in client.chat(messages, MAX_NEW_TOKENS):
        yield piece
        if time.monotonic() > end:
            return


def build_chat_tab(model, processor, examples: Examples) -> tuple[gr.State, gr.Chatbot]:
    """Builds the tab; returns the state of the conversation and its transcript."""
    conversation = gr.State(None, time_to_live=STATE_SECONDS)
    gr.Markdown(examples.scope.chat, elem_classes="hint", elem_id="chat-scope")
    # Plain text: rendered Markdown would fetch images of other sites. HTML is escaped, since Gradio always renders it,
    # with its forms.
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
        {"text": question, "files": [path]} for path, question in zip(examples.images, examples.questions, strict=False)
    ]
    if rows:
        gr.Examples(rows, box, label="Try one", elem_id="chat-examples")
    cache = transcript.GRADIO_CACHE

    def submit(sent: dict[str, Any] | None, state: Conversation | None) -> Iterator[tuple]:
        sent = sent or {}
        images = [open_upload(file["path"], box.GRADIO_CACHE) for file in sent.get("files") or []]
        yield from respond(sent.get("text") or "", state or Conversation(), images)

    def retry(state: Conversation | None, event: gr.RetryData) -> Iterator[tuple]:
        before, question = rewind(state or Conversation(), _part_index(event))
        yield from respond(question, before)

    def edit(state: Conversation | None, event: gr.EditData) -> Iterator[tuple]:
        before, _ = rewind(state or Conversation(), _part_index(event))
        yield from respond(unescape(str(event.value or "")), before)

    def respond(question: str, state: Conversation, images: Sequence[Image.Image] = ()) -> Iterator[tuple]:
        """Shows the question, then the answer while it is generated, or the image of `/draw PROMPT`."""
        command, _, prompt = question.strip().partition(" ")
        if command == DRAW_COMMAND:
            yield from _generate_in_chat(model, processor, prompt, state, cache)
            return
        answers = answer(model, processor, state, question, images, scope=examples.scope)
        text = next(answers)
        shown = show_transcript(state, cache)
        yield gr.MultimodalTextbox(value=None), shown, state
        for text in answers:
            shown[-1]["content"] = escape(text)
            yield gr.skip(), shown, state

    outputs = [box, transcript, conversation]
    progress = {"show_progress": "minimal", "show_progress_on": transcript}
    running: list[dict[str, Any]] = [
        box.submit(show_errors(submit), [box, conversation], outputs, **progress, **FILES, **GENERATION),
        transcript.retry(show_errors(retry), conversation, outputs, **progress, **GENERATION),
        transcript.edit(show_errors(edit), conversation, outputs, **progress, **GENERATION),
    ]
    stop.click(None, cancels=running, **IMMEDIATE)
    new.click(lambda: (None, [], None), None, [conversation, transcript, box], cancels=running, **IMMEDIATE)
    return conversation, transcript


def escape(text: str) -> str:
    """Escapes HTML."""
    return escape_html(text, quote=False)


def _part_index(event: gr.EventData) -> int:
    """Returns the index of the part of the transcript that an event refers to; Gradio does not check it."""
    index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
    return int(check_number(index, 0, 10**6, "The message"))


def _generate_in_chat(model, processor, prompt: str, state: Conversation, cache: str) -> Iterator[tuple]:
    """Generates an image and adds it to the next question."""
    before = show_transcript(state, cache) + [{"role": "user", "content": escape(f"{DRAW_COMMAND} {prompt}")}]
    progress = None
    for progress in generate(model, processor, GenerationArguments(prompt, num_images=1)):
        image = {"role": "assistant", "content": _thumbnail(progress.images[0], cache)}
        yield gr.MultimodalTextbox(value=None), [*before, image], gr.skip()
    if progress is None or not progress.is_finished:
        raise ValueError(f"The image was not finished within {TIME_LIMIT:g} seconds: try again.")
    state = replace(state, pending=[*state.pending, progress.images[0]])
    yield gr.skip(), show_transcript(state, cache), state


def show_transcript(conversation: Conversation, cache: str) -> list[dict[str, Any]]:
    """Converts a conversation into the messages of `gr.Chatbot`, a message for each part."""
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
