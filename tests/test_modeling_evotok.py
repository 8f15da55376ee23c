"""The multimodal model: inputs of every kind, both losses, what learns, saving and bad input."""

import pytest
import torch
import torch.nn.functional as F
from conftest import DRAW, END, IMAGE, PAD, POSITIONS, START, build_tiny_model, tiny_config
from transformers import AutoModelForCausalLM

from evotok import EvoTokConfig, EvoTokForConditionalGeneration, EvoTokModel
from evotok.modeling_evotok import input_checks_evotok


SEEN, DRAWN = [START, *[IMAGE] * POSITIONS, END], [START, *[DRAW] * POSITIONS, END]


def batch_of(rows: list[list[int]], left: bool = False) -> dict[str, torch.Tensor]:
    """Rows of token ids, padded, with a label everywhere but on padding."""
    length = max(map(len, rows))
    pads = [[PAD] * (length - len(row)) for row in rows]
    pair = list(zip(pads, rows, strict=True))
    ids = torch.tensor([pad + row if left else row + pad for pad, row in pair])
    mask = torch.tensor(
        [[0] * len(pad) + [1] * len(row) if left else [1] * len(row) + [0] * len(pad) for pad, row in pair]
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def parameters_of(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_at_paper_size():
    with torch.device("meta"):
        model = EvoTokForConditionalGeneration(EvoTokConfig())
    assert parameters_of(model.model.vq_model) == 391_216_267
    assert parameters_of(model.depth_decoder) == 817_027_072
    assert parameters_of(model.model.semantic_projector) == 16_522_240
    assert parameters_of(model.model.pixel_projector) == 12_966_912
    assert parameters_of(model.model.language_model) + parameters_of(model.lm_head) == 7_615_616_512


def test_text_alone_is_the_language_model_alone(tiny_model):
    batch = batch_of([[5, 6, 7, 8], [9, 10]])
    language_model = AutoModelForCausalLM.from_config(tiny_model.config.text_config).eval()
    language_model.model.load_state_dict(tiny_model.model.language_model.state_dict())
    language_model.lm_head.load_state_dict(tiny_model.lm_head.state_dict())
    expected, output = language_model(**batch), tiny_model(**batch)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.text_loss, expected.loss)
    assert output.image_loss is None


def test_placeholders_become_projected_features(tiny_model, pixels):
    model = tiny_model.model
    ids = torch.tensor([[3, *SEEN, *DRAWN, 4]])
    codes = model.vq_model.encode(pixels[:2])
    embeds = model.get_input_embeddings()(ids)
    seen, drawn = ids == IMAGE, ids == DRAW
    embeds[seen] = model.semantic_projector(model.vq_model.decode_semantics(codes[:1]))[0]
    embeds[drawn] = model.pixel_projector(model.vq_model.quantizer.decode_codes(codes[1:, :, :2]))[0]
    expected = model.language_model(inputs_embeds=embeds).last_hidden_state
    output = model(input_ids=ids, pixel_values=pixels[:1], generation_pixel_values=pixels[1:2])
    torch.testing.assert_close(output.last_hidden_state, expected)
    as_codes = model(input_ids=ids, image_codes=codes[:1], generation_codes=codes[1:, :, :2])
    torch.testing.assert_close(as_codes.last_hidden_state, expected)
    assert torch.equal(output.generation_codes, codes[1:, :, :2])


def test_image_loss_is_eq_11_at_the_positions_before(tiny_model, pixels):
    batch = batch_of([[3, 4, *DRAWN], [*DRAWN, 6]])
    batch["labels"][1] = -100  # a drawn image that is context, not target
    output = tiny_model(**batch, generation_pixel_values=pixels[:2], output_hidden_states=True)
    start = 2
    hidden = output.hidden_states[-1][0, start : start + POSITIONS]  # start of image predicts position 0
    codes = tiny_model.model.vq_model.encode(pixels[:1])[0, :, :2]
    embeddings = tiny_model.model.vq_model.quantizer.embed(codes)
    logits = tiny_model.depth_decoder(hidden, embeddings).logits
    expected = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
    torch.testing.assert_close(output.image_loss, expected.mean())
    torch.testing.assert_close(output.image_level_losses, expected.mean(0))


def test_a_position_with_nothing_before_it_is_not_predicted(tiny_model, pixels):
    whole = batch_of([[DRAW] * POSITIONS + [END]])
    rest = {name: value.clone() for name, value in whole.items()}
    rest["labels"][0, 0] = -100
    losses = [tiny_model(**batch, generation_pixel_values=pixels[:1]).image_loss for batch in (whole, rest)]
    assert torch.equal(*losses)


def test_mixed_batch_is_its_rows_one_by_one(tiny_model, pixels):
    """Text only, image in, image out, two images of each kind in one row over two turns."""
    rows = [[3, 4, 5, 6], [3, *SEEN, 5], [3, *DRAWN, 5], [3, *SEEN, 4, *DRAWN, 7, *DRAWN, *SEEN, 8]]
    seen, drawn = [[], [0], [], [1, 2]], [[], [], [3], [0, 1]]
    batch = batch_of(rows)
    images = {
        "pixel_values": pixels[sum(seen, [])],
        "generation_pixel_values": pixels[sum(drawn, [])],
    }
    output = tiny_model(**batch, **images)
    text_sum, text_count, image_sum, image_count = 0.0, 0, 0.0, 0
    for i, row in enumerate(rows):
        single = batch_of([row])
        if seen[i]:
            single["pixel_values"] = pixels[seen[i]]
        if drawn[i]:
            single["generation_pixel_values"] = pixels[drawn[i]]
        alone = tiny_model(**single)
        torch.testing.assert_close(alone.logits[0], output.logits[i, : len(row)], atol=1e-4, rtol=1e-4)
        count = sum(token not in (IMAGE, DRAW) for token in row[1:])
        text_sum, text_count = text_sum + count * alone.text_loss, text_count + count
        if drawn[i]:
            image_sum, image_count = image_sum + len(drawn[i]) * alone.image_loss, image_count + len(drawn[i])
    torch.testing.assert_close(output.text_loss, text_sum / text_count)
    torch.testing.assert_close(output.image_loss, image_sum / image_count)
    torch.testing.assert_close(output.loss, output.text_loss + output.image_loss)


def test_loss_weights_and_absent_kinds(pixels):
    model = build_tiny_model(tiny_config(text_loss_weight=0.5, image_loss_weight=2.0))
    batch = batch_of([[3, *DRAWN]])
    output = model(**batch, generation_pixel_values=pixels[:1])
    torch.testing.assert_close(output.loss, 0.5 * output.text_loss + 2 * output.image_loss)
    batch["labels"][batch["labels"] != DRAW] = -100
    output = model(**batch, generation_pixel_values=pixels[:1])
    assert output.text_loss is None
    torch.testing.assert_close(output.loss, 2 * output.image_loss)


def test_training_loss_needs_no_full_logits(fresh_model, pixels):
    batch = batch_of([[3, *DRAWN, 5], [3, *SEEN, 6]])
    images = {"pixel_values": pixels[:1], "generation_pixel_values": pixels[1:2]}
    expected = fresh_model(**batch, **images)
    for layer in fresh_model.depth_decoder.layers:
        layer.dropout.p = 0.0
    output = fresh_model.train()(**batch, **images)
    assert expected.logits.shape == (*batch["input_ids"].shape, 128) and output.logits is None
    torch.testing.assert_close(output.loss, expected.loss)


def test_num_items_in_batch_divides_the_text_loss(tiny_model):
    batch = batch_of([[3, 4, 5, 6]])
    loss = tiny_model(**batch).text_loss
    torch.testing.assert_close(tiny_model(**batch, num_items_in_batch=torch.tensor(6)).text_loss, loss * 3 / 6)


@pytest.mark.parametrize("kind", ["text", "seen", "drawn", "both"])
def test_gradients_reach_the_right_modules_in_every_batch(fresh_model, pixels, kind):
    """All trained parameters get a gradient whatever the batch holds (DDP, ZeRO-3), zero where it is not used."""
    row = {"text": [3, 4], "seen": [3, *SEEN, 4], "drawn": [3, *DRAWN, 4], "both": [*SEEN, *DRAWN, 4]}[kind]
    images = {}
    if kind in ("seen", "both"):
        images["pixel_values"] = pixels[:1]
    if kind in ("drawn", "both"):
        images["generation_pixel_values"] = pixels[:1]
    fresh_model.train()
    fresh_model(**batch_of([row]), **images).loss.backward()
    for name, parameter in fresh_model.named_parameters():
        assert ("vq_model" in name) == (parameter.grad is None), name

    def moved(module):
        return any(p.grad.any() for p in module.parameters())

    assert moved(fresh_model.model.semantic_projector) == (kind in ("seen", "both"))
    assert moved(fresh_model.model.pixel_projector) == (kind in ("drawn", "both"))
    assert moved(fresh_model.depth_decoder) == (kind in ("drawn", "both"))
    assert moved(fresh_model.model.language_model)


def test_dummy_pass_does_not_change_the_loss(fresh_model):
    batch = batch_of([[3, 4, 5, 6]])
    expected = fresh_model(**batch).loss
    torch.testing.assert_close(fresh_model.train()(**batch).loss, expected)


def test_frozen_modules_are_not_run_in_vain(fresh_model, monkeypatch):
    fresh_model.depth_decoder.requires_grad_(False)
    fresh_model.model.pixel_projector.requires_grad_(False)
    monkeypatch.setattr(fresh_model.depth_decoder, "loss", None)
    monkeypatch.setattr(fresh_model.model, "get_generation_features", None)
    fresh_model.train()(**batch_of([[3, 4]])).loss.backward()


def test_tokenizer_never_trains(fresh_model, pixels):
    assert not any(p.requires_grad for p in fresh_model.model.vq_model.parameters())
    before = {k: v.clone() for k, v in fresh_model.model.vq_model.state_dict().items()}
    fresh_model.train()
    assert not fresh_model.model.vq_model.training
    fresh_model(**batch_of([[*SEEN, *DRAWN]]), pixel_values=pixels[:1], generation_pixel_values=pixels[:1])
    for name, value in fresh_model.model.vq_model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_autocast_leaves_codes_alone(tiny_model, pixels):
    ids = torch.tensor([[*SEEN, *DRAWN]])
    inputs = {"input_ids": ids, "pixel_values": pixels[:1], "generation_pixel_values": pixels[1:2]}
    expected = tiny_model.model(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = tiny_model.model(**inputs)
        semantics = tiny_model.get_image_features(pixels).last_hidden_state
    assert torch.equal(output.generation_codes, expected.generation_codes)
    assert torch.equal(semantics, tiny_model.get_image_features(pixels).last_hidden_state)


def test_loading_in_bf16_keeps_the_tokenizer_exact(tiny_model, pixels, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loaded = EvoTokForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert {p.dtype for p in loaded.model.vq_model.parameters()} == {torch.float32}
    assert torch.equal(loaded.model.vq_model.encode(pixels), tiny_model.model.vq_model.encode(pixels))
    batch = batch_of([[*SEEN, *DRAWN, 4]])
    loaded(**batch, pixel_values=pixels[:1], generation_pixel_values=pixels[:1])


CASTS = {
    "to": lambda model: model.to(torch.bfloat16),
    "to a device, too": lambda model: model.to("cpu", torch.float16),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "type": lambda model: model.type(torch.bfloat16),
    "base model alone": lambda model: model.model.half(),
    "as a part": lambda model: torch.nn.Sequential(model).bfloat16(),
    "twice": lambda model: model.half().float().bfloat16(),
}


@pytest.mark.parametrize("cast", CASTS)
def test_casts_after_loading_keep_the_tokenizer_exact(fresh_model, tiny_model, pixels, cast):
    CASTS[cast](fresh_model)
    assert fresh_model.get_input_embeddings().weight.dtype != torch.float32
    vq_model, exact = fresh_model.model.vq_model, tiny_model.model.vq_model
    for name, tensor in vq_model.state_dict().items():
        assert torch.equal(tensor, exact.state_dict()[name]) and tensor.dtype in (torch.float32, torch.int64), name
    assert torch.equal(vq_model.encode(pixels), exact.encode(pixels))
    ids = torch.tensor([[*SEEN, *DRAWN, 4]])
    output = fresh_model.model(ids, pixel_values=pixels[:1], generation_pixel_values=pixels[:1])
    assert output.last_hidden_state.isfinite().all()


def test_the_tokenizer_moves_with_the_model(fresh_model):
    assert {p.device.type for p in fresh_model.to("meta", torch.bfloat16).model.vq_model.parameters()} == {"meta"}


def test_adapters_around_the_model_are_cast_without_the_tokenizer(fresh_model, tiny_model, pixels):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    model = peft.get_peft_model(fresh_model, config).to(torch.bfloat16)
    vq_model = model.get_base_model().model.vq_model
    assert torch.equal(vq_model.encode(pixels), tiny_model.model.vq_model.encode(pixels))


def test_a_cast_of_single_parameters_is_said(fresh_model, pixels, monkeypatch):
    """As DeepSpeed and PEFT's `cast_mixed_precision_params` do it, past the modules."""
    said = []
    monkeypatch.setattr(input_checks_evotok.logger, "warning_once", said.append)
    fresh_model.model.vq_model.encode(pixels)
    assert not said
    for parameter in fresh_model.parameters():
        parameter.data = parameter.data.bfloat16()
    fresh_model.model.vq_model.encode(pixels)
    assert "weights are torch.bfloat16: some of its codes differ" in said.pop()
    fresh_model.model.vq_model.float().encode(pixels)
    assert not said


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load(pixels, tmp_path, tied):
    model = build_tiny_model(tiny_config({"tie_word_embeddings": tied}))
    model.save_pretrained(tmp_path)
    loaded, report = EvoTokForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not any(p.requires_grad for p in loaded.model.vq_model.parameters())
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    batch = batch_of([[*SEEN, *DRAWN, 4]])
    images = {"pixel_values": pixels[:1], "generation_pixel_values": pixels[1:2]}
    expected, output = model(**batch, **images), loaded.eval()(**batch, **images)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    assert loaded.generation_config.guidance_scale == 7.5 and loaded.generation_config.guidance_min_p == 0.0


def test_base_model_loads_alone(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loaded, report = EvoTokModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    ids = torch.tensor([[3, 4]])
    assert torch.equal(loaded.eval()(ids).last_hidden_state, tiny_model.model(ids).last_hidden_state)


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_other_language_models(pixels, model_type):
    model = build_tiny_model(tiny_config({"model_type": model_type, "tie_word_embeddings": model_type == "llama"}))
    assert model.model.language_model.config.model_type == model_type
    batch = batch_of([[*SEEN, *DRAWN, 4]])
    model.train()
    model(**batch, pixel_values=pixels[:1], generation_pixel_values=pixels[:1]).loss.backward()
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (model_type == "llama")


def test_attention_implementations_agree(tiny_model, fresh_model, pixels):
    fresh_model.set_attn_implementation("eager")
    assert fresh_model.depth_decoder.config._attn_implementation == "eager"
    batch = batch_of([[*SEEN, *DRAWN, 4], [3, 4]])
    images = {"pixel_values": pixels[:1], "generation_pixel_values": pixels[1:2]}
    torch.testing.assert_close(fresh_model(**batch, **images).loss, tiny_model(**batch, **images).loss)


def test_gradient_checkpointing(fresh_model, pixels):
    for layer in fresh_model.depth_decoder.layers:
        layer.dropout.p = 0.0
    batch = batch_of([[*SEEN, *DRAWN, 4]])
    images = {"pixel_values": pixels[:1], "generation_pixel_values": pixels[1:2]}
    expected = fresh_model.train()(**batch, **images).loss
    fresh_model.gradient_checkpointing_enable()
    loss = fresh_model(**batch, **images).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert fresh_model.model.semantic_projector.linear_1.weight.grad.any()


def test_left_padding_changes_nothing(tiny_model, pixels):
    rows = [[3, *DRAWN, 5], [3, 4, 5]]
    right, left = batch_of(rows), batch_of(rows, left=True)
    left["position_ids"] = (left["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected = tiny_model(**right, generation_pixel_values=pixels[:1])
    output = tiny_model(**left, generation_pixel_values=pixels[:1])
    torch.testing.assert_close(output.logits[1, -3:], expected.logits[1, :3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.image_loss, expected.image_loss)


def test_standard_arguments(tiny_model, pixels):
    ids = torch.tensor([[3, *SEEN, 4]])
    inputs = {"input_ids": ids, "pixel_values": pixels[:1]}
    output = tiny_model(**inputs, output_hidden_states=True, use_cache=True)
    assert len(output.hidden_states) == 3 and output.past_key_values.get_seq_length() == ids.shape[1]
    assert output.image_hidden_states.shape == (1, POSITIONS, 32)
    assert torch.equal(tiny_model(**inputs, return_dict=False)[0], output.logits)
    torch.testing.assert_close(tiny_model(**inputs, logits_to_keep=1).logits, output.logits[:, -1:])
    embeds = tiny_model.get_input_embeddings()(ids)
    torch.testing.assert_close(tiny_model(inputs_embeds=embeds, pixel_values=pixels[:1]).logits, output.logits)
    features = {"image": tiny_model.get_image_features(pixels[:1])}
    torch.testing.assert_close(tiny_model(ids, mm_encoder_outputs=features).logits, output.logits)
    assert features["image"].pooler_output.shape == (1, POSITIONS, 32)
    model = build_tiny_model(tiny_config(attn_implementation="eager"))
    assert len(model(**inputs, output_attentions=True).attentions) == 2


def test_resize_token_embeddings(fresh_model):
    fresh_model.resize_token_embeddings(140)
    assert fresh_model.config.text_config.vocab_size == 140
    output = fresh_model(**batch_of([[3, 139]]))
    assert output.logits.shape[-1] == 140 and output.loss.isfinite()


BAD_INPUTS = {
    "too few placeholders": ([3, *SEEN[:-2], END], {"pixel_values": 1}, "15 image placeholders.*16 positions"),
    "too few images": ([*SEEN, *SEEN], {"pixel_values": 1}, "32 image placeholders.*1 images.*16 positions"),
    "drawing without a place": ([3, 4], {"generation_pixel_values": 1}, "0 image placeholders.*1 images"),
    "both kinds of drawing": ([*DRAWN], {"generation_pixel_values": 1, "generation_codes": (1, 16, 2)}, "not both"),
    "both kinds of image": ([*SEEN], {"pixel_values": 1, "image_codes": (1, 16, 4)}, "one of the three"),
    "codes of all levels": ([*DRAWN], {"generation_codes": (1, 16, 4)}, r"\(1, 16, 4\).*\(images, 16, 2\)"),
    "codes of too few positions": ([*DRAWN], {"generation_codes": (1, 15, 2)}, "must be integers of shape"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs(tiny_model, pixels, name):
    row, images, message = BAD_INPUTS[name]
    images = {
        key: pixels[:value] if isinstance(value, int) else torch.zeros(value, dtype=torch.long)
        for key, value in images.items()
    }
    with pytest.raises(ValueError, match=message):
        tiny_model(torch.tensor([row]), **images)


@pytest.mark.parametrize("row", [SEEN, DRAWN])
def test_missing_images(tiny_model, fresh_model, row):
    """Refused in training and by `generate`; a plain forward pass takes placeholders as tokens, as LLaVA does."""
    ids = torch.tensor([row])
    embeds = tiny_model.get_input_embeddings()(ids)
    assert torch.equal(tiny_model(ids).logits, tiny_model(inputs_embeds=embeds).logits)
    message = "16 image placeholders but the 0 images"
    with pytest.raises(ValueError, match=message):
        fresh_model.train()(ids)
    with pytest.raises(ValueError, match=message):
        tiny_model.generate(ids, max_new_tokens=1)
    with pytest.raises(ValueError, match=message):
        tiny_model.generate(torch.tensor([[*row, START]]), generation_mode="image")


def test_encoder_states_when_asked(pixels):
    model = build_tiny_model(tiny_config(attn_implementation="eager"))
    features = model.get_image_features(pixels, output_hidden_states=True, output_attentions=True)
    assert len(features.hidden_states) == 2 and len(features.attentions) == 1
    assert model.get_image_features(pixels).hidden_states is None


def test_bad_codes_and_sizes(tiny_model, pixels):
    ids = torch.tensor([DRAWN])
    with pytest.raises(ValueError, match="between 0 and 31"):
        tiny_model(ids, generation_codes=torch.full((1, POSITIONS, 2), 32))
    with pytest.raises(ValueError, match="between 0 and 31"):
        tiny_model(ids, generation_codes=torch.full((1, POSITIONS, 2), -1))
    with pytest.raises(ValueError, match="must be"):
        tiny_model(torch.tensor([SEEN]), pixel_values=pixels[:1, :, :16, :16])
    with pytest.raises(ValueError, match="exactly one"):
        tiny_model()


def test_the_base_model_passes_over_the_depth_decoder_of_a_whole_checkpoint(tiny_model, tmp_path):
    """Engines that read images build the base model, and refuse weights that have no place in it."""
    tiny_model.save_pretrained(tmp_path)
    base, info = EvoTokModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not [name for name in info["unexpected_keys"] if name.startswith("depth_decoder")]
    assert not info["missing_keys"] and isinstance(base, EvoTokModel)
