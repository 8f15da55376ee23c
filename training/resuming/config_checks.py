"""The JSON files of an untrusted checkpoint, looked at before anything is built by them.

Sizes are bounded wherever they stand and whatever they are called; settings of generation, processor and text tokenizer
must be known, and of the type and range that they are used with.
"""

import json
import math
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


MAX_INTEGER = 100_000_000
MAX_TEXT = 100_000  # characters of a prompt, or of stop strings
MAX_IDS = 10_000

# Each of them is modules of its own: by the number of tensors the weights say how many there may be.
_REPEATED = re.compile(r"(layers?|blocks|codebooks|experts|depth)$")
_NOT_REPEATED = re.compile(r"window")  # `max_window_layers` is a place
_UNBOUNDED = ("model_max_length",)  # 10^30 means none
_FILES = ("config.json", "tokenizer.json")

Check = Callable[[Any], bool]


def _number(least: float, largest: float, whole: bool = False) -> Check:
    kinds = (int,) if whole else (int, float)
    return lambda value: type(value) in kinds and math.isfinite(value) and least <= value <= largest


def _is_ids(value: Any) -> bool:
    is_id = _number(0, MAX_INTEGER, whole=True)
    return is_id(value) or (isinstance(value, list) and len(value) <= MAX_IDS and all(map(is_id, value)))


def _is_id_lists(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_IDS
        and all(isinstance(ids, list) and _is_ids(ids) for ids in value)
    )


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_texts(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and len(value) <= MAX_IDS and all(map(_is_text, value)))


def _is_channels(least: float) -> Check:
    number = _number(least, 1e3)
    return lambda value: number(value) or (isinstance(value, list) and len(value) == 3 and all(map(number, value)))


def _is_size(value: Any) -> bool:
    number = _number(1, MAX_INTEGER, whole=True)  # compared with the model's later
    return isinstance(value, dict) and value.keys() == {"height", "width"} and all(map(number, value.values()))


_COUNT = _number(0, 1_000_000, whole=True)
_SOME = _number(1, 1_000_000, whole=True)
_SHARE = _number(0.0, 1.0)
_FACTOR = _number(0.0, 1e6)
_ANYTHING: Check = lambda value: True  # noqa: E731 - read elsewhere, and checked there

GENERATION: dict[str, Check] = {
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), _is_ids),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "image_negative_prompt_ids"), _is_ids),
    **dict.fromkeys(("bad_words_ids",), _is_id_lists),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), _is_ids),
    **dict.fromkeys(("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values", "low_memory"), _is_bool),
    **dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits", "disable_compile"), _is_bool),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "_from_model_config", "is_assistant"), _is_bool),
    **dict.fromkeys(("max_new_tokens", "max_length", "num_return_sequences"), _SOME),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), _COUNT),
    **dict.fromkeys(("num_beams", "num_beam_groups"), _number(1, 64, whole=True)),
    **dict.fromkeys(("temperature", "repetition_penalty", "encoder_repetition_penalty", "diversity_penalty"), _FACTOR),
    **dict.fromkeys(("length_penalty",), _number(-1e3, 1e3)),
    **dict.fromkeys(("top_p", "typical_p", "min_p", "epsilon_cutoff", "eta_cutoff"), _SHARE),
    **dict.fromkeys(("top_k",), _COUNT),
    **dict.fromkeys(("early_stopping",), lambda value: type(value) is bool or value == "never"),
    **dict.fromkeys(("stop_strings",), _is_texts),
    **dict.fromkeys(("transformers_version", "cache_implementation"), _is_text),
    # The sampler of images says itself what is wrong with these.
    **dict.fromkeys(("guidance_scale", "guidance_min_p", "image_do_sample"), _ANYTHING),
    **dict.fromkeys(("image_temperature", "image_top_k", "image_top_p"), _ANYTHING),
}
IMAGE_PROCESSOR: dict[str, Check] = {
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "default_to_square"), _is_bool),
    **dict.fromkeys(("size",), _is_size),
    **dict.fromkeys(("resample",), _number(0, 5, whole=True)),
    **dict.fromkeys(("rescale_factor",), _number(1e-6, 1e3)),
    **dict.fromkeys(("image_mean",), _is_channels(-1e3)),
    **dict.fromkeys(("image_std",), _is_channels(1e-6)),
    **dict.fromkeys(("image_processor_type", "processor_class", "data_format", "device", "backend"), _is_text),
    **dict.fromkeys(("auto_map",), _ANYTHING),
}
TEXT_TOKENIZER: dict[str, Check] = {
    **dict.fromkeys(("pad_to_multiple_of",), _number(1, 4096, whole=True)),
    **dict.fromkeys(("max_length", "stride"), _COUNT),
    **dict.fromkeys(("padding", "truncation"), lambda value: type(value) is bool),
    **dict.fromkeys(("padding_side", "truncation_side"), lambda value: value in ("left", "right")),
}


