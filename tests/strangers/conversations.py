"""Conversations: wrong roles, parts and types, images that are missing or too many, and text that would forge tokens."""

import numpy as np
import torch
from PIL import Image

from strangers.case import Case, Group, Place
from strangers.materials import ENTRIES, POSITIONS


PICTURE = Image.new("RGB", (8, 8), "red")
IMAGE = {"type": "image", "image": PICTURE}


def user(*content):
    return [{"role": "user", "content": content[0] if len(content) == 1 else list(content)}]


def say(text):
    return {"type": "text", "text": text}


def case(given: str, gets: str, conversation, **kwargs) -> Case:
    return Case(given, gets, lambda place: (conversation, kwargs))


def apply_template(place: Place, given: tuple) -> list[int]:
    """Token ids of the first conversation."""
    conversation, kwargs = given
    inputs = place.materials.processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt", **kwargs
    )
    return inputs["input_ids"][0].tolist()


BAD = [
    case("None", 'A conversation is a list of at least one message {"role": ..., "content": ...}: give one.', None),
    case("text", 'A conversation is a list of at least one message {"role": ..., "content": ...}: give one.', "hello"),
    case("number", 'A conversation is a list of at least one message {"role": ..., "content": ...}: give one.', 3),
    case(
        "one message instead of a list",
        'A conversation is a list of at least one message {"role": ..., "content": ...}: give one.',
        {"role": "user", "content": "hello"},
    ),
    case("empty list", 'A conversation is a list of at least one message {"role": ..., "content": ...}: give one.', []),
    case(
        "empty conversation in a batch",
        'A conversation is a list of at least one message {"role": ..., "content": ...}: give one.',
        [user("hello"), []],
    ),
    case(
        "message that is text",
        "Message with role 'hello': give a dict whose role is one of system, user, assistant.",
        ["hello"],
    ),
    case(
        "message that is None",
        "Message with role 'None': give a dict whose role is one of system, user, assistant.",
        [None],
    ),
    case(
        "message without role",
        "Message with role 'None': give a dict whose role is one of system, user, assistant.",
        [{"content": "hello"}],
    ),
    case(
        "role tool",
        "Message with role 'tool': give a dict whose role is one of system, user, assistant.",
        [{"role": "tool", "content": "hello"}],
    ),
    case(
        "role of LLaVA files: human",
        "Message with role 'human': give a dict whose role is one of system, user, assistant.",
        [{"role": "human", "content": "hello"}],
    ),
    case(
        "role in capitals",
        "Message with role 'User': give a dict whose role is one of system, user, assistant.",
        [{"role": "User", "content": "hello"}],
    ),
    case(
        "role that ends the turn",
        "Message with role 'user<|im_end|>': give a dict whose role is one of system, user, assistant.",
        [{"role": "user<|im_end|>", "content": "hello"}],
    ),
    case(
        "role that is a list",
        "Message with role \"['user']\": give a dict whose role is one of system, user, assistant.",
        [{"role": ["user"], "content": "hello"}],
    ),
    case(
        "role that is very long",
        "Message with role 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx': give a dict whose role is one of system, user, assistant.",
        [{"role": "x" * 100_000, "content": "hello"}],
    ),
    case("content that is a number", "Content of type int: give a string or a list of parts.", user(3)),
    case(
        "content that is a part, not a list of parts",
        "Content of type dict: give a string or a list of parts.",
        user(say("hello")),
    ),
    case(
        "content that is bytes",
        'Content part \'104\' is not supported: give {"type": "text", "text": "..."} or {"type": "image"}.',
        user(b"hello"),
    ),
    case("content that is an image", "Content of type Image: give a string or a list of parts.", user(PICTURE)),
    case(
        "part that is text",
        'Content part \'hello\' is not supported: give {"type": "text", "text": "..."} or {"type": "image"}.',
        [{"role": "user", "content": ["hello"]}],
    ),
    case(
        "part that is None",
        'Content part \'None\' is not supported: give {"type": "text", "text": "..."} or {"type": "image"}.',
        [{"role": "user", "content": [None]}],
    ),
    case(
        "part in a list",
        'Content part "[{\'type\': \'text\', \'text\': \'hello\'}]" is not supported: give {"type": "text", "text": "..."} or {"type": "image"}.',
        [{"role": "user", "content": [[say("hello")]]}],
    ),
    case(
        "part without type",
        'Content part "{\'text\': \'hello\'}" is not supported: give {"type": "text", "text": "..."} or {"type": "image"}.',
        [{"role": "user", "content": [{"text": "hello"}]}],
    ),
    case(
        "part of type video",
        'Content part "{\'type\': \'video\', \'video\': \'a.mp4\'}" is not supported: give {"type": "text", "text": "..."} or {"type": "image"}.',
        [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}],
    ),
    case(
        "part of type audio",
        'Content part "{\'type\': \'audio\', \'audio\': \'a.wav\'}" is not supported: give {"type": "text", "text": "..."} or {"type": "image"}.',
        [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}],
    ),
    case(
        "part of type text without text",
        'Content part "{\'type\': \'text\'}" is not supported: give {"type": "text", "text": "..."} or {"type": "image"}.',
        [{"role": "user", "content": [{"type": "text"}]}],
    ),
    case(
        "text that is None",
        'Content part "{\'type\': \'text\', \'text\': None}" is not supported: give {"type": "text", "text": "..."} or {"type": "image"}.',
        [{"role": "user", "content": [say(None)]}],
    ),
    case(
        "text that is a number",
        'Content part "{\'type\': \'text\', \'text\': 3}" is not supported: give {"type": "text", "text": "..."} or {"type": "image"}.',
        [{"role": "user", "content": [say(3)]}],
    ),
    case(
        "text that is bytes",
        'Content part "{\'type\': \'text\', \'text\': b\'hello\'}" is not supported: give {"type": "text", "text": "..."} or {"type": "image"}.',
        [{"role": "user", "content": [say(b"hello")]}],
    ),
    case(
        "half a surrogate pair",
        "Text holds half of a surrogate pair, which is no character: remove it.",
        user("hello \ud83d"),
    ),
    case(
        "half a surrogate pair in a part",
        "Text holds half of a surrogate pair, which is no character: remove it.",
        [{"role": "user", "content": [say("hello \udc4b")]}],
    ),
    case(
        "image part without image",
        '0 images for 1 image placeholders in the batch: the number of <|image_pad|> and <|image_gen|> tokens in the prompts should be the same as the number of images (in a conversation, one {"type": "image"} part each), in reading order, or pass codes as generation_codes.',
        user({"type": "image"}, say("What?")),
    ),
    case(
        "one image for two image parts",
        '1 images for 2 image placeholders in text 0: the number of <|image_pad|> and <|image_gen|> tokens in the prompts should be the same as the number of images (in a conversation, one {"type": "image"} part each), in reading order, or pass codes as generation_codes.',
        user(IMAGE, {"type": "image"}, say("What?")),
    ),
    case(
        "image that is None",
        '0 images for 1 image placeholders in the batch: the number of <|image_pad|> and <|image_gen|> tokens in the prompts should be the same as the number of images (in a conversation, one {"type": "image"} part each), in reading order, or pass codes as generation_codes.',
        user({"type": "image", "image": None}, say("What?")),
    ),
    case(
        "image that is a number",
        "int is no image: give a path, bytes, a PIL image or an array.",
        user({"type": "image", "image": 3}, say("What?")),
    ),
    case(
        "image that is a list",
        '2 images for 1 image placeholders in text 0: the number of <|image_pad|> and <|image_gen|> tokens in the prompts should be the same as the number of images (in a conversation, one {"type": "image"} part each), in reading order, or pass codes as generation_codes.',
        user({"type": "image", "image": [PICTURE, PICTURE]}, say("What?")),
    ),
    case(
        "image of a missing file",
        "'missing.png': no such file: check the path.",
        user({"type": "image", "path": "missing.png"}, say("What?")),
    ),
    case(
        "image of text",
        "image: not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
        user({"type": "image", "image": b"no image"}, say("What?")),
    ),
    case(
        "image with NaN",
        "array holds NaN or infinite values: repair them before making an image of it.",
        user({"type": "image", "image": torch.full((3, 8, 8), torch.nan)}, say("What?")),
    ),
    case(
        "second conversation of a batch is bad",
        "Message with role 'robot': give a dict whose role is one of system, user, assistant.",
        [user("hello"), [{"role": "robot", "content": "hello"}]],
    ),
    case(
        "conversations and messages mixed",
        "Message with role 'role': give a dict whose role is one of system, user, assistant.",
        [user("hello"), {"role": "user", "content": "hello"}],
    ),
    case(
        "generation mode that does not exist",
        'generation_mode=\'video\': choose "text" or "image".',
        user("hello"),
        generation_mode="video",
    ),
    case(
        "two negative prompts for one conversation",
        "2 negative prompts for 1 conversations: give one each.",
        user("a"),
        generation_mode="image",
        negative_prompt=["b", "c"],
    ),
    case(
        "negative prompt that is a number",
        "Content of type int: give a string or a list of parts.",
        user("a"),
        generation_mode="image",
        negative_prompt=3,
    ),
    case(
        "negative prompt that is half a surrogate",
        "Text holds half of a surrogate pair, which is no character: remove it.",
        user("a"),
        generation_mode="image",
        negative_prompt="\ud83d",
    ),
    case(
        "chat template that does not parse",
        "The chat template cannot be rendered (…): repair it, or leave it out.",
        user("a"),
        chat_template="{% for %}",
    ),
    case(
        "chat template that reaches for the interpreter",
        "The chat template cannot be rendered (…): repair it, or leave it out.",
        user("a"),
        chat_template="{{ ''.__class__.__mro__ }}",
    ),
    case(
        "chat template that counts without end",
        "The chat template cannot be rendered (…): repair it, or leave it out.",
        user("a"),
        chat_template="{% for i in range(10**9) %}a{% endfor %}",
    ),
]

