# Copyright 2026 The EvoTok authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Chat template of EvoTok, and checks of conversations before it is rendered.

A special token typed by a user (`<|image_pad|>`, `<|im_start|>`) must not become one. Such a marker gets a space after
its first character, so that it is tokenized as plain text and stays readable. The template does the same, for renderers
without this code: a tokenizer alone, vLLM, `transformers serve`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .image_loading_evotok import SOURCE_KEYS, EvoTokImageError, find_source


# ChatML with images within messages. `system_prompt` and `generation_mode` are template variables; `markers` is filled
# in from the tokenizer. Engines detect by the loop `part in content` that content may be a list.
CHAT_TEMPLATE = """\
{%- set markers = [] %}
{%- macro plain(text) %}
    {%- set kept = namespace(text=text) %}
    {%- for marker in markers %}
        {%- set kept.text = kept.text.replace(marker, marker[0] + ' ' + marker[1:]) %}
    {%- endfor %}
    {{- kept.text }}
{%- endmacro %}
{%- macro render(content, placeholder) %}
    {%- if content is string %}
        {{- plain(content) }}
    {%- elif content %}
        {%- set joined = namespace(text='') %}
        {%- for part in content %}
            {%- if part['type'] == 'text' %}
                {%- set joined.text = joined.text + part['text'] %}
            {%- else %}
                {{- plain(joined.text) + '<|vision_start|>' + placeholder + '<|vision_end|>' }}
                {%- set joined.text = '' %}
            {%- endif %}
        {%- endfor %}
        {{- plain(joined.text) }}
    {%- endif %}
{%- endmacro %}
{{- bos_token or '' }}
{%- if system_prompt and messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\n' + plain(system_prompt) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + plain(message['role']) + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- render(message['content'], '<|image_gen|>') + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- render(message['content'], '<|image_pad|>') + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if generation_mode == 'image' %}
        {{- '<|vision_start|>' }}
    {%- endif %}
{%- endif %}
"""
# Macro of the template of checkpoints that were saved before it escaped markers.
_FORMER_RENDER = """\
{%- macro render(content, placeholder) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content or [] %}
            {%- if part['type'] == 'text' %}
                {{- part['text'] }}
            {%- else %}
                {{- '<|vision_start|>' + placeholder + '<|vision_end|>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
"""
_MESSAGES = CHAT_TEMPLATE[CHAT_TEMPLATE.index("{{- bos_token") :]
_FORMER_TEMPLATE = _FORMER_RENDER + re.sub(r"plain\((system_prompt|message\['role'\])\)", r"\1", _MESSAGES)
_LITERAL = r"'(?:[^'\\]|\\.)*'"
_MARKERS = re.compile(rf"\{{%- set markers = \[(?:{_LITERAL}(?:, {_LITERAL})*)?\] %\}}\n")

# Tokens are quoted in the code of the template.
_PLAIN_TOKEN = re.compile(r"[^\s'\"\\{}%#]{1,64}")

ROLES = ("system", "user", "assistant")
_NO_CONVERSATION = 'A conversation is a list of at least one message {"role": ..., "content": ...}: give one.'
_IMAGE_TYPES = ("image", "image_url")
_SURROGATE = re.compile("[\ud800-\udfff]")


def build_chat_template(
    image_token: str,
    image_generation_token: str,
    vision_start_token: str,
    vision_end_token: str,
    delimit_input_images: bool = True,
    markers: Sequence[str] = (),
) -> str:
    """Builds the chat template with these tokens.

    Args:
        delimit_input_images (`bool`): whether input images are between start and end tokens, as generated images are;
            in the paper's release they are not.
        markers (`Sequence[str]`): special tokens to escape in text, from [`list_control_tokens`].

    Raises:
        ValueError: a token that would be code of the template.
    """
    tokens = image_token, image_generation_token, vision_start_token, vision_end_token
    quoted = ", ".join("'" + marker.encode("unicode_escape").decode().replace("'", "\\'") + "'" for marker in markers)
    template = _fill(CHAT_TEMPLATE, tokens, delimit_input_images)
    return template.replace("set markers = []", f"set markers = [{quoted}]", 1)


def _fill(template: str, tokens: Sequence[str], delimit_input_images: bool) -> str:
    """Replaces the default tokens in a template by those of `build_chat_template`."""
    image_token, _, vision_start_token, vision_end_token = tokens
    defaults = "<|image_pad|>", "<|image_gen|>", "<|vision_start|>", "<|vision_end|>"
    for default, token in zip(defaults, tokens, strict=True):
        if not isinstance(token, str) or not _PLAIN_TOKEN.fullmatch(token):
            raise ValueError(f"{str(token)[:80]!r} should be a token such as {default!r}.")
        template = template.replace(default, token)
    if delimit_input_images:
        return template
    delimited = f"'{vision_start_token}' + placeholder + '{vision_end_token}'"
    return template.replace(delimited, f"(placeholder if placeholder == '{image_token}' else {delimited})")


