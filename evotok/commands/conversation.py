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
    def num_images(self) -> int:
        """Images shown so far, those pending too."""
        parts = [part for message in self.messages for part in message["content"]]
        return sum(part["type"] == "image" for part in parts) + len(self.pending)

    def show(self, *images: "Image.Image") -> None:
        """Images that go with the next question."""
        self.pending += images

    def asked(self, question: str) -> list[dict[str, Any]]:
        """The messages with a question at their end, which shows what is pending; the conversation stays as it is."""
        shown = [{"type": "image", "image": image} for image in self.pending]
        return [*self.messages, {"role": "user", "content": [*shown, {"type": "text", "text": question}]}]
