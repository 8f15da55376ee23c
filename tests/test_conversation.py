"""The state of a conversation."""

import pytest
from PIL import Image

from evotok.conversation import Conversation, rewind


def test_rewind_returns_a_question_with_its_images():
    image = Image.new("RGB", (4, 4))
    messages = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "one?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
        {"role": "user", "content": [{"type": "text", "text": "two?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
    ]
    conversation = Conversation(messages)
    for index, (kept, question) in enumerate([(0, "one?")] * 3 + [(2, "two?")] * 2):
        before, found = rewind(conversation, index)
        assert (before.messages, found) == (messages[:kept], question)
        assert before.pending == ([image] if kept == 0 else [])
    for index in (-1, 5):
        with pytest.raises(ValueError, match="ask again"):
            rewind(conversation, index)
