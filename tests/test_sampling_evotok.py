"""Sampling of codes: where settings come from, guidance, warping, noise."""

import copy

import pytest
import torch
from conftest import tiny_config
from transformers import CompileConfig, GenerationConfig, TopKLogitsWarper, TopPLogitsWarper

from evotok.modeling_evotok.sampling_evotok import EvoTokCodeSampler, image_generation_config, read_settings


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def own() -> GenerationConfig:
    """Returns the config of a new model."""
    return image_generation_config(tiny_config())


def test_settings_follow_call_then_config_then_model(own):
    paper = {"guidance_scale": 7.5, "guidance_min_p": 0.0, "top_k": 900, "top_p": 0.96, "temperature": 1.0}
    settings = read_settings(own, None, {})
    assert settings | paper == settings and settings["do_sample"]
    own.update(guidance_min_p=0.2, image_top_k=50, do_sample=True, temperature=0.1, top_k=3)
    settings = read_settings(own, None, {})
    assert settings["guidance_min_p"] == 0.2 and settings["top_k"] == 50
    assert settings["temperature"] == 1.0, "the plain one is for text"
    given = GenerationConfig(do_sample=True, temperature=0.5, guidance_scale=2.0, num_return_sequences=3)
    expected = {"temperature": 0.5, "guidance_scale": 2.0, "top_k": 50, "num_return_sequences": 3}
    settings = read_settings(own, given, {})
    assert settings | expected == settings
    settings = read_settings(own, given, {"temperature": 0.7, "top_k": None})
    assert settings["temperature"] == 0.7 and settings["top_k"] is None
    for cache, expected in (("dynamic", "dynamic"), ("offloaded", None)):  # the latter is for text only
        own.cache_implementation = cache
        assert read_settings(own, None, {})["cache_implementation"] == expected


def test_config_fields_are_used_refused_or_for_text(own):
    """The table of `sampling_evotok` lists them; a field that Transformers adds belongs there."""
    used = {
        "guidance_scale": 2.0, "do_sample": False, "temperature": 0.5, "top_k": 7, "top_p": 0.5,
        "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True,
        "cache_implementation": "dynamic", "compile_config": CompileConfig(), "disable_compile": True,
        "pad_token_id": 5,
    }  # fmt: skip
    text_only = {
        "max_length", "max_new_tokens", "min_length", "min_new_tokens", "early_stopping", "stop_strings", "use_cache",
        "cache_config", "max_cache_len", "repetition_penalty", "encoder_repetition_penalty", "length_penalty",
        "no_repeat_ngram_size", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id",
        "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "sequence_bias",
        "token_healing", "bos_token_id", "eos_token_id", "encoder_no_repeat_ngram_size", "decoder_start_token_id",
        "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
        "target_lookbehind", "assistant_ensemble_weight", "speculation_type", "continuous_batching_config",
        "low_memory", "diversity_penalty", "prefill_chunk_size",
    }  # fmt: skip
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    for name in sorted(fields):
        config = GenerationConfig()
        setattr(config, name, used.get(name, 3))
        if name in used:
            assert read_settings(own, config, {})[name] == used[name], name
        elif name in text_only:
            assert read_settings(own, config, {}) == read_settings(own, None, {}), name
        else:
            with pytest.raises(ValueError, match=f"no {name} for images"):
                read_settings(own, config, {})


def test_copy_of_the_models_config_is_accepted(own):
    """Pipelines pass one to every call."""
    own.num_beams, own.output_logits = 4, True
    assert read_settings(own, copy.deepcopy(own), {})
    with pytest.raises(ValueError, match="no num_beams for images"):
        read_settings(own, GenerationConfig(num_beams=2), {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"guidance_min_p": 1.5}, r"guidance_min_p=1.5 must be in \[0, 1\]"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0 must be a number, at least 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be in"),
        ({"top_k": 2.5}, "top_k=2.5 must be a whole number"),
    ],
    ids=str,
)
def test_sampler_refuses_values_out_of_range(value, message):
    with pytest.raises(ValueError, match=message):
        EvoTokCodeSampler(**value)


