"""The processor behaves as Transformers' common tests of processors ask (`ProcessorTesterMixin`)."""

import inspect
import typing

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.processing_utils import ProcessingKwargs

from evotok import EvoTokProcessor
from evotok.training.backbones.text_tokenizer import train_text_tokenizer


SIZE, POSITIONS = 16, 4
TEXT = "lower newer <|image_pad|>"
NEGATIVE = {"do_rescale": True, "rescale_factor": -1.0}  # makes every pixel at most zero


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = train_text_tokenizer(["lower newer upper older longer string, what is this?"] * 4, vocab_size=300)
    folder = tmp_path_factory.mktemp("processor")
    EvoTokProcessor.from_parts(tokenizer, image_size=SIZE, num_image_tokens=POSITIONS).save_pretrained(folder)
    return folder


@pytest.fixture
def processor(folder):
    return EvoTokProcessor.from_pretrained(folder)


@pytest.fixture
def image():
    return Image.effect_noise((40, 30), 60).convert("RGB")


def rebuilt(processor, **parts) -> EvoTokProcessor:
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer} | parts
    return EvoTokProcessor(**parts, num_image_tokens=POSITIONS)


def chat(*content, role: str = "user") -> dict:
    return {"role": role, "content": list(content)}


# --- saving and loading -----------------------------------------------------------------------------------------------


def test_parts_load_alone_and_make_the_same_whole(processor, folder, tmp_path):
    processor.save_pretrained(tmp_path)
    again = EvoTokProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert repr(again.image_processor) == repr(processor.image_processor)
    parts = {name: type(getattr(processor, name)).from_pretrained(folder) for name in processor.get_attributes()}
    assert rebuilt(processor, **parts).to_dict() == processor.to_dict()


def test_arguments_of_loading_reach_the_parts(folder, processor):
    loaded = EvoTokProcessor.from_pretrained(folder, cls_token="(CLS)", sep_token="(SEP)", do_normalize=False)
    assert (loaded.tokenizer.cls_token, loaded.tokenizer.sep_token) == ("(CLS)", "(SEP)")
    assert loaded.image_processor.do_normalize is False
    processor.image_processor.is_override = True
    loaded = EvoTokProcessor.from_pretrained(folder, image_processor=processor.image_processor)
    assert loaded.image_processor.is_override


@pytest.mark.parametrize("template", ["test template", {"default": "a", "secondary": "b"}])
def test_chat_templates_are_saved(processor, template, tmp_path):
    processor.chat_template = template
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").is_file()
    assert (tmp_path / "additional_chat_templates").is_dir() == isinstance(template, dict)
    loaded = EvoTokProcessor.from_pretrained(tmp_path, trust_chat_template=True)
    assert loaded.chat_template == loaded.tokenizer.chat_template == template


def test_chat_templates_do_not_leave_their_folder(processor, tmp_path):
    processor.chat_template = {"default": "a", "../../escaped": "b"}
    with pytest.raises(ValueError, match=r"escaped"):
        processor.save_pretrained(tmp_path / "folder")
    assert not list(tmp_path.rglob("*escaped*"))


# --- where a value comes from -----------------------------------------------------------------------------------------


def test_defaults_of_the_parts_are_kept(processor, folder, image):
    image_processor = type(processor.image_processor).from_pretrained(folder, **NEGATIVE)
    tokenizer = type(processor.tokenizer).from_pretrained(folder, max_length=117, padding="max_length")
    inputs = rebuilt(processor, image_processor=image_processor, tokenizer=tokenizer)(
        text=TEXT, images=image, return_tensors="pt"
    )
    assert inputs["pixel_values"].mean() <= 0
    assert inputs["input_ids"].shape == (1, 117)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_length": 76, "padding": "max_length", "return_tensors": "pt"} | NEGATIVE,
        {
            "common_kwargs": {"return_tensors": "pt"},
            "images_kwargs": NEGATIVE,
            "text_kwargs": {"padding": "max_length", "max_length": 76},
        },
        {"images_kwargs": NEGATIVE, "text_kwargs": {"max_length": 76}, "padding": "max_length", "return_tensors": "pt"},
    ],
    ids=["flat", "nested", "mixed"],
)
def test_arguments_of_a_call_come_first(processor, image, arguments):
    inputs = processor(text=TEXT, images=image, **arguments)
    assert inputs["pixel_values"].mean() <= 0
    assert inputs["input_ids"].shape == (1, 76)
    assert all(isinstance(value, torch.Tensor) for value in inputs.values())


