"""The tab Chat: questions about images, answered word by word."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from PIL import Image
from transformers import StoppingCriteriaList, TextIteratorStreamer

from evotok.app.examples import ANYTHING, Scope
from evotok.app.limits import MAX_IMAGES, MAX_NEW_TOKENS, TIME_LIMIT, check_text
from evotok.app.running import Stop, steps
from evotok.commands.conversation import Conversation, without_objections
from evotok.inference import read_chat


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
    inputs, room = read_chat(model, processor, without_objections(asked))
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
    yield ""
    try:
        for piece in steps(work, streamer, stop):
            reply["text"] += piece
            yield reply["text"]
    except Exception:
        conversation.messages, conversation.pending = before.messages, before.pending
        raise
    reply["text"] = reply["text"].strip() or "(no answer)"
    yield reply["text"]
