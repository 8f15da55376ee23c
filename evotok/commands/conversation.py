"""A conversation about images with a model, as `evotok chat` and the page hold it: turns, and the prompt they make."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from PIL import Image
    from transformers import BatchFeature


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


def read_prompt(model, processor, messages: list[dict[str, Any]]) -> tuple["BatchFeature", int]:
    """What `generate` takes for the next answer, and how many tokens there is room for.

    Raises:
        ValueError: the messages do not fit into the model's context.
    """
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    length, limit = inputs["input_ids"].shape[1], model.config.text_config.max_position_embeddings
    if length >= limit:
        raise ValueError(
            f"The conversation has {length} tokens, the model reads fewer than {limit}: shorten the question, show "
            "fewer images, or begin anew."
        )
    return inputs, limit - length