@pytest.mark.parametrize(
    "arguments",
    [
        {"images_kwargs": NEGATIVE} | NEGATIVE,
        {"text_kwargs": {"padding": "do_not_pad"}, "padding": "max_length"},
    ],
)
def test_a_value_said_twice_is_refused(processor, image, arguments):
    with pytest.raises(ValueError, match="twice|multiple|both|already|Keyword"):
        processor(text=[TEXT], images=image, return_tensors="pt", **arguments)


def test_batches_are_padded_to_the_longest(processor, image):
    texts = [TEXT, "<|image_pad|> upper older longer string"]
    inputs = processor(text=texts, images=[image, image], padding="longest", max_length=76, return_tensors="pt")
    assert inputs["input_ids"].shape[0] == 2
    assert inputs["input_ids"].shape[1] < 76


def test_every_argument_has_one_home():
    """No default stands in two places: arguments of `__init__` and `__call__` are neither attributes nor options."""
    known = set(ProcessingKwargs.__annotations__)
    for annotation in typing.get_type_hints(ProcessingKwargs).values():
        known |= set(getattr(annotation, "__annotations__", {}))
    for method in (EvoTokProcessor.__init__, EvoTokProcessor.__call__):
        parameters = inspect.signature(method).parameters.values()
        names = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} - {"self"}
        assert not names & known
        assert not [name for name in names if hasattr(EvoTokProcessor, name)]
    parameters = list(inspect.signature(EvoTokProcessor.__call__).parameters.values())[1:]
    assert all(p.default is None for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


# --- calls ------------------------------------------------------------------------------------------------------------


def test_alone_a_part_gives_what_the_processor_gives(processor, image):
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images=image, return_tensors="pt")["pixel_values"], pixels)
    ids = processor.tokenizer("lower newer", return_tensors="pt")["input_ids"]
    assert torch.equal(processor(text="lower newer", return_tensors="pt")["input_ids"], ids)
    tokens = [[1, 4, 5, 8], [3, 4, 3, 1]]
    assert processor.batch_decode(tokens) == processor.tokenizer.batch_decode(tokens)
    with pytest.raises((TypeError, ValueError), match=r"."):
        processor()


def test_model_input_names(processor, image):
    inputs = processor(text=TEXT, images=image, return_tensors="pt")
    assert set(inputs) == set(processor.model_input_names)


def test_a_text_of_a_batch_may_have_no_image(processor, image):
    texts = [TEXT] * 3
    every = processor(text=texts, images=[[image]] * 3, padding=True, return_tensors="pt")
    some = processor(text=["lower newer", *texts[1:]], images=[[], [image], [image]], padding=True, return_tensors="pt")
    assert torch.equal(every["input_ids"][1:], some["input_ids"][1:])
    assert len(some["pixel_values"]) == 2


def test_wrong_numbers_of_images_are_told_in_the_usual_words(processor, image):
    with pytest.raises(ValueError, match=" tokens in the prompts should be the same as the number of "):
        processor(text=[TEXT] * 3, images=[[image]] * 4, padding=True, return_tensors="pt")