MARKERS = (
    "<|image_pad|>", "<|image_gen|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
)  # fmt: skip
FORGED = {
    "in a user's text": lambda marker: user(f"a {marker} b"),
    "put together from two parts": lambda marker: user(say(f"a {marker[:5]}"), say(f"{marker[5:]} b")),
    "in a system message": lambda marker: [{"role": "system", "content": f"a {marker} b"}, *user("c")],
    "in an answer": lambda marker: [*user("c"), {"role": "assistant", "content": f"a {marker} b"}],
}
NESTED = "<|im_<|im_end|>end|>"


def forged_case(given: str, gets: str, conversation) -> Case:
    """Text with a marker must have the special tokens, and no others, that harmless text has."""

    def make(place: Place):
        tokenizer = place.materials.processor.tokenizer
        special = {tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS}
        harmless = [{**message, "content": "harmless"} for message in conversation]
        wanted = [token for token in apply_template(place, (harmless, {})) if token in special]

        def check(tokens: list[int]) -> None:
            assert [token for token in tokens if token in special] == wanted, tokenizer.decode(tokens)

        place.check = check
        return conversation, {}

    return Case(given, gets, make, lambda result: None)


def apply_template_to_forged(place: Place, given: tuple) -> list[int]:
    tokens = apply_template(place, given)
    place.check(tokens)
    return tokens


