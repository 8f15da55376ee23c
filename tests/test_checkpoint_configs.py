"""Checks of the JSON files of an untrusted checkpoint: those of the embedded model pass, dangerous ones do not."""

import json
import shutil
from pathlib import Path

import pytest

from evotok.training.checkpoint_configs import check_checkpoint, check_configs, check_counts


MINI = Path(__file__).resolve().parents[1] / "assets" / "evotok-mini"


@pytest.fixture
def folder(tmp_path):
    for path in MINI.glob("*.json"):
        shutil.copy(path, tmp_path)
    return tmp_path


def change(folder, name, keys, value):
    content = json.loads((folder / name).read_text())
    section = content
    *sections, key = keys.split(".")
    for name_of_section in sections:
        section[name_of_section] = section.get(name_of_section) or {}
        section = section[name_of_section]
    section[key] = value
    (folder / name).write_text(json.dumps(content))


def test_check_configs_accepts_the_embedded_model_and_usual_settings(folder):
    check_configs(folder, "mini")
    change(folder, "generation_config.json", "temperature", 0.7)
    change(folder, "generation_config.json", "eos_token_id", [1, 2])
    change(folder, "generation_config.json", "bad_words_ids", [[1], [2, 3]])
    change(folder, "generation_config.json", "max_time", None)
    change(folder, "generation_config.json", "stop_strings", ["a", "b"])
    change(folder, "tokenizer_config.json", "pad_to_multiple_of", 8)
    change(folder, "processor_config.json", "image_processor.image_std", 0.5)
    check_checkpoint(str(folder), "model.checkpoint")


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("config.json", "text_config.deep.deeper.width", 10**12),
        ("config.json", "vq_config.pixel_channel_multipliers", [1, 10**9]),
        ("config.json", "text_config.vocab_size", -(10**9)),
        ("tokenizer.json", "padding.strategy", {"Fixed": 1000}),
        ("tokenizer.json", "padding.pad_to_multiple_of", "8"),
        ("tokenizer.json", "truncation", [1]),
        ("tokenizer_config.json", "padding", "max_length"),
        ("tokenizer_config.json", "max_length", 10**7),
        ("tokenizer_config.json", "padding_side", "middle"),
        ("generation_config.json", "num_beams", 10**6),
        ("generation_config.json", "num_return_sequences", 1.5),
        ("generation_config.json", "temperature", float("nan")),
        ("generation_config.json", "suppress_tokens", [[1]]),
        ("generation_config.json", "bad_words_ids", [1]),
        ("generation_config.json", "early_stopping", "sometimes"),
        ("generation_config.json", "stop_strings", [1]),
        ("generation_config.json", "watermarking_config", {"bias": 1}),
        ("generation_config.json", "do_sample", 1),
        ("processor_config.json", "image_processor", []),
        ("processor_config.json", "image_processor.image_std", 0),
        ("processor_config.json", "image_processor.image_mean", [0.5, 0.5]),
        ("processor_config.json", "image_processor.size", {"shortest_edge": 64}),
        ("processor_config.json", "image_processor.do_pad", True),
    ],
    ids=str,
)
def test_check_configs_refuses_dangerous_values_in_one_line(folder, name, keys, value):
    change(folder, name, keys, value)
    with pytest.raises(ValueError) as refused:
        check_configs(folder, "model")
    message = str(refused.value)
    assert message.startswith(f"model: {name}") and "\n" not in message and len(message) < 300


@pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, "{", "[]", '{"a": ' + "9" * 5000 + "}"], ids=len)
def test_check_configs_reports_damaged_files(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="model: config.json is damaged. Copy the checkpoint again."):
        check_configs(folder, "model")


def test_check_checkpoint_requires_a_folder_or_a_hub_id(folder):
    change(folder, "generation_config.json", "num_beams", 10**6)
    with pytest.raises(ValueError, match="model.checkpoint: "):
        check_checkpoint(str(folder), "model.checkpoint")
    check_checkpoint(str(folder), "model.encoder_checkpoint")  # not of EvoTok: only sizes are checked
    check_checkpoint("google/siglip2-large-patch16-256", "model.encoder_checkpoint")
    with pytest.raises(ValueError, match="model.checkpoint: runs/a/b: no such folder"):
        check_checkpoint("runs/a/b", "model.checkpoint")


@pytest.mark.parametrize("key", ["num_layers", "n_layer", "pixel_num_res_blocks", "depth", "num_codebooks", "experts"])
def test_check_counts_limits_modules_by_the_tensors_of_the_weights(key):
    with pytest.raises(ValueError, match=f"{key} is 5000 but the weights are only 300 tensors"):
        check_counts({"text_config": {key: 5000}}, 300)
    check_counts({"text_config": {key: 300, "max_window_layers": 5000, "hidden_size": 5000}}, 300)
