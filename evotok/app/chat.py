"""The tab Chat: questions about images, answered word by word."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from PIL import Image
from transformers import StoppingCriteriaList, TextIteratorStreamer

from evotok.app.limits import MAX_IMAGES, MAX_NEW_TOKENS, TIME_LIMIT, check_text
from evotok.app.running import Stop, steps
from evotok.commands.conversation import Conversation
from evotok.inference import read_chat


def answer(
    model,
    processor,
    conversation: Conversation,
    question: str,
    images: Sequence[Image.Image] = (),
    seconds: float = TIME_LIMIT,
) -> Iterator[str]:
    """The answer so far, again and again while it grows; both turns are in the conversation at once.

    A reader who leaves keeps what was said until then. After an error the conversation is as before.

    Args:
        images: shown with the question, after those pending.

    Raises:
        ValueError: no question, one that is too long, too many images, or more than fits into the context.
    """
    question = check_text(question, "The question")
    if not question:
        raise ValueError("Write a question first.")
    if conversation.num_images + len(images) > MAX_IMAGES:
        raise ValueError(f"A conversation holds at most {MAX_IMAGES} images: begin a new one.")
    before = replace(conversation)
    asked = replace(before, pending=[*before.pending, *images]).asked(question)
    inputs, room = read_chat(model, processor, asked)
    stop = Stop(seconds)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def work() -> None:
        model.generate(
            **inputs,
            max_new_tokens=min(MAX_NEW_TOKENS, room),
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([stop]),
        )

    reply = {"type": "text", "text": ""}
    conversation.messages, conversation.pending = [*asked, {"role": "assistant", "content": [reply]}], []
    try:
        for piece in steps(work, streamer, stop):
            reply["text"] += piece
            yield reply["text"]
    except Exception:
        conversation.messages, conversation.pending = before.messages, before.pending
        raise
    reply["text"] = reply["text"].strip() or "(no answer)"
    yield reply["text"]