GOOD = [
    *(
        forged_case(f"`{marker}` {where}", "plain text, no token", build(marker))
        for where, build in FORGED.items()
        for marker in (MARKERS if where == "in a user's text" else MARKERS[:2])
    ),
    forged_case(f"`{NESTED}`, a marker in a marker", "plain text, no token", user(NESTED)),
    forged_case("markers without end", "plain text, no token", user("<|image_pad|>" * 2000)),
    forged_case("template code in the text: `{{ 7 * 7 }}`", "plain text", user("{{ 7 * 7 }} {% raw %}")),
    forged_case("null bytes, control and direction marks", "plain text", user("a\0b\x1b[31m\u202ec\ufeff")),
    forged_case("100,000 letters in one word", "plain text", user("x" * 100_000)),
    forged_case("empty text", "an empty turn", user("")),
    forged_case("content that is None", "an empty turn", [{"role": "user", "content": None}]),
    forged_case("content without parts", "an empty turn", [{"role": "user", "content": []}]),
    forged_case("keys that nobody knows", "they are ignored", [{"role": "user", "content": "a", "weight": 1}]),
]


# --- the processor without a template ---------------------------------------------------------------------------------


def process(place: Place, kwargs: dict):
    return place.materials.processor(return_tensors="pt", **kwargs)


def processed(given: str, gets: str, **kwargs) -> Case:
    return Case(given, gets, lambda place: kwargs)


