"""Checks of the JSON files of an untrusted checkpoint, before anything is built from them.

Sizes are limited under any key and at any depth; settings of generation, processor and text tokenizer must be known,
and of the type and range that they are used with.
"""

import json
import math
import re
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


MAX_INTEGER = 100_000_000
MAX_TEXT = 100_000  # characters of a prompt, or of stop strings
MAX_IDS = 10_000

# Each counts modules of their own, of which there are no more than the weights have tensors.
_REPEATED = re.compile(r"(layers?|blocks|codebooks|experts|depth)$")
_NOT_REPEATED = re.compile(r"window")  # `max_window_layers` is an index
_UNBOUNDED = ("model_max_length",)  # 10^30 means none
_FILES = ("config.json", "tokenizer.json")

Check = Callable[[Any], bool]


def number(least: float, largest: float, whole: bool = False) -> Check:
    """Builds a check for finite numbers in a range."""
    kinds = (int,) if whole else (int, float)
    return lambda value: type(value) in kinds and math.isfinite(value) and least <= value <= largest


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and len(value) <= MAX_IDS and all(map(check, value))


def _either(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


def is_bool(value: Any) -> bool:
    """Returns whether a value is true or false, and not 0 or 1."""
    return type(value) is bool


def anything(value: Any) -> bool:
    """Accepts any value, which is checked where it is used."""
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_channels(least: float) -> Check:
    channel = number(least, 1e3)
    return _either(channel, lambda value: _list_of(channel)(value) and len(value) == 3)


def _is_size(value: Any) -> bool:
    side = number(1, MAX_INTEGER, whole=True)  # compared with the model's later
    return isinstance(value, dict) and value.keys() == {"height", "width"} and all(map(side, value.values()))


_IS_ID = number(0, MAX_INTEGER, whole=True)
_IS_IDS = _either(_IS_ID, _list_of(_IS_ID))
_COUNT = number(0, 1_000_000, whole=True)
_POSITIVE = number(1, 1_000_000, whole=True)
_SHARE = number(0.0, 1.0)
_FACTOR = number(0.0, 1e6)

GENERATION: dict[str, Check] = {
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), _IS_IDS),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "image_negative_prompt_ids"), _IS_IDS),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), _IS_IDS),
    **dict.fromkeys(("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values", "low_memory"), is_bool),
    **dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits", "disable_compile"), is_bool),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "_from_model_config", "is_assistant"), is_bool),
    **dict.fromkeys(("max_new_tokens", "max_length", "num_return_sequences"), _POSITIVE),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), _COUNT),
    **dict.fromkeys(("num_beams", "num_beam_groups"), number(1, 64, whole=True)),
    **dict.fromkeys(("temperature", "repetition_penalty", "encoder_repetition_penalty", "diversity_penalty"), _FACTOR),
    **dict.fromkeys(("top_p", "typical_p", "min_p", "epsilon_cutoff", "eta_cutoff"), _SHARE),
    **dict.fromkeys(("transformers_version", "cache_implementation"), _is_text),
    # The sampler of images checks these itself.
    **dict.fromkeys(("guidance_scale", "guidance_min_p", "image_do_sample"), anything),
    **dict.fromkeys(("image_temperature", "image_top_k", "image_top_p"), anything),
    "bad_words_ids": _list_of(_list_of(_IS_ID)),
    "length_penalty": number(-1e3, 1e3),
    "top_k": _COUNT,
    "early_stopping": _either(is_bool, lambda value: value == "never"),
    "stop_strings": _either(_is_text, _list_of(_is_text)),
}
IMAGE_PROCESSOR: dict[str, Check] = {
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "default_to_square"), is_bool),
    **dict.fromkeys(("image_processor_type", "processor_class", "data_format", "device", "backend"), _is_text),
    "size": _is_size,
    "resample": number(0, 5, whole=True),
    "rescale_factor": number(1e-6, 1e3),
    "image_mean": _is_channels(-1e3),
    "image_std": _is_channels(1e-6),
    "auto_map": anything,
}
TEXT_TOKENIZER: dict[str, Check] = {
    **dict.fromkeys(("max_length", "stride"), _COUNT),
    **dict.fromkeys(("padding", "truncation"), is_bool),
    **dict.fromkeys(("padding_side", "truncation_side"), lambda value: value in ("left", "right")),
    "pad_to_multiple_of": number(1, 4096, whole=True),
}


