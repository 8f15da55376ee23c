"""Generation: images by guided sampling, text without their settings."""

import copy
import shutil

import numpy as np
import pytest
import torch
from conftest import END, GENERATED, IMAGE, PAD, POSITIONS, START, build_tiny_model, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CompileConfig, GenerationConfig

from evotok import EvoTokForConditionalGeneration


PROMPT = torch.tensor([[3, 4, 5, START]])
PROMPTS = torch.tensor([[3, 4, 5, START], [PAD, PAD, 9, START]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
GREEDY = {"generation_mode": "image", "do_sample": False}
SAMPLED = {"generation_mode": "image", "guidance_scale": 3.0, "top_k": 10, "top_p": 0.9}
SCORES = {"return_dict_in_generate": True, "output_scores": True}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def teacher_forced_logits(model, prompt: torch.Tensor, codes: torch.Tensor, **images) -> torch.Tensor:
    """Computes logits (B, N, L, K) of codes (B, N, L) after prompts without padding by one forward pass."""
    ids = torch.cat([prompt, torch.full((len(prompt), POSITIONS), GENERATED)], dim=1)
    before = images.pop("generation_codes", codes[:0])
    hidden = model.model(ids, generation_codes=torch.cat([before, codes]), **images).last_hidden_state
    hidden = hidden[:, prompt.shape[1] - 1 : -1]
    embeddings = model.model.vq_model.quantizer.embed(codes)
    logits = model.depth_decoder(hidden.flatten(0, 1), embeddings.flatten(0, 1)).logits
    return logits.unflatten(0, codes.shape[:2])


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cache", "language_model"), [("static", "qwen2"), ("dynamic", "qwen2"), ("static", "llama")])
def test_greedy_codes_equal_the_argmax_of_forward(cache, language_model):
    model = build_tiny_model(tiny_config({"model_type": language_model}))
    codes = model.generate(PROMPT, **GREEDY, guidance_scale=1, cache_implementation=cache)
    assert codes.shape == (1, POSITIONS, 2) and codes.dtype == torch.long
    assert len(codes.unique()) > 4, "equal codes would prove nothing"
    assert torch.equal(teacher_forced_logits(model, PROMPT, codes).argmax(-1), codes)
    assert torch.equal(model.decode_image_tokens(codes), model.model.vq_model.decode_pixels(codes))
    assert torch.equal(model.decode_image_tokens(codes[0]), model.decode_image_tokens(codes))


@pytest.mark.parametrize("negative", [None, torch.tensor([[7, 8, 9, 10, 11, START]])], ids=["empty", "longer"])
def test_guided_scores_equal_two_forward_passes(tiny_model, negative):
    output = tiny_model.generate(PROMPT, **GREEDY, **SCORES, guidance_scale=2.5, negative_prompt_ids=negative)
    conditional = teacher_forced_logits(tiny_model, PROMPT, output.codes)
    negative_prompt = torch.tensor([[START]]) if negative is None else negative
    unconditional = teacher_forced_logits(tiny_model, negative_prompt, output.codes)
    expected = unconditional + 2.5 * (conditional - unconditional)
    assert output.scores.shape == (1, POSITIONS, 2, 32)
    torch.testing.assert_close(output.scores, expected, atol=1e-3, rtol=1e-4)
    assert torch.equal(expected.argmax(-1), output.codes)
    if negative is not None:
        padded = torch.nn.functional.pad(negative, (1, 0), value=PAD)
        for mask in (None, (padded != PAD).long()):
            again = tiny_model.generate(
                PROMPT, **GREEDY, guidance_scale=2.5, negative_prompt_ids=padded, negative_prompt_attention_mask=mask
            )
            assert torch.equal(again, output.codes)


@pytest.mark.parametrize("scale", [1, 3.0])
def test_batch_equals_its_prompts(tiny_model, scale):
    together = tiny_model.generate(PROMPTS, attention_mask=MASK, **GREEDY, guidance_scale=scale)
    for i in range(2):
        alone = tiny_model.generate(PROMPTS[i : i + 1, MASK[i] == 1], **GREEDY, guidance_scale=scale)
        assert torch.equal(alone[0], together[i])
    assert torch.equal(tiny_model.generate(PROMPTS, **GREEDY, guidance_scale=scale), together), "inferred mask"
    without_start = tiny_model.generate(
        PROMPTS[:, :-1], attention_mask=MASK[:, :-1], **GREEDY, guidance_scale=scale
    )  # as the text prompts of pipelines
    assert torch.equal(without_start, together)


def test_inferred_mask_hides_padding_before_a_prompt_only(fresh_model):
    """A pad token within a prompt is text, because the end of a message may be the pad token."""
    inside = torch.tensor([[3, PAD, 5, START]])
    expected = fresh_model.generate(inside, attention_mask=torch.ones_like(inside), **GREEDY)
    assert not torch.equal(expected, fresh_model.generate(torch.tensor([[3, 5, START]]), **GREEDY))
    for padded, pad in ((inside, None), (torch.nn.functional.pad(inside, (2, 0), value=9), 9)):
        assert torch.equal(fresh_model.generate(padded, **GREEDY, pad_token_id=pad), expected)
    fresh_model.generation_config.bos_token_id = PAD  # the last pad token then begins the text
    begun = torch.tensor([[PAD, 3, 4, START]])
    expected = fresh_model.generate(begun, attention_mask=torch.ones_like(begun), **GREEDY)
    assert torch.equal(fresh_model.generate(torch.nn.functional.pad(begun, (2, 0), value=PAD), **GREEDY), expected)


def test_guidance_scale_1_runs_no_unconditional_rows(tiny_model, monkeypatch):
    rows = []
    language_model = tiny_model.model.language_model
    forward = language_model.forward
    monkeypatch.setattr(
        language_model, "forward", lambda *args, **kw: rows.append(len(kw["inputs_embeds"])) or forward(*args, **kw)
    )
    monkeypatch.setattr(tiny_model.lm_head, "forward", None)  # never run
    tiny_model.generate(PROMPTS, **GREEDY, guidance_scale=1)
    assert rows == [2] * POSITIONS, "the last position is not fed back"
    rows.clear()
    tiny_model.generate(PROMPTS, **GREEDY)
    assert rows == [4] * POSITIONS


def test_seed_determines_the_codes(tiny_model):
    first, again, other = (
        tiny_model.generate(PROMPTS, **SAMPLED, num_return_sequences=3, generator=seeded(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({row.numpy().tobytes() for row in first}) == 6
    greedy = tiny_model.generate(PROMPTS, attention_mask=MASK, **GREEDY)
    copies = tiny_model.generate(PROMPTS, attention_mask=MASK, **GREEDY, num_return_sequences=2)
    assert torch.equal(copies, greedy.repeat_interleave(2, 0)), "images are beside those of their prompt"


def test_guidance_min_p_excludes_implausible_codes(tiny_model):
    def shares(guidance_min_p: float) -> torch.Tensor:
        """Returns the conditional probabilities of sampled codes, as shares of the highest."""
        arguments = SAMPLED | {"guidance_scale": 7.5, "guidance_min_p": guidance_min_p, "top_k": 0, "top_p": 1.0}
        codes = tiny_model.generate(PROMPT, **arguments, num_return_sequences=4, generator=seeded())
        conditional = teacher_forced_logits(tiny_model, PROMPT.expand(4, -1), codes).softmax(-1)
        return conditional.gather(-1, codes[..., None]).squeeze(-1) / conditional.amax(-1)

    assert (shares(0.3) >= 0.3 * (1 - 1e-4)).all() and (shares(0) < 0.3).any()


def test_prompts_accept_images_of_both_kinds(tiny_model, pixels):
    images = [START, *[IMAGE] * POSITIONS, END, START, *[GENERATED] * POSITIONS, END, START]
    ids = torch.tensor([[3, *images]])
    before = tiny_model.model.vq_model.encode(pixels[1:2])[..., :2]
    inputs = {"pixel_values": pixels[:1], "generation_codes": before}
    codes = tiny_model.generate(ids, **inputs, **GREEDY, guidance_scale=1)
    assert torch.equal(teacher_forced_logits(tiny_model, ids, codes, **inputs).argmax(-1), codes)


def test_callback_and_streamer_receive_every_position(tiny_model):
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


def test_settings_follow_call_and_config(fresh_model):
    config = fresh_model.generation_config
    config.num_return_sequences, config.return_dict_in_generate, config.output_scores = 2, True, True
    output = fresh_model.generate(PROMPT, **GREEDY)
    assert output.codes.shape == (2, POSITIONS, 2) and output.scores.shape == (2, POSITIONS, 2, 32)
    ignored = {"use_cache": True, "max_new_tokens": 3, "num_beams": 1, "output_attentions": False, "min_p": None}
    plain = fresh_model.generate(PROMPT, **GREEDY, **ignored, num_return_sequences=1, return_dict_in_generate=False)
    assert torch.equal(plain, output.codes[:1])


def test_images_are_generated_in_evaluation_mode(tiny_model, fresh_model):
    """This holds during training, too; the mode of every module is restored, also after an error."""
    expected = tiny_model.generate(PROMPTS, attention_mask=MASK, **GREEDY)
    fresh_model.train()
    fresh_model.gradient_checkpointing_enable()
    fresh_model.depth_decoder.eval()
    modes = {name: module.training for name, module in fresh_model.named_modules()}
    assert torch.equal(fresh_model.generate(PROMPTS, attention_mask=MASK, **GREEDY), expected)
    with pytest.raises(ValueError, match="must end in"):
        fresh_model.generate(torch.tensor([[3, 4], [3, START]]), **GREEDY)
    assert {name: module.training for name, module in fresh_model.named_modules()} == modes


@pytest.mark.parametrize("arguments", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_non_finite_scores_are_refused(fresh_model, arguments):
    for value in (float("nan"), float("inf")):
        fresh_model.depth_decoder.classifiers[1].proj.bias.data[3] = value
        with pytest.raises(ValueError, match="scores of codes are NaN or infinite"):
            fresh_model.generate(PROMPT, **arguments)


def test_saved_model_generates_equal_images(tiny_model, tmp_path):
    model = copy.deepcopy(tiny_model)
    model.generation_config.guidance_min_p = 0.25
    model.save_pretrained(tmp_path)
    loaded = EvoTokForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.guidance_min_p == 0.25
    codes = [each.generate(PROMPT, generation_mode="image", generator=seeded()) for each in (model, loaded)]
    assert torch.equal(*codes)
    half = EvoTokForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.decode_image_tokens(half.generate(PROMPTS, **SAMPLED)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tiny_model.generate(PROMPTS, **SAMPLED).shape == (2, POSITIONS, 2)


def test_position_is_traced_as_one_graph(fresh_model, tiny_model):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    for _ in range(2):  # the second image has new caches of the same shapes
        codes = fresh_model.generate(PROMPT, **SAMPLED, generator=seeded(), compile_config=config)
    assert torch.equal(codes, tiny_model.generate(PROMPT, **SAMPLED, generator=seeded()))
    assert len(graphs) == 1


def test_layers_of_a_kind_are_traced_as_one_graph():
    """One of the language model, one of the depth decoder for each level, one of the sampler."""
    config = tiny_config({"num_hidden_layers": 3})
    config.depth_decoder_config.num_hidden_layers = 2
    model, graphs = build_tiny_model(config), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()  # graphs of other tests count towards the limit of graphs
    arguments = SAMPLED | SCORES | {"guidance_min_p": 0.1}
    expected = model.generate(PROMPT, **arguments, generator=seeded())
    config = CompileConfig(dynamic=False, backend=backend, mode=None)
    for _ in range(2):  # the second image has new caches of the same shapes
        output = model.generate(PROMPT, **arguments, generator=seeded(), compile_config=config)
        assert torch.equal(output.codes, expected.codes)
        torch.testing.assert_close(output.scores, expected.scores)
    assert len(graphs) == 1 + 2 + 1
    assert all("forward" not in vars(module) for module in model.modules()), "the model itself is not changed"


def test_third_length_of_prompts_needs_no_new_graphs(tiny_model):
    counts, graphs = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    config = CompileConfig(backend=backend, mode=None)
    for length in (2, 4, 7):
        prompt = torch.tensor([[3] * length + [START]])
        codes = tiny_model.generate(prompt, **GREEDY, compile_config=config)
        assert torch.equal(codes, tiny_model.generate(prompt, **GREEDY))
        counts.append(len(graphs))
    assert counts[0] < counts[1] == counts[2]


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler's code for CPUs needs g++")
@pytest.mark.parametrize("fullgraph", [False, True], ids=["regions", "whole"])
def test_compiled_position_equals_eager(fullgraph):
    config = tiny_config({"num_hidden_layers": 1})
    config.depth_decoder_config.num_hidden_layers = 1
    model = build_tiny_model(config)
    expected = model.generate(PROMPT, **GREEDY)
    compiled = model.generate(PROMPT, **GREEDY, compile_config=CompileConfig(fullgraph=fullgraph))
    assert torch.equal(compiled, expected)


def test_regions_need_the_layers_of_the_language_model(fresh_model):
    del fresh_model.model.language_model.layers[0]
    with pytest.raises(ValueError, match=r"1 `layers` and its cache 2.*fullgraph=True"):
        fresh_model.generate(PROMPT, **GREEDY, compile_config=CompileConfig())


@needs_gpu
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_captured_position_equals_eager(guidance_scale):
    model, prompts, mask = build_tiny_model().cuda(), PROMPTS.cuda(), MASK.cuda()
    arguments = SAMPLED | {"attention_mask": mask, "guidance_scale": guidance_scale}
    codes = []
    for kwargs in ({}, {"disable_compile": True}, {"cache_implementation": "dynamic"}):
        generator = torch.Generator("cuda").manual_seed(1)
        codes.append(model.generate(prompts, **arguments, generator=generator, **kwargs))
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])


@needs_gpu
def test_uncapturable_position_is_refused():
    model = build_tiny_model().cuda()
    model.model.pixel_projector.register_forward_hook(lambda module, inputs, output: output * output.sum().item())
    with pytest.raises(RuntimeError, match="disable_compile=True"):
        model.generate(PROMPT.cuda(), **GREEDY)
    assert model.generate(PROMPT.cuda(), **GREEDY, disable_compile=True).shape[1] == POSITIONS


class Synchronizations(TorchDispatchMode):
    """Counter of operators for which the host waits for a GPU: values, or shapes, that depend on results."""

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


def test_positions_do_not_wait_for_the_device(tiny_model):
    counts = []
    sampling = SAMPLED | {"guidance_min_p": 0.1}
    with Synchronizations() as synchronizations:
        tiny_model.generate(
            PROMPTS, attention_mask=MASK, **sampling, callback=lambda *_: counts.append(synchronizations.count)
        )
    assert counts[0] > 0, "the lengths of the prompts are read"
    assert counts == [counts[0]] * POSITIONS


BAD_CALLS = {
    "mode": ({"generation_mode": "video"}, "'video' must be 'text' or 'image'"),
    "some starts": ({"inputs": torch.tensor([[3, 4], [3, START]])}, "All rows of input_ids must end in the start"),
    "right padding": ({"inputs": torch.tensor([[3, START, PAD]])}, "pad on the left"),
    "length": ({"inputs": torch.tensor([[3] * 240 + [START]])}, "241 tokens.*257.*at most 256.*by 1 tokens"),
    "no prompt": ({"inputs": None}, "input_ids must be token ids"),
    "negative prompt": ({"negative_prompt_ids": torch.tensor([[3, PAD]])}, "negative_prompt_ids must end"),
    "negative rows": ({"negative_prompt_ids": torch.tensor([[START]] * 3)}, "3 rows and input_ids 1"),
    "unknown argument": ({"temprature": 1.0}, "does not accept temprature"),
    "images per prompt": ({"num_return_sequences": 1.5}, "num_return_sequences=1.5 must be a whole number"),
    "cache": ({"cache_implementation": "hybrid"}, "must be 'static' or 'dynamic'"),
    "compiled cache": (
        {"cache_implementation": "dynamic", "compile_config": CompileConfig()},
        "cache_implementation='static'",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_generate_refuses_bad_calls(tiny_model, name):
    arguments, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        tiny_model.generate(**({"inputs": PROMPT, "generation_mode": "image"} | arguments))


# --- text -------------------------------------------------------------------------------------------------------------


def test_text_has_no_placeholders(fresh_model):
    fresh_model.lm_head.weight.data[[IMAGE, GENERATED]] = 100 * fresh_model.lm_head.weight.data[[5, 5]].sign()
    arguments = {"max_new_tokens": 12, "eos_token_id": -1, "do_sample": True, "temperature": 9.0}
    text = fresh_model.generate(torch.tensor([[3, 4, 5, 6]]), **arguments)
    assert not torch.isin(text, torch.tensor([IMAGE, GENERATED])).any()


def test_text_runs_without_guidance(tiny_model):
    """A call may set a scale; that of the config is for images."""
    prompt, config = PROMPT[:, :-1], GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=-1)
    expected = tiny_model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=-1)
    assert tiny_model.generation_config.guidance_scale == 7.5
    assert torch.equal(tiny_model.generate(prompt, config), expected) and config.guidance_scale is None
    guided = tiny_model.generate(prompt, config, guidance_scale=20.0)
    assert not torch.equal(guided, expected)


def test_text_is_greedy_without_temperature_or_do_sample(tiny_model, tmp_path):
    def answer(**arguments) -> list[int]:
        torch.manual_seed(0)
        return tiny_model.generate(PROMPT, max_new_tokens=12, min_new_tokens=12, **arguments)[0].tolist()

    greedy, sampled = answer(do_sample=False), answer(do_sample=True)
    assert greedy != sampled
    for arguments in ({}, {"temperature": 0}, {"temperature": None}, {"do_sample": True, "temperature": 0.0}):
        assert answer(**arguments) == greedy, arguments
    assert answer(generation_config=GenerationConfig()) == greedy
    assert answer(generation_config=copy.deepcopy(tiny_model.generation_config)) == greedy
    assert answer(temperature=1.0) == answer(generation_config=GenerationConfig(do_sample=True)) == sampled
    with pytest.raises(ValueError, match="num_return_sequences"):
        answer(num_return_sequences=2)
    tiny_model.generation_config.save_pretrained(tmp_path)  # whose checks are stricter than those of a call
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.do_sample, saved.temperature) == (True, 0.0)


def test_text_generation_accepts_images_of_both_kinds(tiny_model, pixels):
    seen, generated = [START, *[IMAGE] * POSITIONS, END], [START, *[GENERATED] * POSITIONS, END]
    ids = torch.tensor([[3, *seen, *generated, *seen, 4], [3, *seen, *generated, *generated, 4]])
    images = {"pixel_values": pixels[:3], "generation_pixel_values": pixels[[3, 1, 2]]}
    arguments = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    text = tiny_model.generate(ids, **images, **arguments)
    assert torch.equal(text, tiny_model.generate(ids, **images, **arguments, use_cache=False))
    logits = tiny_model(ids, **images).logits[:, -1]
    logits[:, [IMAGE, GENERATED]] = -torch.inf
    assert torch.equal(logits.argmax(-1), text[:, ids.shape[1]])
    codes = tiny_model.model.vq_model.encode(pixels)
    as_codes = {"image_codes": codes[:3], "generation_codes": codes[[3, 1, 2], :, :2]}
    assert torch.equal(tiny_model.generate(ids, **as_codes, **arguments), text)
    beams = arguments | {"num_beams": 2, "num_return_sequences": 2}
    several = tiny_model.generate(ids, **as_codes, **beams)
    alone = {"pixel_values": pixels[2:3], "generation_pixel_values": pixels[[1, 2]]}
    assert torch.equal(several[2:], tiny_model.generate(ids[1:], **alone, **beams)), "images of a row stay together"


def test_text_generation_accepts_embeddings_and_a_cache(tiny_model, pixels):
    ids = torch.tensor([[3, START, *[IMAGE] * POSITIONS, END, 4]])
    arguments = {"max_new_tokens": 6, "do_sample": False, "pixel_values": pixels[:1]}
    text = tiny_model.generate(ids, **arguments)
    embeds = tiny_model.get_input_embeddings()(ids)
    assert torch.equal(tiny_model.generate(inputs_embeds=embeds, **arguments), text[:, ids.shape[1] :])
    assert torch.equal(tiny_model.generate(ids, **arguments, prompt_lookup_num_tokens=2), text)
    first = tiny_model.generate(ids, **arguments | {"max_new_tokens": 3}, return_dict_in_generate=True)
    rest = {"past_key_values": first.past_key_values, "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(tiny_model.generate(first.sequences, **rest), text)


def test_numbers_of_numpy_and_torch_are_accepted(tiny_model):
    values = {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "guidance_scale": 2.5}
    expected = tiny_model.generate(PROMPT, generation_mode="image", **values, generator=seeded())
    others = {name: np.asarray(value)[()] for name, value in values.items()}
    others["temperature"] = torch.tensor(0.7, dtype=torch.float64)
    assert torch.equal(tiny_model.generate(PROMPT, generation_mode="image", **others, generator=seeded()), expected)
