"""The multimodal model: inputs of every kind, both losses, gradients, casts, saving and bad input."""

import pytest
import torch
import torch.nn.functional as F
from conftest import END, GENERATED, IMAGE, PAD, POSITIONS, START, build_tiny_model, tiny_config
from transformers import AutoModelForCausalLM

from evotok import EvoTokConfig, EvoTokForConditionalGeneration, EvoTokModel
from evotok.modeling_evotok import modeling_evotok_vq


INPUT_IMAGE, GENERATED_IMAGE = [START, *[IMAGE] * POSITIONS, END], [START, *[GENERATED] * POSITIONS, END]
BOTH = [*INPUT_IMAGE, *GENERATED_IMAGE, 4]


def batch_of(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Builds a batch of token ids, padded on the right, with labels everywhere but on padding."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def images_of(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pixel_values": pixels[:1], "generation_pixel_values": pixels[1:2]}


def count_parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_model_has_the_size_of_the_paper():
    with torch.device("meta"):
        model = EvoTokForConditionalGeneration(EvoTokConfig())
    assert count_parameters(model.model.vq_model) == 391_216_267
    assert count_parameters(model.depth_decoder) == 817_027_072
    assert count_parameters(model.model.semantic_projector) == 16_522_240
    assert count_parameters(model.model.pixel_projector) == 12_966_912
    assert count_parameters(model.model.language_model) + count_parameters(model.lm_head) == 7_615_616_512


def test_model_on_text_equals_the_language_model(tiny_model):
    batch = batch_of([[5, 6, 7, 8], [9, 10]])
    language_model = AutoModelForCausalLM.from_config(tiny_model.config.text_config).eval()
    language_model.model.load_state_dict(tiny_model.model.language_model.state_dict())
    language_model.lm_head.load_state_dict(tiny_model.lm_head.state_dict())
    expected, output = language_model(**batch), tiny_model(**batch)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close((output.loss, output.text_loss), (expected.loss, expected.loss))
    assert output.image_loss is None


def test_placeholders_become_projected_features(tiny_model, pixels):
    model = tiny_model.model
    ids = torch.tensor([[3, *INPUT_IMAGE, *GENERATED_IMAGE, 4]])
    codes = model.vq_model.encode(pixels[:2])
    embeds = model.get_input_embeddings()(ids)
    embeds[ids == IMAGE] = model.semantic_projector(model.vq_model.decode_semantics(codes[:1]))[0]
    embeds[ids == GENERATED] = model.pixel_projector(model.vq_model.quantizer.decode_codes(codes[1:, :, :2]))[0]
    expected = model.language_model(inputs_embeds=embeds).last_hidden_state
    output = model(input_ids=ids, **images_of(pixels))
    torch.testing.assert_close(output.last_hidden_state, expected)
    as_codes = model(input_ids=ids, image_codes=codes[:1], generation_codes=codes[1:, :, :2])
    torch.testing.assert_close(as_codes.last_hidden_state, expected)
    assert torch.equal(output.generation_codes, codes[1:, :, :2])


def test_image_loss_equals_eq_11(tiny_model, pixels):
    batch = batch_of([[3, 4, *GENERATED_IMAGE], [*GENERATED_IMAGE, 6]])
    batch["labels"][1] = -100  # a generated image that is no target
    output = tiny_model(**batch, generation_pixel_values=pixels[:2], output_hidden_states=True)
    hidden = output.hidden_states[-1][0, 2 : 2 + POSITIONS]  # the start of the image predicts position 0
    codes = tiny_model.model.vq_model.encode(pixels[:1])[0, :, :2]
    embeddings = tiny_model.model.vq_model.quantizer.embed(codes)
    logits = tiny_model.depth_decoder(hidden, embeddings).logits
    expected = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
    torch.testing.assert_close(output.image_loss, expected.mean())
    torch.testing.assert_close(output.image_level_losses, expected.mean(0))


def test_image_loss_skips_a_position_at_the_start_of_a_row(tiny_model, pixels):
    whole = batch_of([[GENERATED] * POSITIONS + [END]])
    rest = {name: value.clone() for name, value in whole.items()}
    rest["labels"][0, 0] = -100
    losses = [tiny_model(**batch, generation_pixel_values=pixels[:1]).image_loss for batch in (whole, rest)]
    assert torch.equal(*losses)


