"""EvoTokProcessor: placeholders, chat template, images of every mode, bad input, saving."""

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


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer(["What is this? A red cat face. Draw a dog, please."] * 4, vocab_size=320)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return EvoTokProcessor.from_parts(tokenizer, image_size=SIZE, num_image_tokens=POSITIONS)


def picture(color=RED, size=(SIZE, SIZE)):
    return Image.new("RGB", size, color)


def mean_color(pixels):
    """(3, H, W) in [-1, 1] -> bytes."""
    return tuple(((pixels.mean(dim=(1, 2)) + 1) * 127.5).round().int().tolist())


def user(*content):
    return {"role": "user", "content": [part if isinstance(part, dict) else say(part) for part in content]}


def assistant(*content):
    return user(*content) | {"role": "assistant"}


def say(text):
    return {"type": "text", "text": text}


def show(color):
    return {"type": "image", "image": picture(color)}


def encode(processor, conversation, **kwargs):
    return processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt", **kwargs)


# --- placeholders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_images_are_dealt_out_in_reading_order(processor, nested):
    text = ["<|image_gen|> a <|image_pad|>", "<|image_pad|><|image_gen|>"]
    images = [[picture(RED), picture(GREEN)], [picture(BLUE), picture((9, 9, 9))]]
    inputs = processor(images=images if nested else [*images[0], *images[1]], text=text, return_tensors="pt")
    assert [mean_color(p) for p in inputs["pixel_values"]] == [GREEN, BLUE]
    assert [mean_color(p) for p in inputs["generation_pixel_values"]] == [RED, (9, 9, 9)]
    for token_id in processor.image_token_ids:
        assert (inputs["input_ids"] == token_id).sum(1).tolist() == [POSITIONS, POSITIONS]
    assert inputs["pixel_values"].shape == (2, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("images", "text", "numbers"),
    [
        (None, "<|image_pad|>", "0 images for 1"),
        ([picture()], "none", "1 images for 0"),
        ([picture()], ["<|image_pad|>", "<|image_gen|>"], "1 images for 2"),
        ([[picture()] * 2, []], ["<|image_pad|>", "<|image_pad|>"], "2 images for 1 image placeholders in text 0"),
    ],
)
def test_wrong_number_of_images_is_named(processor, images, text, numbers):
    with pytest.raises(ValueError, match=numbers):
        processor(images=images, text=text)


def test_codes_stand_for_written_images(processor):
    codes = torch.zeros(1, POSITIONS, 16, dtype=torch.long)
    conversation = [user(show(BLUE), "Draw it."), assistant({"type": "image"})]
    inputs = encode(processor, conversation, processor_kwargs={"generation_codes": codes})
    assert inputs["generation_codes"].equal(codes) and "generation_pixel_values" not in inputs
    assert [mean_color(p) for p in inputs["pixel_values"]] == [BLUE]
    with pytest.raises(ValueError, match=r"\(1, 4, levels\)"):
        encode(processor, conversation, processor_kwargs={"generation_codes": codes[:, :2]})


def test_the_range_of_arrays_is_no_matter(processor):
    image = Image.effect_noise((20, 30), 60).convert("RGB")
    expected = processor(images=image, return_tensors="pt")["pixel_values"]
    assert expected.min() < -0.2 and expected.max() > 0.2  # no picture that was divided by 255 twice
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for form in (tensor, tensor / 255, tensor.numpy() / 255.0, np.array(image).astype(np.uint16) * 257):
        assert processor(images=form, return_tensors="pt")["pixel_values"].equal(expected)
    batched = processor(images=torch.stack([tensor, tensor]) / 255, return_tensors="pt")["pixel_values"]
    assert batched.equal(torch.cat([expected, expected]))


def test_images_that_are_not_to_be_rescaled_are_of_the_unit_range(processor):
    image = Image.effect_noise((SIZE, SIZE), 60).convert("RGB")
    unit = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    pixels = processor(images=unit, do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, processor(images=image, return_tensors="pt")["pixel_values"])
    for wrong in (image, unit * 255):
        with pytest.raises(ValueError, match="do_rescale=False is for arrays of floats from 0 to 1"):
            processor(images=wrong, do_rescale=False)
    raw = processor(images=image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    assert raw.max() > 1


def test_truncation_inside_an_image_is_refused(processor):
    for token in ("<|image_pad|>", "<|image_gen|>"):
        with pytest.raises(ValueError, match="truncation"):
            processor(images=[picture()], text="a" + token, truncation=True, max_length=3)


def test_number_of_placeholders_is_announced(processor):
    announced = processor._get_num_multimodal_tokens(image_sizes=[(5, 7), (100, 3)])
    inputs = processor(
        images=[picture(size=(7, 5)), picture(size=(3, 100))],
        text=["<|image_pad|>", "<|image_pad|>"],
        return_mm_token_type_ids=True,
        return_tensors="pt",
    )
    assert inputs["mm_token_type_ids"].sum(1).tolist() == announced["num_image_tokens"] == [POSITIONS] * 2
    assert processor._get_num_multimodal_tokens()["num_image_tokens"] is None


def test_inputs_are_named_as_the_model_names_them(processor):
    inputs = processor(images=picture(), text="<|image_pad|>", return_tensors="pt")
    assert set(inputs) == set(processor.model_input_names) == {"input_ids", "attention_mask", "pixel_values"}


def test_keyword_arguments_reach_the_parts(processor):
    kwargs = {"images": picture(), "text": "<|image_pad|>", "return_tensors": "pt"}
    inputs = processor(**kwargs, padding="max_length", max_length=20, rescale_factor=-1.0)
    assert inputs["input_ids"].shape == (1, 20) and inputs["pixel_values"].mean() < -1
    inputs = processor(**kwargs, images_kwargs={"size": {"height": 8, "width": 8}})
    assert inputs["pixel_values"].shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="two times"):
        processor(**kwargs, padding=True, text_kwargs={"padding": False})


