"""The tab Chat: questions about images, answered word by word."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image
from transformers import StoppingCriteriaList, TextIteratorStreamer

from evotok.app.limits import MAX_IMAGES, MAX_NEW_TOKENS, TIME_LIMIT, check_text
from evotok.app.running import Stop, steps


@dataclass
class Conversation:
    """What was said so far.

    Args:
        messages: turns of user and assistant in turn, as the chat template reads them.
        pending: images that go with the next question.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    pending: list[Image.Image] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """Images shown so far, those pending too."""
        parts = [part for message in self.messages for part in message["content"]]
        return sum(part["type"] == "image" for part in parts) + len(self.pending)


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
    content = [{"type": "image", "image": image} for image in [*conversation.pending, *images]]
    asked = [*conversation.messages, {"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(
        asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    length, limit = inputs["input_ids"].shape[1], model.config.text_config.max_position_embeddings
    if length >= limit:
        raise ValueError(
            f"The conversation has {length} tokens, this model reads fewer than {limit}: shorten the question, or "
            "begin a new conversation."
        )
    stop = Stop(seconds)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def work() -> None:
        model.generate(
            **inputs,
            max_new_tokens=min(MAX_NEW_TOKENS, limit - length),
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
