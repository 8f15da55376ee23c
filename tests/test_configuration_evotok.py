"""Configurations: saving, parts of the whole, defaults, sizes that must agree."""

import copy
import logging

import pytest
from common_testers import TESTERS, MultimodalTester
from transformers import AutoConfig

from evotok import EvoTokConfig, EvoTokDepthDecoderConfig, EvoTokVQConfig


CONFIGS = [tester().get_config() for tester in TESTERS]


def without_version(config) -> dict:
    """Returns the fields of a config; a nested one has no version of Transformers."""
    return {name: value for name, value in config.to_dict().items() if name != "transformers_version"}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_saved_config_loads_equal(config, tmp_path, caplog):
    config = type(config)(**config.to_dict() | {"output_hidden_states": True, "dtype": "float16"})
    config.save_pretrained(tmp_path / "sub")
    loaded = type(config).from_pretrained(tmp_path, subfolder="sub")
    assert loaded.to_dict() == config.to_dict() and loaded.output_hidden_states
    with caplog.at_level(logging.WARNING, logger="transformers"):
        type(config)()
    assert not caplog.records, "defaults cause no warning"


def test_nested_configs_load_from_the_whole(tmp_path):
    config = MultimodalTester().get_config()
    config.save_pretrained(tmp_path)
    for name, nested in (("vq_config", EvoTokVQConfig), ("depth_decoder_config", EvoTokDepthDecoderConfig)):
        assert without_version(nested.from_pretrained(tmp_path)) == without_version(getattr(config, name))
    text = AutoConfig.for_model(**config.text_config.to_dict()).__class__.from_pretrained(tmp_path)
    assert without_version(text) == without_version(config.text_config)
    changed = EvoTokConfig.from_pretrained(tmp_path, text_config={"vocab_size": 20})
    assert changed.get_text_config().to_dict() == config.text_config.to_dict() | {"vocab_size": 20}
    assert changed.vq_config.to_dict() == config.vq_config.to_dict()


def test_attention_implementation_is_set_in_nested_configs():
    config = MultimodalTester().get_config()
    config._attn_implementation = "eager"
    nested = [config.vq_config, config.vq_config.encoder_config, config.depth_decoder_config, config.text_config]
    assert {part._attn_implementation for part in (config, *nested)} == {"eager"}
    config._attn_implementation = {"text_config": "sdpa"}
    assert config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("field", ["codebook_size", "codebook_dim", "num_codebooks", "backbone_hidden_size"])
def test_depth_decoder_sizes_are_copied_or_must_agree(field):
    fields = MultimodalTester().get_config().to_dict()
    partial = copy.deepcopy(fields)
    size = partial["depth_decoder_config"].pop(field)
    assert getattr(EvoTokConfig(**partial).depth_decoder_config, field) == size
    fields["depth_decoder_config"][field] = size + 1
    with pytest.raises(Exception, match=f"depth_decoder_config.{field}.* is {size + 1} but must be {size}"):
        EvoTokConfig(**fields)


def test_depth_decoder_heads_must_divide_the_width():
    with pytest.raises(Exception, match="hidden_size=30 must be a multiple of num_attention_heads=4"):
        EvoTokDepthDecoderConfig(hidden_size=30, num_attention_heads=4)
