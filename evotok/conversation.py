"""The state of a conversation about images, in `evotok chat` and on the page."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Conversation:
    """Messages, and images for the next question.

    Args:
        messages: of user and assistant in turn, as the chat template takes them.
        pending: images that go with the next question.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    pending: list["Image.Image"] = field(default_factory=list)

    @property
    def images(self) -> list["Image.Image"]:
        """Returns the images of the messages and the pending ones."""
        parts = (part for message in self.messages for part in message["content"])
        return [part["image"] for part in parts if part["type"] == "image"] + self.pending

    def with_question(self, question: str) -> list[dict[str, Any]]:
        """Returns the messages and a question with the pending images; the conversation stays as it is."""
        images = [{"type": "image", "image": image} for image in self.pending]
        return [*self.messages, {"role": "user", "content": [*images, {"type": "text", "text": question}]}]


def rewind(conversation: Conversation, index: int) -> tuple[Conversation, str]:
    """Returns the conversation before a question, with the images of the question pending, and the question.

    Args:
        index: of a part, counted over all messages; of the question, its images, or the answer to it.

    Raises:
        ValueError: there is no such part.
    """
    numbers = [number for number, message in enumerate(conversation.messages) for _ in message["content"]]
    if not 0 <= index < len(numbers):
        raise ValueError("This message is not part of the conversation any more: ask again.")
    number = numbers[index] - (conversation.messages[numbers[index]]["role"] == "assistant")
    parts = conversation.messages[number]["content"]
    images = [part["image"] for part in parts if part["type"] == "image"]
    return Conversation(conversation.messages[:number], images), parts[-1]["text"]


def without_refusals(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out refusals and the questions that got them; the images of these go with the next question."""
    kept, images = [], []
    for message, following in zip(messages, [*messages[1:], {}], strict=True):
        if message.get("is_refusal"):
            continue
        if following.get("is_refusal"):
            images += [part for part in message["content"] if part["type"] == "image"]
        elif message["role"] == "user":
            kept.append(message | {"content": [*images, *message["content"]]})
            images = []
        else:
            kept.append(message)
    return kept