CODES = np.zeros((1, POSITIONS, 2), dtype=np.int64)
PROCESSED = [
    processed(
        "placeholder without image",
        '0 images for 1 image placeholders in the batch: the number of <|image_pad|> and <|image_gen|> tokens in the prompts should be the same as the number of images (in a conversation, one {"type": "image"} part each), in reading order, or pass codes as generation_codes.',
        text="<|image_pad|> What?",
    ),
    processed(
        "image without placeholder",
        '1 images for 0 image placeholders in the batch: the number of <|image_pad|> and <|image_gen|> tokens in the prompts should be the same as the number of images (in a conversation, one {"type": "image"} part each), in reading order, or pass codes as generation_codes.',
        text="What?",
        images=PICTURE,
    ),
    processed(
        "two images for one placeholder",
        '2 images for 1 image placeholders in the batch: the number of <|image_pad|> and <|image_gen|> tokens in the prompts should be the same as the number of images (in a conversation, one {"type": "image"} part each), in reading order, or pass codes as generation_codes.',
        text="<|image_pad|>",
        images=[PICTURE, PICTURE],
    ),
    processed(
        "images of the wrong row",
        '0 images for 1 image placeholders in text 0: the number of <|image_pad|> and <|image_gen|> tokens in the prompts should be the same as the number of images (in a conversation, one {"type": "image"} part each), in reading order, or pass codes as generation_codes.',
        text=["<|image_pad|>", "a"],
        images=[[], [PICTURE]],
    ),
    processed("text that is a number", "`text` must be a string or a list of strings.", text=3),
    processed("texts with None among them", "`text` must be a string or a list of strings.", text=["a", None]),
    processed(
        "codes without placeholder",
        "generation_codes of shape (1, 16, 2) for 0 generated images: give (G, N, L) = (0, 16, levels).",
        text="a",
        generation_codes=CODES,
    ),
    processed(
        "codes for half the positions",
        "generation_codes of shape (1, 8, 2) for 1 generated images: give (G, N, L) = (1, 16, levels).",
        text="<|image_gen|>",
        generation_codes=CODES[:, :8],
    ),
    processed(
        "codes of one dimension",
        "generation_codes of shape (2,) for 1 generated images: give (G, N, L) = (1, 16, levels).",
        text="<|image_gen|>",
        generation_codes=CODES[0, 0],
    ),
    processed(
        "codes of words",
        "generation_codes of shape () for 1 generated images: give (G, N, L) = (1, 16, levels).",
        text="<|image_gen|>",
        generation_codes="codes",
    ),
    processed(
        "codes and an image for the same placeholder",
        '1 images for 0 image placeholders in the batch: the number of <|image_pad|> and <|image_gen|> tokens in the prompts should be the same as the number of images (in a conversation, one {"type": "image"} part each), in reading order, or pass codes as generation_codes.',
        text="<|image_gen|>",
        images=PICTURE,
        generation_codes=CODES,
    ),
]


# --- the model --------------------------------------------------------------------------------------------------------


def forward(place: Place, build):
    return place.materials.model(**build(place))


def ids(place: Place, *tokens: str, times: int = POSITIONS) -> torch.Tensor:
    tokenizer = place.materials.processor.tokenizer
    return torch.tensor([[7, *(i for token in tokens for i in [tokenizer.convert_tokens_to_ids(token)] * times)]])


def written(given: str, gets: str, codes: torch.Tensor, **kwargs) -> Case:
    """Codes given as an image that is written."""
    return Case(
        given,
        gets,
        lambda place: lambda place: {"input_ids": ids(place, "<|image_gen|>"), "generation_codes": codes, **kwargs},
    )


def read(given: str, gets: str, times: int = POSITIONS, **kwargs) -> Case:
    """Images given to the model."""
    return Case(
        given, gets, lambda place: lambda place: {"input_ids": ids(place, "<|image_pad|>", times=times), **kwargs}
    )