# --- chat template ----------------------------------------------------------------------------------------------------


def test_system_prompt_is_kept_and_gives_way(tokenizer, tmp_path):
    EvoTokProcessor.from_parts(tokenizer, SIZE, POSITIONS, system_prompt="Be kind.").save_pretrained(tmp_path)
    processor = EvoTokProcessor.from_pretrained(tmp_path)
    assert processor.apply_chat_template([user("a")]).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")
    assert "kind" not in processor.apply_chat_template([{"role": "system", "content": "No."}, user("a")])


def test_assistant_mask_survives_expansion(processor):
    conversation = [
        [user(show(RED), "What?"), assistant("A dog."), user(show(RED)), assistant("Here: ", show(GREEN))],
        [user("Draw"), assistant("A dog.")],
    ]
    inputs = encode(processor, conversation, return_assistant_tokens_mask=True)
    said = [
        processor.decode(ids[mask.bool()])
        for ids, mask in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True)
    ]
    image = "<|vision_start|>" + "<|image_gen|>" * POSITIONS + "<|vision_end|>"
    assert said == ["A dog.<|im_end|>Here: " + image + "<|im_end|>", "A dog.<|im_end|>"]


def test_image_mode_gives_prompt_and_negative_prompt(processor):
    batch = [[user("Draw a red cat face, please.")], [{"role": "system", "content": "Be kind."}, user("Draw")]]
    inputs = encode(processor, batch, generation_mode="image", add_generation_prompt=True)
    assert (inputs["input_ids"][:, -1] == processor.vision_start_token_id).all()
    assert (inputs["negative_prompt_ids"][:, -1] == processor.vision_start_token_id).all()
    negative = [
        processor.decode(ids[mask.bool()])
        for ids, mask in zip(inputs["negative_prompt_ids"], inputs["negative_prompt_attention_mask"], strict=True)
    ]
    empty = "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|vision_start|>"
    assert negative == [empty, "<|im_start|>system\nBe kind.<|im_end|>\n" + empty]
    assert inputs["negative_prompt_attention_mask"][0, 0] == 0  # left padding
    named = encode(processor, batch, generation_mode="image", negative_prompt=["A dog", "A <|im_end|>"])
    assert processor.batch_decode(named["negative_prompt_ids"])[1].count("<|im_end|>") == 2
    assert "negative_prompt_ids" not in encode(processor, batch, add_generation_prompt=True)
    with pytest.raises(ValueError, match="3 negative prompts for 2"):
        encode(processor, batch, generation_mode="image", negative_prompt=["a"] * 3)
    with pytest.raises(ValueError, match="generation_mode='video'"):
        encode(processor, batch, generation_mode="video")


def test_image_mode_with_an_image_given(processor):
    inputs = encode(processor, [user(show(BLUE), "Draw it again.")], generation_mode="image")
    assert inputs["pixel_values"].shape[0] == 1
    assert (inputs["negative_prompt_ids"] != processor.image_token_id).all()


BAD_TEMPLATES = [
    "{% for %}", "{{ 1 / 0 }}", "{{ messages[99].role.x.y }}", "{{ none + 1 }}", "{{ {}['a']['b'] }}",
    "{{ 'a'.index('b') }}", "{{ '%d' % 'a' }}", "{{ [].pop() }}",
    "{% macro a(n) %}{{ a(n) }}{% endmacro %}{{ a(1) }}", "{{ range(10**9) }}",
    "{{ raise_exception('no') }}", "{{ ''.__class__.__mro__ }}",
]  # fmt: skip


@pytest.mark.parametrize("template", BAD_TEMPLATES)
def test_whatever_a_foreign_template_raises_is_one_line(processor, template):
    with pytest.raises(ValueError, match="The chat template cannot be rendered") as refused:
        processor.apply_chat_template([user("a")], chat_template=template)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_mistakes_in_a_call_are_not_the_templates(processor):
    with pytest.raises(Exception) as refused:
        processor.apply_chat_template([user("a")], tokenize=True, return_dict=True, return_tensors="nothing")
    assert "chat template" not in str(refused.value)