def read_config(path: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file; `name` is what the message calls its folder.

    Raises:
        ValueError: damaged, or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{name}: {path.name} is damaged. Copy the checkpoint again.")
    return content


def check_configs(folder: Path, name: str, of_ours: bool = True) -> None:
    """Raises ValueError for configs of a checkpoint that nothing should be built by.

    Args:
        name: what the message calls the folder.
        of_ours: whether settings must be those of EvoTok; else sizes alone are checked.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if path.name.endswith(_FILES) and path.is_file()]
    contents = {path.name: read_config(path, name) for path in paths}
    for file, content in contents.items():
        try:
            _check_integers(content, f"{name}: {file}")
        except RecursionError:
            raise ValueError(f"{name}: {file} is damaged. Copy the checkpoint again.") from None
    if not of_ours:
        return
    _check_known(contents.get("generation_config.json", {}), GENERATION, f"{name}: generation_config.json")
    for file, images in (
        ("processor_config.json", contents.get("processor_config.json", {}).get("image_processor")),
        ("preprocessor_config.json", contents.get("preprocessor_config.json")),
    ):
        if images is not None:
            _check_known(images, IMAGE_PROCESSOR, f"{name}: {file}")
    for key, check in TEXT_TOKENIZER.items():
        value = contents.get("tokenizer_config.json", {}).get(key)
        if value is not None and not check(value):
            raise _wrong(f"{name}: tokenizer_config.json", key, value)
    _check_text_tokenizer(contents.get("tokenizer.json", {}), f"{name}: tokenizer.json")


def check_counts(config: Any, num_tensors: int) -> None:
    """Raises ValueError for more layers, levels or the like than the weights have tensors: a model of a billion of them
    would be built until the memory is full."""
    for key, value in config.items():
        if isinstance(value, dict):
            check_counts(value, num_tensors)
        elif type(value) is int and value > num_tensors and _REPEATED.search(key) and not _NOT_REPEATED.search(key):
            raise ValueError(f"{key} is {value} but the weights are only {num_tensors} tensors")


def _check_integers(value: Any, where: str, key: str = "") -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_integers(inner, where, name)
    elif isinstance(value, list):
        for inner in value:
            _check_integers(inner, where, key)
    elif type(value) is int and abs(value) > MAX_INTEGER and key not in _UNBOUNDED:
        raise ValueError(
            f"{where}: {key} is {value:.4g}, over the limit of any size. Copy or save the checkpoint again."
        )


def _check_known(settings: Any, known: dict[str, Check], where: str) -> None:
    """Raises ValueError for a setting that is none of these, unless it is switched off, or whose value is none that it
    may have."""
    if not isinstance(settings, dict):
        raise ValueError(f"{where} is damaged. Copy the checkpoint again.")
    for key, value in settings.items():
        if value is not None and value is not False and not known.get(key, _is_nothing)(value):
            raise _wrong(where, key, value)


def _check_text_tokenizer(content: dict[str, Any], where: str) -> None:
    """Raises ValueError for a text tokenizer that makes all texts as long as it likes."""
    padding, truncation = content.get("padding") or {}, content.get("truncation") or {}
    if not isinstance(padding, dict) or not isinstance(truncation, dict):
        raise ValueError(f"{where} is damaged. Copy the checkpoint again.")
    strategy, multiple = padding.get("strategy", "BatchLongest"), padding.get("pad_to_multiple_of")
    if strategy != "BatchLongest":
        raise _wrong(where, "padding.strategy", strategy)
    if multiple is not None and not TEXT_TOKENIZER["pad_to_multiple_of"](multiple):
        raise _wrong(where, "padding.pad_to_multiple_of", multiple)


def _is_nothing(value: Any) -> bool:
    return value in ([], {}, "")


def _wrong(where: str, key: str, value: Any) -> ValueError:
    return ValueError(
        f"{where}: {key} should not be {reprlib.repr(value)}. Save the checkpoint again, or remove the key."
    )