def test_mixed_batch_equals_its_rows(tiny_model, pixels):
    """The rows are text only, an input image, a generated image, and two images of each kind."""
    rows = [[3, 4, 5, 6], [3, *INPUT_IMAGE, 5], [3, *GENERATED_IMAGE, 5]]
    rows += [[3, *INPUT_IMAGE, 4, *GENERATED_IMAGE, 7, *GENERATED_IMAGE, *INPUT_IMAGE, 8]]
    inputs, generated = [[], [0], [], [1, 2]], [[], [], [3], [0, 1]]
    output = tiny_model(
        **batch_of(rows), pixel_values=pixels[sum(inputs, [])], generation_pixel_values=pixels[sum(generated, [])]
    )
    text_sum, text_count, image_sum, image_count = 0.0, 0, 0.0, 0
    for i, row in enumerate(rows):
        images = {"pixel_values": inputs[i], "generation_pixel_values": generated[i]}
        alone = tiny_model(**batch_of([row]), **{name: pixels[which] for name, which in images.items() if which})
        torch.testing.assert_close(alone.logits[0], output.logits[i, : len(row)], atol=1e-4, rtol=1e-4)
        count = sum(token not in (IMAGE, GENERATED) for token in row[1:])
        text_sum, text_count = text_sum + count * alone.text_loss, text_count + count
        if generated[i]:
            image_sum, image_count = image_sum + len(generated[i]) * alone.image_loss, image_count + len(generated[i])
    torch.testing.assert_close(output.text_loss, text_sum / text_count)
    torch.testing.assert_close(output.image_loss, image_sum / image_count)


def test_loss_is_the_weighted_sum_of_the_kinds_present(pixels):
    model = build_tiny_model(tiny_config(text_loss_weight=0.5, image_loss_weight=2.0))
    batch = batch_of([[3, *GENERATED_IMAGE]])
    output = model(**batch, generation_pixel_values=pixels[:1])
    torch.testing.assert_close(output.loss, 0.5 * output.text_loss + 2 * output.image_loss)
    batch["labels"][batch["labels"] != GENERATED] = -100
    output = model(**batch, generation_pixel_values=pixels[:1])
    assert output.text_loss is None
    torch.testing.assert_close(output.loss, 2 * output.image_loss)


@pytest.mark.parametrize("kinds", [(), ("pixel_values",), ("pixel_values", "generation_pixel_values")], ids=len)
def test_training_computes_a_gradient_for_every_parameter(fresh_model, pixels, kinds):
    """DDP and ZeRO-3 require one in every batch, zero where a module is not used. The loss is that of evaluation."""
    row = [3, *(INPUT_IMAGE if kinds else ()), *(GENERATED_IMAGE if len(kinds) > 1 else ()), 4]
    batch = batch_of([row]) | dict.fromkeys(kinds, pixels[:1])
    expected = fresh_model(**batch)
    for layer in fresh_model.depth_decoder.layers:
        layer.dropout.p = 0.0
    before = {name: value.clone() for name, value in fresh_model.model.vq_model.state_dict().items()}
    output = fresh_model.train()(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss)
    assert output.logits is None and expected.logits.shape == (*batch["input_ids"].shape, 128)
    for name, parameter in fresh_model.named_parameters():
        assert ("vq_model" in name) == (parameter.grad is None), name
    for name, value in fresh_model.model.vq_model.state_dict().items():
        assert torch.equal(value, before[name]), name
    used = {module: any(p.grad.any() for p in module.parameters()) for module in (
        fresh_model.model.language_model, fresh_model.model.semantic_projector,
        fresh_model.model.pixel_projector, fresh_model.depth_decoder,
    )}  # fmt: skip
    assert list(used.values()) == [True, len(kinds) > 0, len(kinds) > 1, len(kinds) > 1]


