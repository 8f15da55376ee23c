"""EvoTokProcessor: placeholders, arguments, chat templates of others, text tokenizers, saving."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, pre_tokenizers
from transformers import LlamaTokenizer, Qwen2Tokenizer

from evotok import EvoTokProcessor
from evotok.modeling_evotok.configuration_evotok import EvoTokConfig
from evotok.training.backbones.text_tokenizer import train_text_tokenizer


SIZE, POSITIONS = 16, 4
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
NEGATIVE = {"do_rescale": True, "rescale_factor": -1.0}  # all pixels below 0


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer(["What is this? A red cat face. Draw a dog, please."] * 4, vocab_size=320)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return EvoTokProcessor.from_parts(tokenizer, image_size=SIZE, num_image_tokens=POSITIONS)


def plain(color=RED, size=(SIZE, SIZE)) -> Image.Image:
    return Image.new("RGB", size, color)


def mean_color(pixels: torch.Tensor) -> tuple[int, ...]:
    """Computes the mean of (3, H, W) in [-1, 1] as bytes."""
    return tuple(((pixels.mean(dim=(1, 2)) + 1) * 127.5).round().int().tolist())


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def image(color) -> dict:
    return {"type": "image", "image": plain(color)}


def user(*content) -> dict:
    return {"role": "user", "content": [part if isinstance(part, dict) else text(part) for part in content]}


def assistant(*content) -> dict:
    return user(*content) | {"role": "assistant"}


def encode(processor, conversation, **kwargs):
    return processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt", **kwargs)


# --- placeholders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_call_splits_images_in_reading_order(processor, nested):
    texts = ["<|image_gen|> a <|image_pad|>", "<|image_pad|><|image_gen|>"]
    images = [[plain(RED), plain(GREEN)], [plain(BLUE), plain((9, 9, 9))]]
    inputs = processor(images=images if nested else [*images[0], *images[1]], text=texts, return_tensors="pt")
    assert [mean_color(p) for p in inputs["pixel_values"]] == [GREEN, BLUE]
    assert [mean_color(p) for p in inputs["generation_pixel_values"]] == [RED, (9, 9, 9)]
    for token_id in processor.image_token_ids:
        assert (inputs["input_ids"] == token_id).sum(1).tolist() == [POSITIONS, POSITIONS]
    tokens = processor(text=texts, tokens_only=True, return_tensors="pt")
    assert set(tokens) == {"input_ids", "attention_mask"} and tokens["input_ids"].equal(inputs["input_ids"])


@pytest.mark.parametrize(
    ("images", "texts", "numbers"),
    [
        (None, "<|image_pad|>", "0 images for 1"),
        ([plain()], "none", "1 images for 0"),
        ([plain()], ["<|image_pad|>", "<|image_gen|>"], " tokens in the prompts should be the same as the number of "),
        ([[plain()] * 2, []], ["<|image_pad|>", "<|image_pad|>"], "2 images for 1 image placeholders in text 0"),
        (None, None, "has no input"),
        (None, [3], "must be a string or a list of strings"),
    ],
)
def test_call_refuses_other_numbers_of_images(processor, images, texts, numbers):
    with pytest.raises(ValueError, match=numbers):
        processor(images=images, text=texts)


def test_call_accepts_codes_of_generated_images(processor):
    codes = torch.zeros(1, POSITIONS, 16, dtype=torch.long)
    conversation = [user(image(BLUE), "Draw it."), assistant({"type": "image"})]
    inputs = encode(processor, conversation, processor_kwargs={"generation_codes": codes})
    assert inputs["generation_codes"].equal(codes) and "generation_pixel_values" not in inputs
    assert [mean_color(p) for p in inputs["pixel_values"]] == [BLUE]
    with pytest.raises(ValueError, match=r"\(1, 4, levels\)"):
        encode(processor, conversation, processor_kwargs={"generation_codes": codes[:, :2]})


def test_call_accepts_arrays_and_unscaled_images(processor):
    noise = Image.effect_noise((SIZE, SIZE), 60).convert("RGB")
    unit = torch.from_numpy(np.array(noise)).permute(2, 0, 1) / 255
    expected = processor(images=noise, return_tensors="pt")["pixel_values"]
    assert expected.min() < -0.2 and expected.max() > 0.2, "not divided by 255 twice"
    batched = processor(images=torch.stack([unit, unit]), return_tensors="pt")["pixel_values"]
    assert batched.equal(torch.cat([expected, expected]))
    unscaled = processor(images=unit, do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(unscaled, expected)
    for wrong in (noise, unit * 255):
        with pytest.raises(ValueError, match="do_rescale=False is for arrays of floats from 0 to 1"):
            processor(images=wrong, do_rescale=False)
    assert processor(images=noise, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"].max() > 1


def test_call_refuses_truncation_inside_an_image(processor):
    for token in ("<|image_pad|>", "<|image_gen|>"):
        with pytest.raises(ValueError, match="truncation"):
            processor(images=[plain()], text="a" + token, truncation=True, max_length=3)


def test_call_returns_numbers_and_spans_of_placeholders(processor):
    sizes = [(5, 7), (100, 3)]
    announced = processor._get_num_multimodal_tokens(image_sizes=sizes)
    inputs = processor(
        images=[plain(size=size[::-1]) for size in sizes],
        text=["a <|image_pad|>", "<|image_pad|> b"],
        return_mm_token_type_ids=True,
        return_text_replacement_offsets=True,
        return_tensors="pt",
    )
    assert set(processor.model_input_names) <= set(inputs)
    assert inputs["mm_token_type_ids"].sum(1).tolist() == announced["num_image_tokens"] == [POSITIONS] * 2
    assert processor._get_num_multimodal_tokens()["num_image_tokens"] is None
    expanded = [("a ", "<|image_pad|>" * POSITIONS), ("", "<|image_pad|>" * POSITIONS)]
    for [offset], (before, replacement) in zip(inputs["text_replacement_offsets"], expanded, strict=True):
        assert offset["replacement"] == replacement and offset["type"] == "image"
        assert offset["new_span"] == (len(before), len(before) + len(replacement))


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_length": 76, "padding": "max_length", "return_tensors": "pt"} | NEGATIVE,
        {
            "common_kwargs": {"return_tensors": "pt"},
            "images_kwargs": NEGATIVE,
            "text_kwargs": {"padding": "max_length", "max_length": 76},
        },
    ],
    ids=["flat", "nested"],
)
def test_arguments_of_a_call_override_those_of_the_parts(processor, arguments):
    inputs = processor(text="<|image_pad|><|image_gen|>", images=[plain(), plain()], **arguments)
    assert inputs["input_ids"].shape == (1, 76)
    assert inputs["pixel_values"].mean() < -1 and inputs["generation_pixel_values"].mean() < -1


# --- conversations ----------------------------------------------------------------------------------------------------


def test_system_prompt_is_saved_and_overridden_by_a_system_message(tokenizer, tmp_path):
    EvoTokProcessor.from_parts(tokenizer, SIZE, POSITIONS, system_prompt="Be kind.").save_pretrained(tmp_path)
    processor = EvoTokProcessor.from_pretrained(tmp_path)
    assert processor.apply_chat_template([user("a")]).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")
    assert "kind" not in processor.apply_chat_template([{"role": "system", "content": "No."}, user("a")])


@pytest.mark.parametrize("side", ["left", "right"])
def test_assistant_mask_covers_expanded_placeholders(processor, side):
    conversations = [
        [user(image(RED), "What?"), assistant("A dog."), user(image(RED)), assistant("Here: ", image(GREEN))],
        [user("Draw"), assistant("A dog.")],
    ]
    options = {"padding": True, "padding_side": side}
    inputs = encode(processor, conversations, return_assistant_tokens_mask=True, processor_kwargs=options)
    texts = [
        processor.decode(ids[mask.bool()])
        for ids, mask in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True)
    ]
    generated = "<|vision_start|>" + "<|image_gen|>" * POSITIONS + "<|vision_end|>"
    assert texts == ["A dog.<|im_end|>Here: " + generated + "<|im_end|>", "A dog.<|im_end|>"]
    options["tokens_only"] = True
    tokens = encode(processor, conversations, return_assistant_tokens_mask=True, processor_kwargs=options)
    assert set(tokens) == {"input_ids", "attention_mask", "assistant_masks"}
    assert all(tokens[name].equal(inputs[name]) for name in tokens)


def test_image_mode_returns_prompt_and_unconditional_prompt(processor):
    batch = [[user("Draw a red cat face, please.")], [{"role": "system", "content": "Be kind."}, user(image(BLUE))]]
    inputs = encode(processor, batch, generation_mode="image")
    assert (inputs["input_ids"][:, -1] == processor.vision_start_token_id).all()
    assert inputs["pixel_values"].shape[0] == 1
    negative = [
        processor.decode(ids[mask.bool()])
        for ids, mask in zip(inputs["negative_prompt_ids"], inputs["negative_prompt_attention_mask"], strict=True)
    ]
    empty = "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|vision_start|>"
    assert negative == [empty, "<|im_start|>system\nBe kind.<|im_end|>\n" + empty]
    assert inputs["negative_prompt_attention_mask"][0, 0] == 0, "padding is on the left"
    named = encode(processor, batch, generation_mode="image", negative_prompt=["A dog", "A <|im_end|>"])
    assert processor.batch_decode(named["negative_prompt_ids"])[1].count("<|im_end|>") == 2
    assert "negative_prompt_ids" not in encode(processor, batch, add_generation_prompt=True)
    with pytest.raises(ValueError, match="3 negative prompts for 2"):
        encode(processor, batch, generation_mode="image", negative_prompt=["a"] * 3)
    with pytest.raises(ValueError, match="generation_mode='video'"):
        encode(processor, batch, generation_mode="video")


def test_last_message_can_be_continued(processor):
    prompt = processor.apply_chat_template([user("What?"), assistant("this is")], continue_final_message=True)
    assert prompt.endswith("this is")


BAD_TEMPLATES = [
    "{% for %}",
    "{{ 1 / 0 }}",
    "{{ messages[99].role.x.y }}",
    "{% macro a(n) %}{{ a(n) }}{% endmacro %}{{ a(1) }}",
    "{{ range(10**9) }}",
    "{{ ''.__class__.__mro__ }}",
]


@pytest.mark.parametrize("template", BAD_TEMPLATES)
def test_errors_of_other_templates_are_one_line(processor, template):
    with pytest.raises(ValueError, match="The chat template cannot be rendered") as error:
        processor.apply_chat_template([user("a")], chat_template=template)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_errors_of_a_call_are_not_attributed_to_the_template(processor):
    with pytest.raises(Exception) as error:
        processor.apply_chat_template([user("a")], tokenize=True, return_dict=True, return_tensors="nothing")
    assert "chat template" not in str(error.value)


def test_other_templates_are_loaded_on_request_only(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    template = "{{ extra }}{{ messages | length }} messages"
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=r"chat template is not EvoTok's, .* remove chat_template.jinja, or pass"):
        EvoTokProcessor.from_pretrained(tmp_path)
    for options in ({"trust_chat_template": True}, {"chat_template": template}):
        loaded = EvoTokProcessor.from_pretrained(tmp_path, **options)
        assert loaded.apply_chat_template([user("a")], extra="b ") == "b 1 messages"
    (tmp_path / "chat_template.jinja").unlink()
    assert EvoTokProcessor.from_pretrained(tmp_path).chat_template == processor.chat_template


@pytest.mark.parametrize("token", ["' + 7 * 7 + '", "{{ 1 }}", "a b", "", "a" * 65])
def test_template_code_in_tokens_is_refused(processor, token):
    with pytest.raises(ValueError, match="should be a token such as '<.image_pad.>'"):
        EvoTokProcessor(processor.image_processor, processor.tokenizer, image_token=token)


# --- text tokenizers, saving, results ---------------------------------------------------------------------------------


def test_saved_processor_loads_equal(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = EvoTokProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict() and loaded.chat_template == processor.chat_template
    assert loaded.token_ids == processor.token_ids and loaded.num_image_tokens == POSITIONS
    conversation = [user(image(RED), "What?"), assistant(image(GREEN))]
    first, second = encode(processor, conversation), encode(loaded, conversation)
    assert set(first) == set(second) and all(first[key].equal(second[key]) for key in first)
    changed = EvoTokProcessor.from_pretrained(tmp_path, cls_token="(CLS)", do_normalize=False)
    assert changed.tokenizer.cls_token == "(CLS)" and changed.image_processor.do_normalize is False


def test_qwen25_tokenizer_has_the_default_ids():
    names = "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end"
    names = [f"<|{name}|>" for name in f"{names} vision_start vision_end vision_pad image_pad video_pad".split()]
    others = ["<tool_call>", "</tool_call>"] + [f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix", "pad")]
    others += ["<|repo_name|>", "<|file_sep|>"]
    vocab = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {f"filler{index}": index for index in range(256, 151643)}
    vocab |= {token: 151643 + index for index, token in enumerate(names + others)}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], eos_token="<|im_end|>")
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    tokenizer.add_tokens(others)
    assert len(tokenizer) == 151665
    processor = EvoTokProcessor.from_parts(tokenizer)
    config = EvoTokConfig()
    assert processor.token_ids == {name: getattr(config, name) for name in processor.token_ids}
    assert len(tokenizer) == 151666 <= config.text_config.vocab_size
    assert processor.num_image_tokens == config.vq_config.num_positions


def test_sentencepiece_tokenizer_works(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["what is this a red cat face draw dog please user assistant"] * 20),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=310,
        byte_fallback=True,
        minloglevel=3,
        hard_vocab_limit=False,
        model_type="bpe",
    )
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path)
    processor = EvoTokProcessor.from_parts(tokenizer, SIZE, POSITIONS)
    conversation = [user(image(RED), "what is <s> this"), assistant("a dog", image(GREEN))]
    inputs = encode(processor, conversation, return_assistant_tokens_mask=True)
    ids, mask = inputs["input_ids"][0], inputs["assistant_masks"][0].bool()
    assert (ids == tokenizer.bos_token_id).sum() == 1 and ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    end = [processor.image_generation_token] * POSITIONS + ["<|vision_end|>", "<|im_end|>"]
    assert tokenizer.convert_ids_to_tokens(ids[mask].tolist())[-len(end) :] == end
    processor.save_pretrained(tmp_path / "saved")
    loaded = EvoTokProcessor.from_pretrained(tmp_path / "saved")
    assert encode(loaded, conversation)["input_ids"].equal(inputs["input_ids"])
    batch = encode(loaded, [conversation[:1], [user("draw")]], add_generation_prompt=True)
    assert batch["attention_mask"][1, 0] == 0, "padded on the left, although Llama has no padding token"


def test_post_processing_inverts_the_processing(processor):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
    [restored] = processor.post_process_image_generation(processor(images=[noise], return_tensors="pt")["pixel_values"])
    assert np.array_equal(restored, noise)
    outside = torch.tensor([-3.0, 0.0, 3.0]).view(3, 1, 1).expand(3, 2, 2).to(torch.bfloat16)
    [clipped] = processor.post_process_multimodal_output(outside, generation_mode="image")
    assert clipped.getpixel((0, 0)) == (0, 128, 255)
    ids = processor.apply_chat_template([user("Draw"), assistant("A dog.")], tokenize=True)
    assert processor.post_process_multimodal_output(ids) == ["user\nDraw\nassistant\nA dog.\n"]