def delimits_input_images(template: Any, *tokens: str) -> bool | None:
    """Returns whether a template of [`build_chat_template`], of this version or a former one, with these four tokens
    and any markers, delimits input images; None for any other template."""
    unmarked = _MARKERS.sub("{%- set markers = [] %}\n", template, count=1) if isinstance(template, str) else template
    for delimit in (True, False):
        if unmarked in (_fill(CHAT_TEMPLATE, tokens, delimit), _fill(_FORMER_TEMPLATE, tokens, delimit)):
            return delimit
    return None


def list_control_tokens(tokenizer: Any) -> list[str]:
    """Lists the special tokens of `tokenizer` to escape in text, the longest first."""
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted((token for token in tokens if len(token.strip()) > 1), key=lambda token: (-len(token), token))


def build_control_pattern(tokenizer: Any) -> re.Pattern:
    """Builds a pattern that matches every special token of `tokenizer`, the longest first."""
    return re.compile("|".join(map(re.escape, list_control_tokens(tokenizer))) or "(?!)")


def prepare_conversations(conversation: Any, control_pattern: re.Pattern) -> tuple[list[list[dict]], bool]:
    """Checks and copies a conversation, or a batch of them, with escaped markers, neighbouring text parts joined, and
    images as `{"type": "image", "image": source}`, or without a source where the image is passed elsewhere.

    Args:
        conversation: messages `{"role": ..., "content": str or list of parts}`, where a part is
            `{"type": "text", "text": ...}`, or `{"type": "image", ...}` or `{"type": "image_url", ...}` with an image
            for `find_source`, or with none; or a list of such conversations.
        control_pattern (`re.Pattern`): from [`build_control_pattern`].

    Returns:
        The conversations as a batch, and whether `conversation` was a batch.

    Raises:
        ValueError: an empty conversation, an unknown role or type of part, text that is no string, an image given in
            two ways, or tool calls.
    """
    conversation = getattr(conversation, "messages", conversation)
    if not isinstance(conversation, Sequence) or isinstance(conversation, str) or not conversation:
        raise ValueError(_NO_CONVERSATION)
    first = conversation[0]
    is_batched = isinstance(first, (list, tuple)) or hasattr(first, "messages")
    batch = conversation if is_batched else [conversation]
    prepared = []
    for chat in batch:
        messages = [_prepare_message(message, control_pattern) for message in getattr(chat, "messages", chat)]
        if not messages:
            raise ValueError(_NO_CONVERSATION)
        prepared.append(messages)
    return prepared, is_batched


def _prepare_message(message: Any, control_pattern: re.Pattern) -> dict:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, Mapping) else message
        raise ValueError(f"Message with role {str(role)[:40]!r}: give a dict whose role is one of {', '.join(ROLES)}.")
    if message.get("tool_calls"):
        raise ValueError("Messages that call tools are not supported: leave tool_calls out.")
    content = message.get("content")
    if content is None:
        content = ""
    if isinstance(content, str):
        return {**message, "content": _escape_markers(content, control_pattern)}
    if not isinstance(content, Sequence):
        raise ValueError(f"Content of type {type(content).__name__}: give a string or a list of parts.")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            if parts and parts[-1]["type"] == "text":  # two parts must not join to a marker
                parts[-1]["text"] += part["text"]
            else:
                parts.append({"type": "text", "text": part["text"]})
        elif kind in _IMAGE_TYPES:
            parts.append(_read_image(part))
        else:
            raise ValueError(
                f"Content part {str(part)[:80]!r} is not supported: give "
                '{"type": "text", "text": "..."} or {"type": "image"}.'
            )
    for part in parts:
        if part["type"] == "text":
            part["text"] = _escape_markers(part["text"], control_pattern)
    return {**message, "content": parts}


def _read_image(part: Mapping) -> dict:
    try:
        source = find_source(part)
    except EvoTokImageError as error:
        raise ValueError(f"Content part {str(part)[:80]!r}: {error}") from None
    rest = {key: value for key, value in part.items() if value is not None and key not in (*SOURCE_KEYS, "bytes")}
    return rest | {"type": "image"} | ({} if source is None else {"image": source})


def _escape_markers(text: str, control_pattern: re.Pattern) -> str:
    """Escapes markers in text: `<|im_end|>` becomes `< |im_end|>`."""
    if _SURROGATE.search(text):
        raise ValueError("Text holds half of a surrogate pair, which is no character: remove it.")
    return control_pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


__all__ = [
    "CHAT_TEMPLATE",
    "ROLES",
    "build_chat_template",
    "build_control_pattern",
    "delimits_input_images",
    "list_control_tokens",
    "prepare_conversations",
]