def test_announced_numbers_are_those_inserted(processor):
    sizes = [(100, 100), (300, 100), (500, 30), (213, 167)]
    images = [np.random.default_rng(0).integers(255, size=(*size, 3), dtype=np.uint8) for size in sizes]
    arguments = {"padding": True, "return_mm_token_type_ids": True, "return_tensors": "pt"}
    inputs = processor(text=[TEXT] * 4, images=images, **arguments)
    announced = processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    assert inputs["mm_token_type_ids"].sum(-1).tolist() == announced
    twice = processor(text=[TEXT + TEXT] * 4, images=images * 2, **arguments)
    assert twice["mm_token_type_ids"].sum() == 2 * sum(announced)


def test_offsets_name_the_text_that_placeholders_became(processor, image):
    inputs = processor(
        text=TEXT,
        images=image,
        add_special_tokens=False,
        padding=False,
        return_text_replacement_offsets=True,
        return_tensors="pt",
    )
    text = processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=False)
    (offset,) = inputs["text_replacement_offsets"][0]
    start, end = offset["new_span"]
    assert text[start:end] == offset["replacement"] == "<|image_pad|>" * POSITIONS
    assert offset["type"] == "image"


# --- chat templates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("return_tensors", ["pt", "np"])
@pytest.mark.parametrize("batch", [1, 2])
def test_chats(processor, image, batch, return_tensors, tmp_path):
    picture = tmp_path / "picture.png"
    image.save(picture)
    question = {"type": "text", "text": "what is this?"}
    plain = [[chat({"type": "text", "text": "older"}, role="system"), chat(question)]] * batch
    tokenized = {"add_generation_prompt": True, "tokenize": True, "return_tensors": return_tensors}
    prompts = processor.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    assert len(prompts) == batch
    ids = processor.apply_chat_template(plain, **tokenized)
    assert ids.tolist() == processor.tokenizer(prompts, return_tensors=return_tensors)["input_ids"].tolist()
    cut = {"padding": "max_length", "truncation": True, "max_length": 100}
    assert processor.apply_chat_template(plain, **tokenized, processor_kwargs=cut).shape == (batch, 100)
    seeing = [[turns[0], chat(question, {"type": "image", "url": str(picture)})] for turns in plain]
    inputs = processor.apply_chat_template(seeing, **tokenized, return_dict=True)
    assert {name: len(inputs[name]) for name in ("input_ids", "attention_mask", "pixel_values")} == {
        "input_ids": batch,
        "attention_mask": batch,
        "pixel_values": batch,
    }
    kind = torch.Tensor if return_tensors == "pt" else np.ndarray
    assert all(isinstance(value, kind) for value in inputs.values())


def test_a_begun_answer_is_continued(processor):
    turns = [
        chat({"type": "text", "text": "what is this?"}),
        chat({"type": "text", "text": "this is"}, role="assistant"),
    ]
    prompt = processor.apply_chat_template(turns, continue_final_message=True, tokenize=False)
    assert prompt.endswith("this is")


def test_template_variables(processor):
    turns = [chat({"type": "text", "text": "what is this?"})]
    template = "{{ extra }}{% for message in messages %}{{ message['role'] }}{% endfor %}"
    assert processor.apply_chat_template(turns, chat_template=template, extra="upper ", tokenize=False) == "upper user"


@pytest.mark.parametrize("side", ["left", "right"])
def test_assistant_masks(processor, image, side):
    """Placeholders become many tokens and padding shifts them; the mask still covers what the assistant said."""
    answer = chat({"type": "text", "text": "upper older"}, role="assistant")
    picture = {"type": "image", "image": image}
    turns = [chat(picture, picture, {"type": "text", "text": "what is this?"}), answer, chat(picture), answer]
    inputs = processor.apply_chat_template(
        [turns, [chat({"type": "text", "text": "longer"}), answer]],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": side},
    )
    for ids, mask, times in zip(inputs["input_ids"], inputs["assistant_masks"].bool(), (2, 1), strict=True):
        assert processor.tokenizer.decode(ids[mask]) == "upper older<|im_end|>" * times