def check_checkpoint(name: str | None, key: str) -> None:
    """Checks a checkpoint that a recipe starts from.

    Args:
        name: a folder or the id of a Hub model, or None for no checkpoint.
        key: of the recipe, for the message.

    Raises:
        ValueError: no such folder or model on the Hub, which Transformers would retry to download; or as
            [`check_configs`].
    """
    if name is None:
        return
    if Path(name).is_dir():
        check_configs(Path(name), f"{key}: {name}", of_evotok=key in ("model.checkpoint", "model.vq_checkpoint"))
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{key}: {name}: no such folder: train the stage before, or give another checkpoint.")


def read_config(path: Path, name: str) -> dict[str, Any]:
    """Reads the object in a JSON file; `name` is the folder in the message.

    Raises:
        ValueError: damaged, or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _damaged(f"{name}: {path.name}")
    return content


def check_configs(folder: Path, name: str, of_evotok: bool = True) -> None:
    """Raises ValueError for configs of a checkpoint that nothing should be built from.

    Args:
        name: of the folder in the message.
        of_evotok: whether settings must be those of EvoTok; otherwise only sizes are checked.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if path.name.endswith(_FILES) and path.is_file()]
    contents = {path.name: read_config(path, name) for path in paths}
    for file, content in contents.items():
        try:
            for key, value in _integers(content):
                if abs(value) > MAX_INTEGER and key not in _UNBOUNDED:
                    raise ValueError(
                        f"{name}: {file}: {key} is {value:.4g}, over the limit of any size. Copy or save the "
                        "checkpoint again."
                    )
        except RecursionError:
            raise _damaged(f"{name}: {file}") from None
    if not of_evotok:
        return
    _check_settings(contents.get("generation_config.json", {}), GENERATION, f"{name}: generation_config.json")
    for file, images in (
        ("processor_config.json", contents.get("processor_config.json", {}).get("image_processor")),
        ("preprocessor_config.json", contents.get("preprocessor_config.json")),
    ):
        if images is not None:
            _check_settings(images, IMAGE_PROCESSOR, f"{name}: {file}")
    for key, check in TEXT_TOKENIZER.items():
        value = contents.get("tokenizer_config.json", {}).get(key)
        if value is not None and not check(value):
            raise _unexpected(f"{name}: tokenizer_config.json", key, value)
    _check_text_tokenizer(contents.get("tokenizer.json", {}), f"{name}: tokenizer.json")


def check_counts(config: dict[str, Any], num_tensors: int) -> None:
    """Raises ValueError for more layers, levels or the like than the weights have tensors: a model of a billion of them
    would be built until the memory is full."""
    for key, value in _integers(config):
        if value > num_tensors and _REPEATED.search(key) and not _NOT_REPEATED.search(key):
            raise ValueError(f"{key} is {value} but the weights are only {num_tensors} tensors")


def _integers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Yields every integer of a config with its key, that of the list for one in a list."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _integers(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _integers(inner, key)
    elif type(value) is int:
        yield key, value


def _check_settings(settings: Any, known: dict[str, Check], where: str) -> None:
    """Raises ValueError for an unknown setting, unless it is switched off, or for a value out of its range."""
    if not isinstance(settings, dict):
        raise _damaged(where)
    for key, value in settings.items():
        if value is not None and value is not False and not known.get(key, _is_empty)(value):
            raise _unexpected(where, key, value)


def _check_text_tokenizer(content: dict[str, Any], where: str) -> None:
    """Raises ValueError for a text tokenizer that pads all texts to a length of its own."""
    padding, truncation = content.get("padding") or {}, content.get("truncation") or {}
    if not isinstance(padding, dict) or not isinstance(truncation, dict):
        raise _damaged(where)
    strategy, multiple = padding.get("strategy", "BatchLongest"), padding.get("pad_to_multiple_of")
    if strategy != "BatchLongest":
        raise _unexpected(where, "padding.strategy", strategy)
    if multiple is not None and not TEXT_TOKENIZER["pad_to_multiple_of"](multiple):
        raise _unexpected(where, "padding.pad_to_multiple_of", multiple)


def _is_empty(value: Any) -> bool:
    return value in ([], {}, "")


def _damaged(where: str) -> ValueError:
    return ValueError(f"{where} is damaged. Copy the checkpoint again.")


def _unexpected(where: str, key: str, value: Any) -> ValueError:
    return ValueError(
        f"{where}: {key} should not be {reprlib.repr(value)}. Save the checkpoint again, or remove the key."
    )