def test_training_does_not_run_unused_frozen_modules(fresh_model, monkeypatch):
    fresh_model.depth_decoder.requires_grad_(False)
    fresh_model.model.pixel_projector.requires_grad_(False)
    monkeypatch.setattr(fresh_model.depth_decoder, "loss", None)
    monkeypatch.setattr(fresh_model.model, "get_generation_features", None)
    fresh_model.train()(**batch_of([[3, 4]])).loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_keeps_loss_and_gradients(fresh_model, pixels, reentrant):
    for layer in fresh_model.depth_decoder.layers:
        layer.dropout.p = 0.0
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            fresh_model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            fresh_model.enable_input_require_grads()
        layers = fresh_model.model.language_model.layers[0], fresh_model.depth_decoder.layers[0]
        calls = []
        hooks = [layer.self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1)) for layer in layers]
        loss = fresh_model.train()(**batch_of([BOTH]), **images_of(pixels), use_cache=False).loss
        loss.backward()
        assert len(calls) == 2 * (1 + checkpointing)
        for hook in hooks:
            hook.remove()
        results.append([loss, *(p.grad.clone() for p in fresh_model.parameters() if p.grad is not None)])
        fresh_model.zero_grad()
    torch.testing.assert_close(*results)


def test_autocast_keeps_codes_and_semantics(tiny_model, pixels):
    inputs = {"input_ids": torch.tensor([BOTH]), **images_of(pixels)}
    expected = tiny_model.model(**inputs).generation_codes, tiny_model.get_image_features(pixels).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = tiny_model.model(**inputs).generation_codes
        semantics = tiny_model.get_image_features(pixels).last_hidden_state
    assert torch.equal(codes, expected[0]) and torch.equal(semantics, expected[1])


CASTS = {
    "to": lambda model: model.to("cpu", torch.float16),
    "half": lambda model: model.half(),
    "submodule": lambda model: model.model.half(),
    "contained": lambda model: torch.nn.Sequential(model).bfloat16(),
    "twice": lambda model: model.half().float().bfloat16(),
}


@pytest.mark.parametrize("cast", CASTS)
def test_casts_keep_the_tokenizer_in_fp32(fresh_model, tiny_model, pixels, cast):
    CASTS[cast](fresh_model)
    assert fresh_model.get_input_embeddings().weight.dtype != torch.float32
    vq_model, exact = fresh_model.model.vq_model, tiny_model.model.vq_model
    for name, tensor in vq_model.state_dict().items():
        assert torch.equal(tensor, exact.state_dict()[name]) and tensor.dtype in (torch.float32, torch.int64), name
    assert torch.equal(vq_model.encode(pixels), exact.encode(pixels))
    assert fresh_model.model(torch.tensor([BOTH]), **images_of(pixels)).last_hidden_state.isfinite().all()
    assert {p.device.type for p in fresh_model.to("meta").model.vq_model.parameters()} == {"meta"}


def test_casts_of_adapters_keep_the_tokenizer_in_fp32(fresh_model, tiny_model, pixels):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    vq_model = peft.get_peft_model(fresh_model, config).to(torch.bfloat16).get_base_model().model.vq_model
    assert torch.equal(vq_model.encode(pixels), tiny_model.model.vq_model.encode(pixels))


def test_casts_of_single_parameters_warn(fresh_model, pixels, monkeypatch):
    """DeepSpeed and PEFT's `cast_mixed_precision_params` cast parameters without the modules."""
    warnings = []
    monkeypatch.setattr(modeling_evotok_vq.logger, "warning_once", warnings.append)
    fresh_model.model.vq_model.encode(pixels)
    assert not warnings
    for parameter in fresh_model.parameters():
        parameter.data = parameter.data.bfloat16()
    fresh_model.model.vq_model.encode(pixels)
    assert "weights are torch.bfloat16: some of its codes differ" in warnings.pop()


@pytest.mark.parametrize("tied", [False, True])
def test_saved_model_loads_equal(pixels, tmp_path, tied):
    model = build_tiny_model(tiny_config({"tie_word_embeddings": tied}))
    model.save_pretrained(tmp_path)
    loaded, report = EvoTokForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not any(p.requires_grad for p in loaded.model.vq_model.parameters())
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    batch = batch_of([BOTH])
    expected, output = model(**batch, **images_of(pixels)), loaded.eval()(**batch, **images_of(pixels))
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    assert loaded.generation_config.guidance_scale == 7.5 and loaded.generation_config.guidance_min_p == 0.0


