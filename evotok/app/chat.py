"""The tab Chat: questions about images, answered word by word, by a model here or by a server."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from transformers import StoppingCriteriaList, TextIteratorStreamer

from evotok.app.examples import ANYTHING, Scope
from evotok.app.limits import MAX_IMAGES, MAX_NEW_TOKENS, TIME_LIMIT, check_text
from evotok.app.running import Stop, steps
from evotok.commands.conversation import Conversation, without_objections
from evotok.inference import read_chat
from evotok.serving.client import ServerClient


def answer(
    model,
    processor,
    conversation: Conversation,
    question: str,
    images: Sequence[Image.Image] = (),
    seconds: float = TIME_LIMIT,
    scope: Scope = ANYTHING,
) -> Iterator[str]:
    """Yields the answer so far, first an empty one, while it grows; both turns are in the conversation at once.

    A reader who leaves keeps what was generated until then. After an error the conversation is as before. What the
    model cannot answer it is not asked: the answer says why.

    Args:
        model: in evaluation mode; or a `ServerClient`, with `processor` None.
        images: shown with the question, after those pending.
        scope: what the model can answer.

    Raises:
        ValueError: no question, one that is too long, too many images, or more than fits into the context.
    """
    question = check_text(question, "The question")
    if not question:
        raise ValueError("Write a question first.")
    if len(conversation.images) + len(images) > MAX_IMAGES:
        raise ValueError(f"A conversation holds at most {MAX_IMAGES} images: begin a new one.")
    before = replace(conversation)
    asked = replace(before, pending=[*before.pending, *images]).asked(question)
    if objection := scope.objection(question, [*before.images, *images]):
        reply = {"role": "assistant", "content": [{"type": "text", "text": objection}], "objection": True}
        conversation.messages, conversation.pending = [*asked, reply], []
        yield objection
        return
    messages = without_objections(asked)
    pieces = _served(model, messages, seconds) if processor is None else _generated(model, processor, messages, seconds)
    reply = {"type": "text", "text": ""}
    conversation.messages, conversation.pending = [*asked, {"role": "assistant", "content": [reply]}], []
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


def _generated(model, processor, messages: list[dict[str, Any]], seconds: float) -> Iterator[str]:
    """Text as the model generates it; raises ValueError at once for messages that do not fit into its context."""
    inputs, room = read_chat(model, processor, messages)
    stop = Stop(seconds)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def work() -> None:
        model.generate(
            **inputs,
            max_new_tokens=min(MAX_NEW_TOKENS, room),
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([stop]),
        )

    return steps(work, streamer, stop)


def _served(client: ServerClient, messages: list[dict[str, Any]], seconds: float) -> Iterator[str]:
    """Text as it arrives from a server, which stops when nobody reads any more."""
    end = time.monotonic() + seconds
    for piece in client.chat(messages, MAX_NEW_TOKENS):
        yield piece
        if time.monotonic() > end:
            return
