"""A conversation about images with a model, as `evotok chat` and the page hold it: its turns."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Conversation:
    """What was said so far.

    Args:
        messages: turns of user and assistant, one after the other, as the chat template reads them.
        pending: images that go with the next question.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    pending: list["Image.Image"] = field(default_factory=list)

    @property
    def images(self) -> list["Image.Image"]:
        """Images shown so far, and those pending."""
        return [part["image"] for part in self._parts() if part["type"] == "image"] + self.pending

    def _parts(self) -> list[dict[str, Any]]:
        return [part for message in self.messages for part in message["content"]]

    def show(self, *images: "Image.Image") -> None:
        """Images that go with the next question."""
        self.pending += images

    def asked(self, question: str) -> list[dict[str, Any]]:
        """The messages with a question at their end, which shows what is pending; the conversation stays as it is."""
        shown = [{"type": "image", "image": image} for image in self.pending]
        return [*self.messages, {"role": "user", "content": [*shown, {"type": "text", "text": question}]}]


def rewind(conversation: Conversation, index: int) -> tuple[Conversation, str]:
    """Goes back to before a question.

    Args:
        index: of one of the parts that the conversation shows, counted over all turns; of the question, its images, or
            the answer to it.

    Returns:
        The conversation before the question, with its images pending, and the question.

    Raises:
        ValueError: there is no such part, or no question before it.
    """
    turns = [turn for turn, message in enumerate(conversation.messages) for _ in message["content"]]
    if not 0 <= index < len(turns):
        raise ValueError("This message is not part of the conversation any more: ask again.")
    turn = turns[index] - (conversation.messages[turns[index]]["role"] == "assistant")
    parts = conversation.messages[turn]["content"]
    images = [part["image"] for part in parts if part["type"] == "image"]
    return Conversation(conversation.messages[:turn], images), parts[-1]["text"]


def without_objections(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out the questions that the model was not asked; their images go with the next question."""
    kept, images = [], []
    for message, following in zip(messages, [*messages[1:], {}], strict=True):
        if message.get("objection"):
            continue
        if following.get("objection"):
            images += [part for part in message["content"] if part["type"] == "image"]
        elif message["role"] == "user":
            kept.append(message | {"content": [*images, *message["content"]]})
            images = []
        else:
            kept.append(message)
    return kept
