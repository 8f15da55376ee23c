"""Generation: images by guided sampling, text without their settings."""

import copy
import shutil

import numpy as np
import pytest
import torch
from conftest import DRAW, END, IMAGE, PAD, POSITIONS, START, build_tiny_model, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CompileConfig, GenerationConfig

from evotok import EvoTokForConditionalGeneration
from evotok.modeling_evotok.generation_evotok import _mask_of


PROMPT = torch.tensor([[3, 4, 5, START]])
PROMPTS = torch.tensor([[3, 4, 5, START], [PAD, PAD, 9, START]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
GREEDY = {"generation_mode": "image", "do_sample": False}
SAMPLED = {"generation_mode": "image", "guidance_scale": 3.0, "top_k": 10, "top_p": 0.9}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def teacher_forced_logits(model, prompt: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Logits (B, N, L, K) of codes (B, N, L) after prompts without padding, by one plain forward pass."""
    placeholders = torch.full((len(prompt), POSITIONS), DRAW)
    ids = torch.cat([prompt, placeholders], dim=1)
    hidden = model.model(ids, generation_codes=codes).last_hidden_state[:, prompt.shape[1] - 1 : -1]
    embeddings = model.model.vq_model.quantizer.embed(codes)
    logits = model.depth_decoder(hidden.flatten(0, 1), embeddings.flatten(0, 1)).logits
    return logits.unflatten(0, codes.shape[:2])


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_unguided_greedy_codes_are_the_argmax_of_the_forward_pass(tiny_model, cache):
    codes = tiny_model.generate(PROMPT, **GREEDY, guidance_scale=1, cache_implementation=cache)
    assert codes.shape == (1, POSITIONS, 2) and codes.dtype == torch.long
    assert len(codes.unique()) > 4, "a constant image would prove nothing"
    assert torch.equal(teacher_forced_logits(tiny_model, PROMPT, codes).argmax(-1), codes)


def test_guided_scores_are_those_of_two_separate_runs(tiny_model):
    output = tiny_model.generate(PROMPT, **GREEDY, guidance_scale=2.5, return_dict_in_generate=True, output_scores=True)
    conditional = teacher_forced_logits(tiny_model, PROMPT, output.codes)
    unconditional = teacher_forced_logits(tiny_model, torch.tensor([[START]]), output.codes)
    expected = unconditional + 2.5 * (conditional - unconditional)
    assert output.scores.shape == (1, POSITIONS, 2, 32)
    torch.testing.assert_close(output.scores, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(expected.argmax(-1), output.codes)
    assert not torch.equal(output.codes, tiny_model.generate(PROMPT, **GREEDY, guidance_scale=1))


def test_negative_prompt_is_what_guidance_moves_away_from(tiny_model):
    negative = torch.tensor([[7, 8, 9, 10, 11, START]])  # longer than the prompt: the prompt's row is padded
    output = tiny_model.generate(
        PROMPT, **GREEDY, negative_prompt_ids=negative, return_dict_in_generate=True, output_scores=True
    )
    conditional = teacher_forced_logits(tiny_model, PROMPT, output.codes)
    unconditional = teacher_forced_logits(tiny_model, negative, output.codes)
    expected = unconditional + 7.5 * (conditional - unconditional)
    torch.testing.assert_close(output.scores, expected, atol=1e-3, rtol=1e-4)
    padded = torch.tensor([[PAD, 7, 8, 9, 10, 11, START]])
    for extra in ({}, {"negative_prompt_attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 1]])}):
        assert torch.equal(tiny_model.generate(PROMPT, **GREEDY, negative_prompt_ids=padded, **extra), output.codes)


@pytest.mark.parametrize("scale", [1, 3.0])
def test_a_batch_is_its_prompts_one_by_one(tiny_model, scale):
    together = tiny_model.generate(PROMPTS, attention_mask=MASK, **GREEDY, guidance_scale=scale)
    for i in range(2):
        alone = tiny_model.generate(PROMPTS[i : i + 1, MASK[i] == 1], **GREEDY, guidance_scale=scale)
        assert torch.equal(alone[0], together[i])
    inferred = tiny_model.generate(PROMPTS, **GREEDY, guidance_scale=scale)  # the mask of pad tokens
    assert torch.equal(inferred, together)


def test_left_padding_changes_nothing(tiny_model):
    padded = torch.cat([torch.full((1, 7), PAD), PROMPT], dim=1)
    mask = (padded != PAD).long()
    expected = tiny_model.generate(PROMPT, **GREEDY)
    assert torch.equal(tiny_model.generate(padded, attention_mask=mask, **GREEDY), expected)


def test_guidance_scale_one_runs_no_second_row(tiny_model, monkeypatch):
    rows = []
    language_model = tiny_model.model.language_model
    forward = language_model.forward
    monkeypatch.setattr(
        language_model, "forward", lambda *args, **kw: rows.append(len(kw["inputs_embeds"])) or forward(*args, **kw)
    )
    tiny_model.generate(PROMPTS, **GREEDY, guidance_scale=1)
    assert rows == [2] * POSITIONS  # nothing is read after the last position
    rows.clear()
    tiny_model.generate(PROMPTS, **GREEDY)
    assert rows == [4] * POSITIONS


def test_lm_head_is_not_run(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.lm_head, "forward", None)
    tiny_model.generate(PROMPT, **GREEDY)


def test_seed_fixes_the_codes_and_images_of_a_prompt_differ(tiny_model):
    first = tiny_model.generate(PROMPTS, **SAMPLED, num_return_sequences=3, generator=seeded())
    again = tiny_model.generate(PROMPTS, **SAMPLED, num_return_sequences=3, generator=seeded())
    other = tiny_model.generate(PROMPTS, **SAMPLED, num_return_sequences=3, generator=seeded(1))
    assert first.shape == (6, POSITIONS, 2)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({row.numpy().tobytes() for row in first}) == 6


def test_return_sequences_lie_beside_their_prompt(tiny_model):
    codes = tiny_model.generate(PROMPTS, attention_mask=MASK, **GREEDY, num_return_sequences=2)
    expected = tiny_model.generate(PROMPTS, attention_mask=MASK, **GREEDY)
    assert torch.equal(codes, expected.repeat_interleave(2, 0))


def test_guard_keeps_implausible_codes_out(tiny_model):
    arguments = SAMPLED | {"guidance_scale": 7.5, "guidance_min_p": 0.3, "top_k": 0, "top_p": 1.0}
    codes = tiny_model.generate(PROMPT, **arguments, num_return_sequences=4, generator=seeded())
    conditional = teacher_forced_logits(tiny_model, PROMPT.expand(4, -1), codes).softmax(-1)
    chosen = conditional.gather(-1, codes[..., None]).squeeze(-1)
    assert (chosen >= 0.3 * conditional.amax(-1) * (1 - 1e-4)).all()
    unguarded = tiny_model.generate(PROMPT, **arguments | {"guidance_min_p": 0}, generator=seeded())
    conditional = teacher_forced_logits(tiny_model, PROMPT, unguarded).softmax(-1)
    chosen = conditional.gather(-1, unguarded[..., None]).squeeze(-1)
    assert (chosen < 0.3 * conditional.amax(-1)).any()


def test_images_in_the_prompt(tiny_model, pixels):
    """An image given and one drawn before, the first seen by the conditional row only."""
    ids = torch.tensor([[3, START, *[IMAGE] * POSITIONS, END, START, *[DRAW] * POSITIONS, END, START]])
    drawn = tiny_model.model.vq_model.encode(pixels[1:2])[..., :2]
    images = {"pixel_values": pixels[:1], "generation_codes": drawn}
    codes = tiny_model.generate(ids, **images, **GREEDY, guidance_scale=1)
    full = torch.cat([ids, torch.full((1, POSITIONS), DRAW)], dim=1)
    hidden = tiny_model.model(full, pixel_values=pixels[:1], generation_codes=torch.cat([drawn, codes]))
    hidden = hidden.last_hidden_state[0, ids.shape[1] - 1 : -1]
    logits = tiny_model.depth_decoder(hidden, tiny_model.model.vq_model.quantizer.embed(codes)[0]).logits
    assert torch.equal(logits.argmax(-1), codes[0])
    tiny_model.generate(ids.repeat(2, 1), pixel_values=pixels[:2], generation_codes=drawn.repeat(2, 1, 1), **GREEDY)


def test_callback_and_streamer(tiny_model):
    class Streamer:
        def __init__(self):
            self.pieces, self.ended = [], False

        def put(self, value):
            self.pieces.append(value)

        def end(self):
            self.ended = True

    calls, streamer = [], Streamer()
    codes = tiny_model.generate(
        PROMPTS, **GREEDY, callback=lambda position, so_far: calls.append((position, so_far.shape)), streamer=streamer
    )
    assert calls == [(i, (2, i + 1, 2)) for i in range(POSITIONS)]
    assert streamer.ended and torch.equal(torch.stack(streamer.pieces, dim=1), codes)


def test_decode_image_tokens(tiny_model):
    codes = tiny_model.generate(PROMPTS, **GREEDY)
    assert torch.equal(tiny_model.decode_image_tokens(codes), tiny_model.model.vq_model.decode_pixels(codes))
    assert tiny_model.decode_image_tokens(codes).shape == (2, 3, 32, 32)


def test_values_come_from_call_then_config_then_model(fresh_model):
    def settings(generation_config=None, **kwargs):
        return fresh_model._image_settings(generation_config, kwargs)[0]

    paper = {"guidance_scale": 7.5, "guidance_min_p": 0.0, "top_k": 900, "top_p": 0.96, "temperature": 1.0}
    assert settings() | paper == settings() and settings()["do_sample"]
    fresh_model.generation_config.update(guidance_min_p=0.2, image_top_k=50, do_sample=True, temperature=0.1, top_k=3)
    assert settings()["guidance_min_p"] == 0.2 and settings()["top_k"] == 50
    assert settings()["temperature"] == 1.0, "the plain one is of text"
    given = GenerationConfig(do_sample=True, temperature=0.5, guidance_scale=2.0, num_return_sequences=3)
    assert settings(given)["temperature"] == 0.5 and settings(given)["guidance_scale"] == 2.0
    assert settings(given)["top_k"] == 50 and settings(given)["num_return_sequences"] == 3
    assert settings(given, temperature=0.7, top_k=None)["temperature"] == 0.7
    assert settings(given, top_k=None)["top_k"] is None


def test_settings_of_the_models_own_config_count_for_images(fresh_model):
    config = fresh_model.generation_config
    config.num_return_sequences, config.return_dict_in_generate, config.output_scores = 2, True, True
    config.cache_implementation = "dynamic"
    output = fresh_model.generate(PROMPT, **GREEDY)
    assert output.codes.shape == (2, POSITIONS, 2) and output.scores.shape == (2, POSITIONS, 2, 32)
    plain = fresh_model.generate(PROMPT, **GREEDY, num_return_sequences=1, return_dict_in_generate=False)
    assert torch.equal(plain, output.codes[:1])
    assert fresh_model._image_settings(None, {})[0]["cache_implementation"] == "dynamic"
    fresh_model.generation_config.cache_implementation = "offloaded"  # of text
    assert fresh_model._image_settings(None, {})[0]["cache_implementation"] is None


def test_every_field_of_a_config_counts_or_is_refused_or_is_of_text(tiny_model):
    """By the table of `image_settings_evotok`; a field that Transformers adds is to be put into it."""
    counts = {
        "guidance_scale": 2.0, "do_sample": False, "temperature": 0.5, "top_k": 7, "top_p": 0.5,
        "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True,
        "cache_implementation": "dynamic", "compile_config": CompileConfig(), "disable_compile": True,
        "pad_token_id": 5,
    }  # fmt: skip
    of_text = {
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
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    for name in sorted(known):
        config = GenerationConfig()
        setattr(config, name, counts.get(name, 3))
        if name in counts:
            assert tiny_model._image_settings(config, {})[0][name] == counts[name], name
        elif name in of_text:
            assert tiny_model._image_settings(config, {}) == tiny_model._image_settings(None, {}), name
        else:
            with pytest.raises(ValueError, match=f"no {name} for images"):
                tiny_model._image_settings(config, {})


def test_a_copy_of_the_models_config_is_not_refused(fresh_model):
    """Pipelines give one to every call."""
    fresh_model.generation_config.num_beams = 4
    fresh_model.generation_config.output_logits = True
    assert fresh_model._image_settings(copy.deepcopy(fresh_model.generation_config), {})
    with pytest.raises(ValueError, match="no num_beams for images"):
        fresh_model._image_settings(GenerationConfig(num_beams=2), {})


def test_none_unsets_a_value_and_numbers_may_be_of_numpy(tiny_model):
    unset = dict.fromkeys(("temperature", "top_k", "top_p", "guidance_scale", "guidance_min_p"))
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 1, "guidance_min_p": 0.0}
    mode = {"generation_mode": "image"}
    expected = tiny_model.generate(PROMPT, **mode, **plain, generator=seeded())
    assert torch.equal(tiny_model.generate(PROMPT, **mode, **unset, generator=seeded()), expected)
    values = {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "guidance_scale": 2.5}
    of_numpy = {name: np.asarray(value)[()] for name, value in values.items()} | {"top_p": np.float32(0.9)}
    expected = tiny_model.generate(PROMPT, **mode, **values | {"top_p": float(np.float32(0.9))}, generator=seeded())
    assert torch.equal(tiny_model.generate(PROMPT, **mode, **of_numpy, generator=seeded()), expected)
    of_torch = values | {"temperature": torch.tensor(0.7, dtype=torch.float64)}
    tiny_model.generate(PROMPT, **mode, **of_torch)


def test_what_asks_for_nothing_is_taken(tiny_model):
    expected = tiny_model.generate(PROMPT, **GREEDY)
    nothing = {"use_cache": True, "max_new_tokens": 3, "num_beams": 1, "output_attentions": False, "min_p": None}
    assert torch.equal(tiny_model.generate(PROMPT, **GREEDY, **nothing), expected)


def test_only_padding_before_a_prompt_is_masked(tiny_model):
    """Where the pad token is one of text, as the end of a turn often is."""
    inside = torch.tensor([[3, PAD, 5, START]])
    expected = tiny_model.generate(inside, attention_mask=torch.ones_like(inside), **GREEDY)
    assert not torch.equal(expected, tiny_model.generate(torch.tensor([[3, 5, START]]), **GREEDY))
    assert torch.equal(tiny_model.generate(inside, **GREEDY), expected)
    padded = torch.nn.functional.pad(inside, (2, 0), value=PAD)
    assert torch.equal(tiny_model.generate(padded, **GREEDY), expected)
    by_call = torch.nn.functional.pad(inside, (2, 0), value=9)
    assert torch.equal(tiny_model.generate(by_call, **GREEDY, pad_token_id=9), expected)
    config = GenerationConfig(pad_token_id=2, bos_token_id=2)  # the beginning of text pads, too
    assert _mask_of(torch.tensor([[2, 2, 3, 4], [2, 3, 2, 5]]), config.pad_token_id, config.bos_token_id).tolist() == [
        [0, 1, 1, 1],
        [1, 1, 1, 1],
    ]


def test_an_image_is_opened_where_no_prompt_does_it(tiny_model):
    """As the prompts of pipelines are, which are made for text; where some do, it is a mistake: see `BAD_CALLS`."""
    expected = tiny_model.generate(PROMPTS, attention_mask=MASK, **GREEDY)
    assert torch.equal(tiny_model.generate(PROMPTS[:, :-1], attention_mask=MASK[:, :-1], **GREEDY), expected)


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_images_are_generated_in_evaluation_mode(tiny_model, fresh_model, cache):
    """Samples in the middle of a training, by a trainer of one's own."""
    expected = tiny_model.generate(PROMPTS, attention_mask=MASK, **GREEDY)
    fresh_model.train()
    fresh_model.gradient_checkpointing_enable()
    fresh_model.depth_decoder.eval()
    modes = {name: module.training for name, module in fresh_model.named_modules()}
    codes = fresh_model.generate(PROMPTS, attention_mask=MASK, **GREEDY, cache_implementation=cache)
    assert torch.equal(codes, expected)
    assert {name: module.training for name, module in fresh_model.named_modules()} == modes
    with pytest.raises(ValueError, match="must end in"):
        fresh_model.generate(torch.tensor([[3, 4], [3, START]]), **GREEDY)
    assert {name: module.training for name, module in fresh_model.named_modules()} == modes


@pytest.mark.parametrize("arguments", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_scores_that_are_not_finite_make_no_image(fresh_model, arguments):
    bias = fresh_model.depth_decoder.classifiers[1].proj.bias
    for value in (float("nan"), float("inf")):
        bias.data[3] = value
        with pytest.raises(ValueError, match="scores of codes are NaN or infinite"):
            fresh_model.generate(PROMPT, **arguments)


def test_text_is_plain_transformers_generation(tiny_model, fresh_model, pixels):
    """No second forward pass per token, no placeholder in the text, images expanded row by row."""
    assert tiny_model.generation_config.guidance_scale == 7.5
    prompts = torch.tensor([[PAD, PAD, 5, 6], [3, 4, 5, 6]])
    arguments = {
        "attention_mask": (prompts != PAD).long(),
        "max_new_tokens": 12,
        "do_sample": False,
        "eos_token_id": -1,
    }
    text = tiny_model.generate(prompts, **arguments)
    alone = tiny_model.generate(prompts[:1, 2:], **arguments | {"attention_mask": None})
    assert torch.equal(text[0, 2:], alone[0])
    plain = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=-1)
    assert torch.equal(tiny_model.generate(prompts, plain, attention_mask=arguments["attention_mask"]), text)
    assert plain.guidance_scale is None
    fresh_model.lm_head.weight.data[[IMAGE, DRAW]] = 100 * fresh_model.lm_head.weight.data[[5, 5]].sign()
    text = fresh_model.generate(prompts, **arguments | {"do_sample": True, "temperature": 9.0})
    assert not torch.isin(text, torch.tensor([IMAGE, DRAW])).any()


def test_text_modes_of_transformers(tiny_model, pixels):
    ids = torch.tensor([[3, START, *[IMAGE] * POSITIONS, END, 4]])
    arguments = {"max_new_tokens": 6, "do_sample": False, "pixel_values": pixels[:1]}
    text = tiny_model.generate(ids, **arguments)
    embeds = tiny_model.get_input_embeddings()(ids)
    assert torch.equal(tiny_model.generate(inputs_embeds=embeds, **arguments), text[:, ids.shape[1] :])
    static = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(tiny_model.generate(ids, **arguments, **static), text)
    assert torch.equal(tiny_model.generate(ids, **arguments, prompt_lookup_num_tokens=2), text)
    first = tiny_model.generate(ids, **arguments | {"max_new_tokens": 3}, return_dict_in_generate=True)
    rest = tiny_model.generate(
        first.sequences, past_key_values=first.past_key_values, max_new_tokens=3, do_sample=False
    )
    assert torch.equal(rest, text)


def test_text_after_images_of_both_kinds(tiny_model, pixels):
    seen, drawn = [START, *[IMAGE] * POSITIONS, END], [START, *[DRAW] * POSITIONS, END]
    rows = [[3, *seen, *drawn, *seen, 4], [3, *seen, *drawn, *drawn, 4]]
    ids = torch.tensor(rows)
    images = {"pixel_values": pixels[:3], "generation_pixel_values": pixels[[3, 1, 2]]}
    arguments = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    text = tiny_model.generate(ids, **images, **arguments)
    uncached = tiny_model.generate(ids, **images, **arguments, use_cache=False)
    assert torch.equal(text, uncached)
    logits = tiny_model(ids, **images).logits[:, -1]
    logits[:, [IMAGE, DRAW]] = -torch.inf
    assert torch.equal(logits.argmax(-1), text[:, ids.shape[1]])
    several = tiny_model.generate(ids, **images, **arguments, num_beams=2, num_return_sequences=2)
    again = tiny_model.generate(ids[1:], pixel_values=pixels[2:3], generation_pixel_values=pixels[[1, 2]],
                                **arguments, num_beams=2, num_return_sequences=2)  # fmt: skip
    assert torch.equal(several[2:], again)
    codes = tiny_model.model.vq_model.encode(pixels)
    as_codes = {"image_codes": codes[:3], "generation_codes": codes[[3, 1, 2], :, :2]}
    assert torch.equal(tiny_model.generate(ids, **as_codes, **arguments), text)
    assert torch.equal(tiny_model.generate(ids, **as_codes, **arguments, num_beams=2, num_return_sequences=2), several)


def test_images_of_a_row_are_repeated_together(tiny_model, pixels):
    ids = torch.tensor([[DRAW] * 2 * POSITIONS, [DRAW] * POSITIONS + [3] * POSITIONS])
    codes = tiny_model.model.vq_model.encode(pixels[:3])[..., :2]
    expanded_ids, images = tiny_model._expand_inputs_for_generation(2, input_ids=ids, generation_codes=codes)
    assert torch.equal(expanded_ids, ids.repeat_interleave(2, 0))
    assert torch.equal(images["generation_codes"], codes[[0, 1, 0, 1, 2, 2]])


def test_saved_model_generates_the_same(tiny_model, tmp_path):
    model = copy.deepcopy(tiny_model)
    model.generation_config.guidance_min_p = 0.25
    model.save_pretrained(tmp_path)
    loaded = EvoTokForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.guidance_min_p == 0.25
    arguments = {"generation_mode": "image", "top_k": 10, "num_return_sequences": 2}
    expected = model.generate(PROMPT, **arguments, generator=seeded())
    assert torch.equal(loaded.generate(PROMPT, **arguments, generator=seeded()), expected)


def test_llama_draws():
    model = build_tiny_model(tiny_config({"model_type": "llama"}))
    codes = model.generate(PROMPTS, **GREEDY, guidance_scale=1)
    assert torch.equal(teacher_forced_logits(model, PROMPT, codes[:1]).argmax(-1), codes[:1])


@pytest.mark.parametrize("arguments", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_position_traces_as_one_whole_graph(fresh_model, tiny_model, arguments):
    """No break for the compiler in reading a position and writing its levels (tracing only: no code is built)."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    for _ in range(2):  # the second image has caches of its own, but the same shapes
        codes = fresh_model.generate(PROMPT, **arguments, generator=seeded(), compile_config=config)
    assert torch.equal(codes, tiny_model.generate(PROMPT, **arguments, generator=seeded()))
    assert len(graphs) == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler's code for CPUs needs g++")
def test_a_compiled_position_draws_the_same():
    """The step that is run for every position but the first: language model, depth loop and sampling."""
    config = tiny_config({"num_hidden_layers": 1})
    config.depth_decoder_config.num_hidden_layers = 1
    model = build_tiny_model(config)
    expected = model.generate(PROMPT, **GREEDY)
    assert torch.equal(model.generate(PROMPT, **GREEDY, compile_config=CompileConfig(fullgraph=True)), expected)


def test_what_grows_is_not_compiled(tiny_model):
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        tiny_model.generate(PROMPT, **GREEDY, cache_implementation="dynamic", compile_config=CompileConfig())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_recorded_position_draws_the_same(guidance_scale):
    model, prompts, mask = build_tiny_model().cuda(), PROMPTS.cuda(), MASK.cuda()
    arguments = SAMPLED | {"attention_mask": mask, "guidance_scale": guidance_scale}
    draws = []
    for kwargs in ({}, {"disable_compile": True}, {"cache_implementation": "dynamic"}):
        generator = torch.Generator("cuda").manual_seed(1)
        draws.append(model.generate(prompts, **arguments, generator=generator, **kwargs))
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_what_cannot_be_recorded_says_what_to_do():
    model = build_tiny_model().cuda()
    model.model.pixel_projector.register_forward_hook(lambda module, inputs, output: output * output.sum().item())
    with pytest.raises(RuntimeError, match="disable_compile=True"):
        model.generate(PROMPT.cuda(), **GREEDY)
    assert model.generate(PROMPT.cuda(), **GREEDY, disable_compile=True).shape[1] == POSITIONS


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: values, or shapes, that depend on what is computed."""

    WAITING = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "multinomial", "nonzero", "unique"}

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operator = func.overloadpacket.__name__
        masks = operator.startswith("index") and any(
            isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:2])
        )
        self.count += masks or operator in self.WAITING
        return func(*args, **(kwargs or {}))


def test_the_loop_waits_for_nothing(tiny_model):
    """Of the prompt, lengths are looked at; after it there is nothing that a GPU would have to be asked."""
    counts = []
    sampling = SAMPLED | {"guidance_min_p": 0.1}
    with Waits() as waits:
        tiny_model.generate(
            PROMPTS, attention_mask=MASK, **sampling, callback=lambda position, codes: counts.append(waits.count)
        )
    assert counts[0] > 0, "it would not be noticed"
    assert counts == [counts[0]] * POSITIONS


def test_half_precision(tiny_model, tmp_path):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tiny_model.generate(PROMPTS, **SAMPLED).shape == (2, POSITIONS, 2)
    tiny_model.save_pretrained(tmp_path)
    loaded = EvoTokForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    codes = loaded.generate(PROMPTS, **SAMPLED)
    assert loaded.decode_image_tokens(codes).dtype == torch.float32


def test_eager_attention_draws_the_same(tiny_model, fresh_model):
    fresh_model.set_attn_implementation("eager")
    assert torch.equal(fresh_model.generate(PROMPTS, **GREEDY), tiny_model.generate(PROMPTS, **GREEDY))


BAD_CALLS = {
    "mode": ({"generation_mode": "video"}, "'video' must be 'text' or 'image'"),
    "end": (
        {"inputs": torch.tensor([[3, 4], [3, START]])},
        "All rows of input_ids must end in the start-of-image token",
    ),
    "right padding": ({"inputs": torch.tensor([[3, START, PAD]])}, "pad on the left"),
    "length": ({"inputs": torch.tensor([[3] * 240 + [START]])}, "241 tokens.*257.*at most 256.*by 1 tokens"),
    "no prompt": ({"inputs": None}, "input_ids must be token ids"),
    "negative prompt": ({"negative_prompt_ids": torch.tensor([[3, PAD]])}, "negative_prompt_ids must end"),
    "negative rows": ({"negative_prompt_ids": torch.tensor([[START]] * 3)}, "3 rows and input_ids 1"),
    "typo": ({"temprature": 1.0}, "takes no temprature"),
    "length argument": ({"min_new_tokens": 5}, "takes no min_new_tokens"),
    "guard": ({"guidance_min_p": 1.5}, r"guidance_min_p=1.5 must be in \[0, 1\]"),
    "scale": ({"guidance_scale": -1.0}, "guidance_scale=-1.0 must be a number, at least 0"),
    "top_p": ({"top_p": 0.0}, "top_p=0.0 must be in"),
    "copies below 1": ({"num_return_sequences": -1}, "num_return_sequences=-1 must be a whole number, 1 or more"),
    "copies and a half": ({"num_return_sequences": 1.5}, "num_return_sequences=1.5 must be a whole number"),
    "top_k": ({"top_k": 2.5}, "top_k=2.5 must be a whole number"),
    "cache": ({"cache_implementation": "hybrid"}, "must be 'static' or 'dynamic'"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(tiny_model, name):
    arguments, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        tiny_model.generate(**({"inputs": PROMPT, "generation_mode": "image"} | arguments))