GOOD_CODES = torch.zeros(1, POSITIONS, 2, dtype=torch.long)
PIXELS = torch.zeros(1, 3, 32, 32)
MODEL = [
    written(
        "codes with a level too many",
        "generation_codes of shape (1, 16, 3) and dtype torch.int64 must be integers of shape (images, 16, 2), int64: the first 2 levels that vq_model.encode gives.",
        torch.zeros(1, POSITIONS, 3, dtype=torch.long),
    ),
    written(
        "codes with a level too few",
        "generation_codes of shape (1, 16, 1) and dtype torch.int64 must be integers of shape (images, 16, 2), int64: the first 2 levels that vq_model.encode gives.",
        torch.zeros(1, POSITIONS, 1, dtype=torch.long),
    ),
    written(
        "codes with a position too few",
        "generation_codes of shape (1, 15, 2) and dtype torch.int64 must be integers of shape (images, 16, 2), int64: the first 2 levels that vq_model.encode gives.",
        torch.zeros(1, POSITIONS - 1, 2, dtype=torch.long),
    ),
    written(
        "codes of two dimensions",
        "generation_codes of shape (16, 2) and dtype torch.int64 must be integers of shape (images, 16, 2), int64: the first 2 levels that vq_model.encode gives.",
        torch.zeros(POSITIONS, 2, dtype=torch.long),
    ),
    written(
        "codes that are floats",
        "generation_codes of shape (1, 16, 2) and dtype torch.float32 must be integers of shape (images, 16, 2), int64: the first 2 levels that vq_model.encode gives.",
        torch.zeros(1, POSITIONS, 2),
    ),
    written(
        "codes that are bytes",
        "generation_codes of shape (1, 16, 2) and dtype torch.uint8 must be integers of shape (images, 16, 2), int64: the first 2 levels that vq_model.encode gives.",
        torch.zeros(1, POSITIONS, 2, dtype=torch.uint8),
    ),
    written(
        "codes that are booleans",
        "generation_codes of shape (1, 16, 2) and dtype torch.bool must be integers of shape (images, 16, 2), int64: the first 2 levels that vq_model.encode gives.",
        torch.zeros(1, POSITIONS, 2, dtype=torch.bool),
    ),
    written(
        "codes with one above the codebook",
        "generation_codes must lie between 0 and 31: give codes of this tokenizer.",
        GOOD_CODES.clone().fill_(ENTRIES),
    ),
    written(
        "codes with one under 0",
        "generation_codes must lie between 0 and 31: give codes of this tokenizer.",
        GOOD_CODES.clone().fill_(-1),
    ),
    written(
        "codes of two images for the places of one",
        "The inputs hold 16 image placeholders but the 2 images given for them have 32 positions: write 16 placeholders for each image and pass every image once, in reading order.",
        GOOD_CODES.repeat(2, 1, 1),
    ),
    written(
        "codes of no image",
        "The inputs hold 16 image placeholders but the 0 images given for them have 0 positions: write 16 placeholders for each image and pass every image once, in reading order.",
        GOOD_CODES[:0],
    ),
    written(
        "codes and pixels at once",
        "Give generated images as generation_pixel_values or as generation_codes, not both.",
        GOOD_CODES,
        generation_pixel_values=PIXELS,
    ),
    read(
        "pixels of another size",
        "pixel_values of shape (1, 3, 64, 64) must be (batch, 3, 32, 32): resize the images, for instance with the checkpoint's own processor.",
        pixel_values=torch.zeros(1, 3, 64, 64),
    ),
    read(
        "pixels without batch",
        "pixel_values of shape (3, 32, 32) must be (batch, 3, 32, 32): resize the images, for instance with the checkpoint's own processor.",
        pixel_values=torch.zeros(3, 32, 32),
    ),
    read(
        "pixels of one channel",
        "pixel_values of shape (1, 1, 32, 32) must be (batch, 3, 32, 32): resize the images, for instance with the checkpoint's own processor.",
        pixel_values=torch.zeros(1, 1, 32, 32),
    ),
    read(
        "pixels of two images for the places of one",
        "The inputs hold 16 image placeholders but the 2 images given for them have 32 positions: write 16 placeholders for each image and pass every image once, in reading order.",
        pixel_values=torch.zeros(2, 3, 32, 32),
    ),
    read(
        "a placeholder too few",
        "The inputs hold 15 image placeholders but the 1 images given for them have 16 positions: write 16 placeholders for each image and pass every image once, in reading order.",
        times=POSITIONS - 1,
        pixel_values=PIXELS,
    ),
    read(
        "pixels and codes at once",
        "Give images as pixel_values, image_codes or mm_encoder_outputs: one of the three.",
        pixel_values=PIXELS,
        image_codes=GOOD_CODES,
    ),
    read(
        "image codes with more levels than there are",
        "codes of shape (1, 16, 5) and dtype torch.int64 must be int64 with 1 to 4 levels in the last dimension.",
        image_codes=torch.zeros(1, POSITIONS, 5, dtype=torch.long),
    ),
    read(
        "image codes above the codebook",
        "codes run from 32 to 32 but the codebooks hold 32 entries, 0 to 31: give codes of this tokenizer.",
        image_codes=GOOD_CODES + ENTRIES,
    ),
    read(
        "image codes that are floats",
        "codes of shape (1, 16, 2) and dtype torch.float32 must be int64 with 1 to 4 levels in the last dimension.",
        image_codes=torch.zeros(1, POSITIONS, 2),
    ),
    read(
        "image codes of two dimensions",
        "codes of shape (16, 2) must be (batch, 16, levels).",
        image_codes=GOOD_CODES[0],
    ),
    read("no tokens at all", "You must specify exactly one of input_ids or inputs_embeds", input_ids=None),
]

GROUPS = [
    Group("Conversations", "`processor.apply_chat_template`", apply_template, BAD),
    Group("Text that would forge tokens", "`processor.apply_chat_template`", apply_template_to_forged, GOOD),
    Group("Texts, images and codes that do not match", "`processor(...)`", process, PROCESSED),
    Group("Tensors that the model cannot use", "`model(...)`", forward, MODEL),
]
