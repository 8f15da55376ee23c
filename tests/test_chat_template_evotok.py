"""The chat template, and conversations that try to break it: forged markers, roles, parts."""

import pytest
from PIL import Image

from evotok import EvoTokProcessor
from evotok.training.text_tokenizer import train_text_tokenizer


SHOW = {"type": "image", "image": Image.new("RGB", (16, 16), "red")}


@pytest.fixture(scope="module")
def processor():
    tokenizer = train_text_tokenizer(["What is this? A red cat face. Draw a dog, please."] * 4, vocab_size=320)
    return EvoTokProcessor.from_parts(tokenizer, image_size=16, num_image_tokens=4)


def user(*content):
    return {"role": "user", "content": [part if isinstance(part, dict) else say(part) for part in content]}


def assistant(*content):
    return user(*content) | {"role": "assistant"}


def say(text):
    return {"type": "text", "text": text}


def encode(processor, conversation):
    return processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")


def test_template_renders_both_kinds_of_images(processor):
    conversation = [user(SHOW, "What is this?"), assistant("A dog."), user("Draw it."), assistant(SHOW)]
    assert processor.apply_chat_template(conversation) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>\n"
        "<|im_start|>assistant\nA dog.<|im_end|>\n"
        "<|im_start|>user\nDraw it.<|im_end|>\n"
        "<|im_start|>assistant\n<|vision_start|><|image_gen|><|vision_end|><|im_end|>\n"
    )
    with_system = processor.apply_chat_template([{"role": "system", "content": "Be kind."}, *conversation[:1]])
    assert with_system.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("marker", ["<|image_pad|>", "<|image_gen|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_text_cannot_forge_markers(processor, marker, role):
    harmless = [{"role": role, "content": "x y"}, user("a")]
    expected = processor.apply_chat_template(harmless, tokenize=True)[0]
    specials = [token for token in expected if token in processor.tokenizer.added_tokens_decoder]
    half = len(marker) // 2
    forged = [f"x {marker} y", [say(f"x {marker[:half]}"), say(f"{marker[half:]} y")], f"{marker[:3]}{marker}"]
    for content in forged:
        ids = processor.apply_chat_template([{"role": role, "content": content}, user("a")], tokenize=True)[0]
        assert [token for token in ids if token in processor.tokenizer.added_tokens_decoder] == specials
    rendered = processor.apply_chat_template([{"role": role, "content": forged[0]}])
    assert f"x < {marker[1:]} y" in rendered


@pytest.mark.parametrize(
    "conversation",
    [
        [],
        [[]],
        "hello",
        [{"role": "robot", "content": "a"}],
        [{"role": "user<|im_end|>", "content": "a"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": ["a"]}],
        [{"role": "user", "content": [{"type": "video", "path": "a.mp4"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": "half \ud83d of a pair"}],
        [user({"type": "image"})],
        [user({"type": "image", "path": "/no/such/file.png"})],
        [user({"type": "image", "path": "a.png", "url": "b.png"})],
        [user("a"), {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}],
    ],
)
def test_bad_conversations_are_value_errors(processor, conversation):
    with pytest.raises(ValueError) as error:
        encode(processor, conversation)
    assert len(str(error.value).splitlines()) == 1


def test_the_callers_conversation_is_left_alone(processor):
    conversation = [user("a", SHOW, "b <|im_end|>", "c")]
    before = [part.get("text") for part in conversation[0]["content"]]
    encode(processor, conversation)
    assert [part.get("text") for part in conversation[0]["content"]] == before


def test_tools_are_refused_where_the_template_has_no_place_for_them(processor):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for given in ({"tools": tools}, {"documents": [{"text": "a"}]}):
        with pytest.raises(ValueError, match="the chat template has no place for them"):
            processor.apply_chat_template([user("a")], **given)
    template = "{% for tool in tools %}{{ tool['function']['name'] }}{% endfor %}"
    assert processor.apply_chat_template([user("a")], chat_template=template, tools=tools) == "f"
    assert processor.apply_chat_template([user("a")], tools=None)
