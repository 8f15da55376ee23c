"""Every configuration behaves as Transformers' common tests of configurations ask (`ConfigTester`)."""

import json
import logging

import pytest
import torch
from common_testers import TESTERS, MultimodalTester
from transformers import AutoConfig

from evotok import EvoTokConfig, EvoTokDepthDecoderConfig, EvoTokVQConfig


CONFIGS = {type(tester().get_config()): tester for tester in TESTERS}


@pytest.fixture(params=CONFIGS, ids=lambda config_class: config_class.__name__)
def config(request):
    return CONFIGS[request.param]().get_config()


def test_it_makes_the_round_trip(config, tmp_path):
    config.to_json_file(tmp_path / "config.json")
    assert type(config).from_json_file(tmp_path / "config.json").to_dict() == config.to_dict()
    config.save_pretrained(tmp_path / "folder" / "sub")
    for loaded in (
        type(config).from_pretrained(tmp_path / "folder" / "sub"),
        type(config).from_pretrained(tmp_path / "folder", subfolder="sub"),
    ):
        assert loaded.to_dict() == config.to_dict()
    with pytest.raises(OSError, match=r"missing"):
        type(config).from_pretrained(tmp_path / "missing")


def test_what_is_given_is_written(config):
    given = {"initializer_range": 0.125, "id2label": {0: "a", 1: "b"}}
    if isinstance(config, EvoTokDepthDecoderConfig):
        given |= {"hidden_size": 80, "num_attention_heads": 5, "num_hidden_layers": 3}
    written = json.loads(type(config)(**given).to_json_string())
    assert written["initializer_range"] == 0.125
    assert written["id2label"] == {"0": "a", "1": "b"}
    for name, value in list(given.items())[2:]:
        assert written[name] == value


def test_common_arguments_are_kept(config):
    common = {
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "dtype": "float16",
        "chunk_size_feed_forward": 5,
        "architectures": ["BertModel"],
        "problem_type": "regression",
    }
    built = type(config)(**common)
    for name, value in common.items():
        assert getattr(built, name) == (torch.float16 if name == "dtype" else value), name


def test_number_of_labels(config):
    built = type(config)(num_labels=5)
    assert len(built.id2label) == len(built.label2id) == 5
    built.num_labels = 3
    assert len(built.id2label) == len(built.label2id) == 3


def test_defaults_are_silent(config, caplog):
    with caplog.at_level(logging.WARNING, logger="transformers"):
        type(config)()
    assert not caplog.records


def test_parts_load_alone_from_the_whole(tmp_path):
    config = MultimodalTester().get_config()
    config.save_pretrained(tmp_path)
    for name, part in (("vq_config", EvoTokVQConfig), ("depth_decoder_config", EvoTokDepthDecoderConfig)):
        alone = part.from_pretrained(tmp_path)
        assert type(alone) is type(getattr(config, name))
        assert without_version(alone) == without_version(getattr(config, name))
        alone.save_pretrained(tmp_path / name)
        assert part.from_pretrained(tmp_path / name).to_dict() == alone.to_dict()
    text = AutoConfig.for_model(**config.text_config.to_dict()).__class__.from_pretrained(tmp_path)
    assert without_version(text) == without_version(config.text_config)


def without_version(config) -> dict:
    """A nested configuration does not say which release wrote it."""
    return {name: value for name, value in config.to_dict().items() if name != "transformers_version"}


def test_a_changed_value_changes_nothing_beside_it(tmp_path):
    config = MultimodalTester().get_config()
    config.save_pretrained(tmp_path)
    reloaded = EvoTokConfig.from_pretrained(tmp_path, text_config={"vocab_size": 20})
    assert reloaded.get_text_config().to_dict() == config.text_config.to_dict() | {"vocab_size": 20}
    assert reloaded.vq_config.to_dict() == config.vq_config.to_dict()


def test_attention_implementations_of_parts():
    config = MultimodalTester().get_config()
    config._attn_implementation = "eager"
    parts = [config.vq_config, config.vq_config.encoder_config, config.depth_decoder_config, config.text_config]
    assert {part._attn_implementation for part in (config, *parts)} == {"eager"}
    config._attn_implementation = {"text_config": "sdpa"}
    assert config.text_config._attn_implementation == "sdpa"