def test_none_unsets_a_value():
    names = ("temperature", "top_k", "top_p", "guidance_scale", "guidance_min_p")
    plain = EvoTokCodeSampler(temperature=1.0, top_k=0, top_p=1.0, guidance_scale=1, guidance_min_p=0.0)
    assert EvoTokCodeSampler(**dict.fromkeys(names)) == plain


def test_warp_equals_transformers():
    scores = torch.randn(6, 50, generator=seeded()) * 3
    for top_k, top_p, temperature in ((10, 0.9, 1.0), (900, 0.5, 0.7), (0, 0.3, 1.0), (5, 1.0, 2.0), (None, None, 1)):
        expected = scores / temperature
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p:
            expected = TopPLogitsWarper(top_p)(None, expected)
        warped = EvoTokCodeSampler(top_k=top_k, top_p=top_p, temperature=temperature).warp(scores)
        torch.testing.assert_close(warped, expected)
    ties = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert EvoTokCodeSampler(top_k=2, top_p=1.0).warp(ties).isfinite().tolist() == [[False, True, True, True, False]]


def test_sampler_equals_multinomial():
    logits = 3 * torch.randn(64, 50, generator=seeded())
    sampler = EvoTokCodeSampler(guidance_scale=1, top_k=10, top_p=0.9, generator=seeded(1))
    probabilities = sampler.warp(logits).softmax(-1)
    codes = sampler(logits)
    assert torch.equal(codes, torch.multinomial(probabilities, 1, generator=seeded(1)).squeeze(-1))
    assert len(codes.unique()) > 10 and not torch.equal(sampler(logits), codes)


def test_guided_sampler_assigns_both_rows_one_code():
    logits = torch.randn(8, 50, generator=seeded())
    codes = EvoTokCodeSampler(guidance_scale=2.0, generator=seeded())(logits)
    assert codes.shape == (8,) and torch.equal(codes[:4], codes[4:])
    greedy = EvoTokCodeSampler(guidance_scale=2.0, temperature=0)(logits)
    assert torch.equal(greedy[:4], (logits[4:] + 2 * (logits[:4] - logits[4:])).argmax(-1))


@pytest.mark.parametrize("do_sample", [True, False])
def test_sampling_is_one_graph_for_all_levels(do_sample):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    sampler = EvoTokCodeSampler(guidance_scale=3.0, guidance_min_p=0.1, do_sample=do_sample, top_k=10, temperature=0.8)
    compiled = torch.compile(sampler.sample, fullgraph=True, backend=backend)
    for seed in range(4):
        logits = 3 * torch.randn(8, 50, generator=seeded(seed))
        logits[0, 7] = float("nan") if seed == 3 else 0.0
        noise = torch.empty(4, 50).exponential_(generator=seeded(seed))
        sampled, expected = compiled(logits, noise), sampler.sample(logits, noise)
        assert torch.equal(sampled.codes, expected.codes) and bool(sampled.failed) == (seed == 3)
        torch.testing.assert_close(sampled.scores, expected.scores, rtol=0, atol=0, equal_nan=True)
    assert len(graphs) == 1


def test_generators_per_image_make_rows_independent():
    logits = 3 * torch.randn(4, 50, generator=seeded())
    alone = [EvoTokCodeSampler(guidance_scale=1, generator=seeded(seed))(logits[seed, None]) for seed in range(4)]
    together = EvoTokCodeSampler(guidance_scale=1, generator=[seeded(seed) for seed in range(4)])(logits)
    assert torch.equal(together, torch.cat(alone)) and len(together.unique()) > 1
    with pytest.raises(ValueError, match="2 generators for 4 images"):
        EvoTokCodeSampler(guidance_scale=1, generator=[seeded(), seeded()])(logits)
