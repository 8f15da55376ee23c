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
"""Settings of image generation, read from a call and from generation configs.

| field | of a call | of a config given to it | of the model's own config |
| --- | --- | --- | --- |
| `guidance_scale`, `guidance_min_p` | counts | counts | counts |
| `do_sample`, `temperature`, `top_k`, `top_p` | counts | `image_do_sample` and so on, else these | `image_...` alone |
| `num_return_sequences`, `return_dict_in_generate`, `output_scores` | counts | counts | counts |
| `compile_config`, `disable_compile`, `pad_token_id` | counts | counts | counts |
| `cache_implementation` | counts | counts | counts if "static" or "dynamic", else text only |
| `max_new_tokens`, `max_length`, `use_cache` | no effect: an image has its length, and always a cache | | |
| `min_p`, `num_beams`, `output_logits`, and others of `_REFUSED` | refused | refused | text only |
| all others: stop strings, penalties, banned or forced tokens ... | refused | text only | text only |

As in Transformers, None unsets a value: no temperature, no top-k, no top-p, no guidance.
"""

from typing import Any

from transformers import GenerationConfig


# The paper's guidance and its release's sampling; `guidance_min_p` 0 is the paper's plain guidance.
IMAGE_GENERATION_DEFAULTS = {
    "guidance_scale": 7.5,
    "guidance_min_p": 0.0,
    "image_do_sample": True,
    "image_temperature": 1.0,
    "image_top_k": 900,
    "image_top_p": 0.96,
}
# Of text: greedy for whoever gives no temperature. Servers read the temperature alone, and sample at 1 without one.
TEXT_GENERATION_DEFAULTS = {"do_sample": True, "temperature": 0.0}
CACHES = ("static", "dynamic")
# Of the call, not of how codes are drawn.
_CALL = {
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "output_scores": False,
    "cache_implementation": None,
    "compile_config": None,
    "disable_compile": False,
    "pad_token_id": None,
}
_LENGTH = ("max_new_tokens", "max_length", "use_cache")  # pipelines add some of them to every call
# What an image could have or be drawn by, but is not.
_REFUSED = (
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "renormalize_logits",
    "remove_invalid_values",
    "watermarking_config",
    "num_beams",
    "num_beam_groups",
    "penalty_alpha",
    "dola_layers",
    "constraints",
    "force_words_ids",
    "use_mtp",
    "max_time",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
)
# Values by which nothing is asked for; None and False are others.
_NEUTRAL = {"typical_p": 1, "num_beams": 1, "num_beam_groups": 1, "repetition_penalty": 1, "length_penalty": 1}


def image_generation_config(config) -> GenerationConfig:
    """The generation config of a new [`EvoTokForConditionalGeneration`]: special tokens of the language model, sampling
    values of images and of text, and image placeholders banned from text."""
    text_config = config.text_config
    tokens = {name: getattr(text_config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    placeholders = [config.image_token_id, config.image_generation_token_id]
    defaults = IMAGE_GENERATION_DEFAULTS | TEXT_GENERATION_DEFAULTS
    return GenerationConfig(**tokens, suppress_tokens=placeholders, **defaults)


def read_settings(own: GenerationConfig, given: GenerationConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Every setting of the table above, by the name that it has in a call, from the first place that has it.

    Args:
        own: that of the model.
        given: that of the call.
        kwargs: arguments of the call; those that are read here are taken out.

    Raises:
        ValueError: a field of `given`, or an argument, that is not for images.
    """
    _refuse(given, own)
    settings = {}
    for field, default in IMAGE_GENERATION_DEFAULTS.items():
        name = field.removeprefix("image_")
        values = (getattr(place, key, None) for place, key in ((given, field), (given, name), (own, field)))
        settings[name] = kwargs.pop(name, next((value for value in values if value is not None), default))
    for name, default in _CALL.items():
        values = [kwargs.pop(name, None), getattr(given, name, None), getattr(own, name, None)]
        if name == "cache_implementation" and values[2] not in CACHES:
            values.pop()  # of text
        settings[name] = next((value for value in values if value is not None), default)
    for name in _LENGTH:
        kwargs.pop(name, None)
    unknown = sorted(name for name, value in kwargs.items() if not _is_neutral(name, value))
    if unknown:
        raise ValueError(f"generate(generation_mode='image') takes no {', '.join(unknown)}.")
    return settings


def _refuse(given: GenerationConfig | None, own: GenerationConfig) -> None:
    """Raises ValueError for fields of a config that ask for what no image has, unless the model's own has them for
    text: pipelines give a copy of it."""
    asked = []
    for name in _REFUSED:
        value = getattr(given, name, None)
        if not _is_neutral(name, value) and value != getattr(own, name, None):
            asked.append(name)
    if asked:
        raise ValueError(f"generation_config: no {', '.join(asked)} for images: leave it out of the config.")


def _is_neutral(name: str, value: Any) -> bool:
    known = hasattr(GenerationConfig(), name)
    return value is None or (known and (value is False or (name in _NEUTRAL and value == _NEUTRAL[name])))


__all__ = [
    "CACHES",
    "IMAGE_GENERATION_DEFAULTS",
    "TEXT_GENERATION_DEFAULTS",
    "image_generation_config",
    "read_settings",
]