def test_a_foreign_template_is_taken_on_request_alone(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    template = "{{ messages | length }} messages"
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match="chat template is not EvoTok's, .* remove chat_template.jinja, or pass"):
        EvoTokProcessor.from_pretrained(tmp_path)
    trusted = EvoTokProcessor.from_pretrained(tmp_path, trust_chat_template=True)
    assert trusted.apply_chat_template([user("a")]) == "1 messages"
    own = EvoTokProcessor.from_pretrained(tmp_path, chat_template=template)
    assert own.apply_chat_template([user("a")]) == "1 messages"
    (tmp_path / "chat_template.jinja").unlink()
    assert EvoTokProcessor.from_pretrained(tmp_path).chat_template == processor.chat_template


@pytest.mark.parametrize("token", ["' + 7 * 7 + '", "{{ 1 }}", "a b", "", '"', "a" * 65])
def test_a_token_that_would_be_code_of_the_template_is_refused(processor, token):
    with pytest.raises(ValueError, match="should be a token such as '<.image_pad.>'"):
        EvoTokProcessor(processor.image_processor, processor.tokenizer, image_token=token)


# --- tokenizers and saving --------------------------------------------------------------------------------------------


def test_saved_and_reloaded_is_equal(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = EvoTokProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict() and again.chat_template == processor.chat_template
    assert again.token_ids == processor.token_ids and again.num_image_tokens == POSITIONS
    conversation = [user(show(RED), "What?"), assistant(show(GREEN))]
    first, second = encode(processor, conversation), encode(again, conversation)
    assert set(first) == set(second) and all(first[key].equal(second[key]) for key in first)


def test_qwen25_gets_the_default_ids():
    """A tokenizer with Qwen2.5's ids; words in between are filler."""
    names = "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end"
    names = [f"<|{name}|>" for name in f"{names} vision_start vision_end vision_pad image_pad video_pad".split()]
    plain = ["<tool_call>", "</tool_call>"] + [f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix", "pad")]
    plain += ["<|repo_name|>", "<|file_sep|>"]
    vocab = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {f"filler{index}": index for index in range(256, 151643)}
    vocab |= {token: 151643 + index for index, token in enumerate(names + plain)}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], eos_token="<|im_end|>")
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    tokenizer.add_tokens(plain)
    assert len(tokenizer) == 151665
    processor = EvoTokProcessor.from_parts(tokenizer)
    config = EvoTokConfig()
    assert processor.token_ids == {name: getattr(config, name) for name in processor.token_ids}
    assert len(tokenizer) == 151666 <= config.text_config.vocab_size
    assert processor.num_image_tokens == config.vq_config.num_positions


def test_sentencepiece_llama(tmp_path):
    import sentencepiece

    sentences = iter(["what is this a red cat face draw dog please user assistant"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=310,
        byte_fallback=True,
        minloglevel=3,
        hard_vocab_limit=False,
        model_type="bpe",
    )
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path)
    processor = EvoTokProcessor.from_parts(tokenizer, SIZE, POSITIONS)
    conversation = [user(show(RED), "what is <s> this"), assistant("a dog", show(GREEN))]
    inputs = encode(processor, conversation, return_assistant_tokens_mask=True)
    ids, mask = inputs["input_ids"][0], inputs["assistant_masks"][0].bool()
    assert (ids == tokenizer.bos_token_id).sum() == 1 and ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    said = [processor.image_generation_token] * POSITIONS + ["<|vision_end|>", "<|im_end|>"]
    assert tokenizer.convert_ids_to_tokens(ids[mask].tolist())[-len(said) :] == said
    processor.save_pretrained(tmp_path / "saved")
    again = EvoTokProcessor.from_pretrained(tmp_path / "saved")
    assert encode(again, conversation)["input_ids"].equal(inputs["input_ids"])
    batch = encode(again, [conversation[:1], [user("draw")]], add_generation_prompt=True)
    assert batch["attention_mask"][1, 0] == 0  # padded, on the left, though Llama has no padding token


# --- results ----------------------------------------------------------------------------------------------------------


def test_pixels_make_the_round_trip(processor):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
    pixels = processor(images=[image])["pixel_values"]
    [again] = processor.post_process_image_generation(torch.tensor(np.stack(pixels)))
    assert np.array_equal(again, image)
    wild = torch.tensor([-3.0, 0.0, 3.0]).view(3, 1, 1).expand(3, 2, 2).to(torch.bfloat16)
    [clipped] = processor.post_process_multimodal_output(wild, generation_mode="image")
    assert clipped.getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize(
    "pixels", [torch.zeros(1, POSITIONS, 16, dtype=torch.long), torch.zeros(2, 4, 8, 8), torch.full((3, 2, 2), np.nan)]
)
def test_what_is_not_pixels_is_refused(processor, pixels):
    with pytest.raises(ValueError):
        processor.post_process_image_generation(pixels)


def test_text_is_decoded_without_markers(processor):
    ids = processor.apply_chat_template([user("Draw"), assistant("A dog.")], tokenize=True)
    assert processor.post_process_image_text_to_text(ids) == ["user\nDraw\nassistant\nA dog.\n"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["user\nDraw\nassistant\nA dog.\n"]
