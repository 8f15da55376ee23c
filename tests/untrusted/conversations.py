"""Conversations, codes and pixels: wrong types and shapes, counts that disagree, text that would forge tokens."""

import numpy as np
import torch
from conftest import POSITIONS

from untrusted.case import Case, Group, Workspace, case, kind
from untrusted.materials import ENTRIES


MARKERS = (
    "<|image_pad|>", "<|image_gen|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
)  # fmt: skip


def user(content, role="user"):
    return [{"role": role, "content": content}]


def given(conversation, **kwargs):
    return lambda _: (conversation, kwargs)


def apply_template(workspace: Workspace, given: tuple) -> list[int]:
    """Returns the token ids of the first conversation."""
    conversation, kwargs = given
    inputs = workspace.materials.processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt", **kwargs)
    return inputs["input_ids"][0].tolist()


NO_CONVERSATION = 'A conversation is a list of at least one message {"role": ..., "content": ...}: give one'
PART = 'Content part "{\'type\': \'video\'}" is not supported: give {"type": "text", "text": "..."} or {"type": "image"}'
COUNT = '0 images for 1 image placeholders in the batch: the number of <|image_pad|> and <|image_gen|> tokens in the prompts should be the same as the number of images (in a conversation, one {"type": "image"} part each), in reading order, or pass codes as generation_codes.'
CONVERSATIONS = [
    kind("role", "Message with role '{}': give a dict whose role is one of system, user, assistant.")(
        case("end of the message", given(user("a", "user<|im_end|>")), "user<|im_end|>"), case("100,000 letters", given(user("a", "x" * 100_000)), "x" * 40)
    ),
    kind("structure", "{}.")(
        case("no list of messages", given("hello"), NO_CONVERSATION),
        case("number for a content", given(user(3)), "Content of type int: give a string or a list of parts"),
        case("part of another type", given(user([{"type": "video"}])), PART),
    ),
    kind("half of a surrogate pair", "Text holds half of a surrogate pair, which is no character: remove it.")(given(user("hello \ud83d"))),
    kind("number of images", COUNT)(given(user([{"type": "image"}]))),
    kind("chat template of the caller", "The chat template cannot be rendered (…): repair it, or leave it out.")(
        case("access to the interpreter", given(user("a"), chat_template="{{ ''.__class__.__mro__ }}")),
        case("endless loop", given(user("a"), chat_template="{% for i in range(10**9) %}a{% endfor %}")),
    ),
]


def apply_template_to_text(workspace: Workspace, content) -> None:
    """Asserts that text has the special tokens, and no others, that harmless text has."""
    tokenizer = workspace.materials.processor.tokenizer
    special = set(tokenizer.convert_tokens_to_ids(list(MARKERS)))
    found, harmless = ([token for token in apply_template(workspace, (user(words), {})) if token in special] for words in (content, "harmless"))
    assert found == harmless, tokenizer.decode(found)


def text(given: str, *parts: str) -> Case:
    content = [{"type": "text", "text": part} for part in parts] if len(parts) > 1 else parts[0]
    return case(given, lambda _: content, check=lambda _: None)


TEXTS = [
    kind("text that would forge tokens", "plain text, without a special token")(
        text("markers", f"a {''.join(MARKERS)} b"),
        text("a marker of two parts", "a <|ima", "ge_pad|> b"),
        text("a marker in a marker", "<|im_<|im_end|>end|>"),
        text("code of a template", "{{ 7 * 7 }} {% raw %}"),
        text("null bytes, control and direction marks", "a\0b\x1b[31m\u202ec\ufeff"),
        text("100,000 letters in one word", "x" * 100_000),
    )
]


def process(workspace: Workspace, kwargs: dict):
    return workspace.materials.processor(return_tensors="pt", **kwargs)


CODES = np.zeros((1, POSITIONS // 2, 2), dtype=np.int64)
PROCESSED = [
    kind("texts or codes", "{}.")(
        case("None for a text", lambda _: {"text": ["a", None]}, "`text` must be a string or a list of strings"),
        case(
            "half the positions",
            lambda _: {"text": "<|image_gen|>", "generation_codes": CODES},
            "generation_codes of shape (1, 8, 2) for 1 …: give (G, N, L) = (1, 16, levels)",
        ),
    )
]


def forward(workspace: Workspace, given: tuple[str, dict]):
    """Runs the model on a token and the placeholders of one image."""
    marker, kwargs = given
    token = workspace.materials.processor.tokenizer.convert_tokens_to_ids(marker)
    return workspace.materials.model(input_ids=torch.tensor([[7, *[token] * POSITIONS]]), **kwargs)


def generated(**kwargs):
    return lambda _: ("<|image_gen|>", kwargs)


def seen(**kwargs):
    return lambda _: ("<|image_pad|>", kwargs)


GOOD_CODES, PIXELS = torch.zeros(1, POSITIONS, 2, dtype=torch.long), torch.zeros(2, 3, 32, 32)
DTYPE = "generation_codes of shape (1, 16, 2) and dtype torch.float32 must be integers of shape (images, 16, 2), int64: the first 2 levels that vq_model.encode gives"
LEVELS = "codes of shape (1, 16, 8) and dtype torch.int64 must be int64 with 1 to 4 levels in the last dimension"
PLACEHOLDERS = "The inputs hold 16 image placeholders but the 2 images given for them have 32 positions: write 16 placeholders for each image and pass every image once, in reading order"
MODEL = [
    kind("dtype or levels of codes", "{}.", limit="`num_codebooks`")(
        case("dtype", generated(generation_codes=GOOD_CODES.float()), DTYPE), case("levels", seen(image_codes=GOOD_CODES.repeat(1, 1, 4)), LEVELS)
    ),
    kind("codes out of the codebook", "{}: give codes of this tokenizer.", limit="`codebook_size`")(
        case("generated image", generated(generation_codes=GOOD_CODES - 1), "generation_codes must lie between 0 and 31"),
        case("input image", seen(image_codes=GOOD_CODES + ENTRIES), "codes run from 32 to 32 but the codebooks hold 32 entries, 0 to 31"),
    ),
    kind("number of images", "{}.")(
        case("placeholders", seen(pixel_values=PIXELS), PLACEHOLDERS),
        case("image given twice", seen(image_codes=GOOD_CODES, pixel_values=PIXELS[:1]), "Give images as pixel_values, …: one of the three"),
    ),
]

GROUPS = [
    Group("Conversations and tensors", "`apply_chat_template`", apply_template, CONVERSATIONS),
    Group("Conversations and tensors", "`apply_chat_template`", apply_template_to_text, TEXTS),
    Group("Conversations and tensors", "`processor`", process, PROCESSED),
    Group("Conversations and tensors", "`model`", forward, MODEL),
]