def test_base_model_loads_from_a_whole_checkpoint(tiny_model, tmp_path):
    """Engines that understand images build the base model, and refuse unexpected weights."""
    tiny_model.save_pretrained(tmp_path)
    loaded, report = EvoTokModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not [name for name in report["unexpected_keys"] if name.startswith("depth_decoder")]
    ids = torch.tensor([[3, 4]])
    assert torch.equal(loaded.eval()(ids).last_hidden_state, tiny_model.model(ids).last_hidden_state)


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_model_trains_with_other_language_models(pixels, model_type):
    model = build_tiny_model(tiny_config({"model_type": model_type, "tie_word_embeddings": model_type == "llama"}))
    model.train()(**batch_of([BOTH]), **images_of(pixels)).loss.backward()
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (model_type == "llama")


def test_forward_accepts_the_standard_arguments(tiny_model, pixels):
    ids = torch.tensor([[3, *INPUT_IMAGE, 4]])
    inputs = {"input_ids": ids, "pixel_values": pixels[:1]}
    output = tiny_model(**inputs, use_cache=True)
    assert output.past_key_values.get_seq_length() == ids.shape[1]
    assert output.image_hidden_states.shape == (1, POSITIONS, 32)
    torch.testing.assert_close(tiny_model(**inputs, logits_to_keep=1).logits, output.logits[:, -1:])
    features = {"image": tiny_model.get_image_features(pixels[:1])}
    torch.testing.assert_close(tiny_model(ids, mm_encoder_outputs=features).logits, output.logits)


def test_embeddings_can_be_resized(fresh_model):
    fresh_model.resize_token_embeddings(140)
    assert fresh_model.config.text_config.vocab_size == 140
    output = fresh_model(**batch_of([[3, 139]]))
    assert output.logits.shape[-1] == 140 and output.loss.isfinite()


CODES = torch.zeros(1, POSITIONS, 2, dtype=torch.long)
BAD_INPUTS = {
    "positions": ([3, *INPUT_IMAGE[:-2], END], {"pixel_values": 1}, "15 image placeholders.*16 positions"),
    "images": ([*INPUT_IMAGE, *INPUT_IMAGE], {"pixel_values": 1}, "32 image placeholders.*1 images.*16 positions"),
    "placeholders": ([3, 4], {"generation_pixel_values": 1}, "0 image placeholders.*1 images"),
    "size": (INPUT_IMAGE, {"pixel_values": torch.zeros(1, 3, 16, 16)}, "must be"),
    "generated twice": (GENERATED_IMAGE, {"generation_pixel_values": 1, "generation_codes": CODES}, "not both"),
    "input twice": (INPUT_IMAGE, {"pixel_values": 1, "image_codes": CODES}, "one of the three"),
    "levels": (GENERATED_IMAGE, {"generation_codes": CODES.repeat(1, 1, 2)}, r"\(1, 16, 4\).*\(images, 16, 2\)"),
    "range": (GENERATED_IMAGE, {"generation_codes": CODES - 1}, "between 0 and 31"),
    "no tokens": (None, {}, "exactly one"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_forward_refuses_bad_inputs(tiny_model, pixels, name):
    row, images, message = BAD_INPUTS[name]
    images = {key: pixels[:value] if isinstance(value, int) else value for key, value in images.items()}
    with pytest.raises(ValueError, match=message):
        tiny_model(None if row is None else torch.tensor([row]), **images)


@pytest.mark.parametrize("row", [INPUT_IMAGE, GENERATED_IMAGE], ids=["input", "generated"])
def test_placeholders_without_images_are_refused(tiny_model, fresh_model, row):
    """Training and `generate` refuse them; in evaluation `forward` embeds them as tokens, as LLaVA does."""
    ids = torch.tensor([row])
    embeds = tiny_model.get_input_embeddings()(ids)
    assert torch.equal(tiny_model(ids).logits, tiny_model(inputs_embeds=embeds).logits)
    calls = (
        lambda: fresh_model.train()(ids),
        lambda: tiny_model.generate(ids, max_new_tokens=1),
        lambda: tiny_model.generate(torch.tensor([[*row, START]]), generation_mode="image"),
    )
    for call in calls:
        with pytest.raises(ValueError, match="16 image placeholders but the 0 images"):
            call()
