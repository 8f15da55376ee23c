"""The JSON files of an untrusted checkpoint: those of the embedded model pass, and nothing that would burst or hang."""

import json
import shutil
from pathlib import Path

import pytest

from evotok.training.resuming.checkpoints import check_source
from evotok.training.resuming.config_checks import check_configs, check_counts


MINI = Path(__file__).resolve().parents[1] / "assets" / "evotok-mini"


@pytest.fixture
def folder(tmp_path):
    for path in MINI.glob("*.json"):
        shutil.copy(path, tmp_path)
    return tmp_path


def changed(folder, name, keys, value):
    content = json.loads((folder / name).read_text())
    place = content
    *sections, key = keys.split(".")
    for section in sections:
        place[section] = place.get(section) or {}
        place = place[section]
    place[key] = value
    (folder / name).write_text(json.dumps(content))


def test_the_embedded_model_passes(folder):
    check_configs(folder, "mini")
    changed(folder, "generation_config.json", "temperature", 0.7)
    changed(folder, "generation_config.json", "eos_token_id", [1, 2])
    changed(folder, "generation_config.json", "max_time", None)
    changed(folder, "generation_config.json", "stop_strings", ["a", "b"])
    changed(folder, "tokenizer_config.json", "pad_to_multiple_of", 8)
    changed(folder, "processor_config.json", "image_processor.image_std", 0.5)
    check_configs(folder, "mini")
    check_source(str(folder), "model.checkpoint")


ODD = [
    ("config.json", "text_config.n_layer", 10**9),
    ("config.json", "text_config.deep.deeper.width", 10**12),
    ("config.json", "vq_config.pixel_channel_multipliers", [1, 10**9]),
    ("config.json", "text_config.vocab_size", -(10**9)),
    ("tokenizer.json", "padding.strategy", {"Fixed": 1000}),
    ("tokenizer.json", "padding.strategy", {"Fixed": 10**9}),
    ("tokenizer.json", "padding.pad_to_multiple_of", 10**7),
    ("tokenizer.json", "padding.pad_to_multiple_of", "8"),
    ("tokenizer.json", "truncation", [1]),
    ("tokenizer.json", "truncation.max_length", 10**9),
    ("tokenizer_config.json", "pad_to_multiple_of", 10**7),
    ("tokenizer_config.json", "padding", "max_length"),
    ("tokenizer_config.json", "max_length", 10**7),
    ("tokenizer_config.json", "padding_side", "middle"),
    ("generation_config.json", "num_beams", 10**6),
    ("generation_config.json", "num_return_sequences", 0),
    ("generation_config.json", "num_return_sequences", -1),
    ("generation_config.json", "num_return_sequences", 1.5),
    ("generation_config.json", "max_new_tokens", "many"),
    ("generation_config.json", "temperature", float("nan")),
    ("generation_config.json", "eos_token_id", "a"),
    ("generation_config.json", "suppress_tokens", [[1]]),
    ("generation_config.json", "repetition_penalty", [1]),
    ("generation_config.json", "watermarking_config", {"bias": 1}),
    ("generation_config.json", "prompt_lookup_num_tokens", 10),
    ("generation_config.json", "max_time", 5),
    ("generation_config.json", "do_sample", 1),
    ("processor_config.json", "image_processor", []),
    ("processor_config.json", "image_processor.image_std", 0),
    ("processor_config.json", "image_processor.image_mean", [0.5, 0.5]),
    ("processor_config.json", "image_processor.image_mean", [0.5, 0.5, float("inf")]),
    ("processor_config.json", "image_processor.rescale_factor", float("nan")),
    ("processor_config.json", "image_processor.resample", 99),
    ("processor_config.json", "image_processor.size", {"shortest_edge": 64}),
    ("processor_config.json", "image_processor.do_pad", True),
    ("processor_config.json", "image_processor.crop_size", {"height": 10, "width": 10}),
    ("processor_config.json", "image_processor.do_resize", "yes"),
]


@pytest.mark.parametrize(("name", "keys", "value"), ODD, ids=[f"{keys}={value}" for _, keys, value in ODD])
def test_what_would_burst_hang_or_end_in_a_traceback_is_refused(folder, name, keys, value):
    changed(folder, name, keys, value)
    with pytest.raises(ValueError) as refused:
        check_configs(folder, "model")
    said = str(refused.value)
    assert said.startswith(f"model: {name}") and "\n" not in said and len(said) < 300
    with pytest.raises(ValueError, match="model.checkpoint: "):
        check_source(str(folder), "model.checkpoint")


@pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, "{", "[]", '{"a": ' + "9" * 5000 + "}"])
def test_what_is_no_config_is_damaged(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="model: config.json is damaged. Copy the checkpoint again."):
        check_configs(folder, "model")


@pytest.mark.parametrize(
    "key", ["num_layers", "n_layer", "n_layers", "num_hidden_layers", "decoder_layers", "pixel_num_res_blocks", "depth",
            "num_codebooks", "num_local_experts", "n_routed_experts"],
)  # fmt: skip
def test_modules_are_counted_whatever_they_are_called(key):
    with pytest.raises(ValueError, match=f"{key} is 5000 but the weights are only 300 tensors"):
        check_counts({"text_config": {key: 5000}}, 300)
    check_counts({"text_config": {key: 300, "max_window_layers": 5000, "hidden_size": 5000}}, 300)
