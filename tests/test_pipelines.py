"""Pipelines of Transformers with the embedded model equal `generate`."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import is_torchvision_available, pipeline
from transformers.pipelines import any_to_any

from evotok import EvoTokForConditionalGeneration, EvoTokProcessor
from evotok.commands.checkpoints import find_asset


MINI = str(find_asset("evotok-mini"))
TENSORS = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
FROG, CAT = ([{"role": "user", "content": f"a {thing}, noto style"}] for thing in ("frog", "cat"))


@pytest.fixture(scope="module")
def image_text_to_text():
    return pipeline("image-text-to-text", model=MINI, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def any_to_any_pipeline(image_text_to_text):
    """Builds the pipeline without its check for torchvision, which this processor does not need."""
    with pytest.MonkeyPatch.context() as patch:
        if not is_torchvision_available():
            patch.setattr(any_to_any, "requires_backends", lambda *_: None)
        model, processor = image_text_to_text.model, image_text_to_text.processor
        return pipeline("any-to-any", model=model, processor=processor, device="cpu")


@pytest.fixture(scope="module")
def question():
    image = Image.new("RGB", (64, 64), "gold")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Which style is this?"}]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def answer(image_text_to_text, question):
    """Generates the answer without the pipeline."""
    model, processor = image_text_to_text.model, image_text_to_text.processor
    inputs = processor.apply_chat_template(question, add_generation_prompt=True, **TENSORS)
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    text = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text
    return text


def seeded() -> dict:
    return {"generator": torch.Generator().manual_seed(0)}


def generate_images(pipe, chat, **kwargs) -> list[Image.Image]:
    """Generates images without the pipeline."""
    inputs = pipe.processor.apply_chat_template(chat, generation_mode="image", **TENSORS)
    codes = pipe.model.generate(**inputs, generation_mode="image", **seeded(), **kwargs)
    return pipe.processor.post_process_image_generation(pipe.model.decode_image_tokens(codes))


def test_image_text_to_text_answers_equal_generate(image_text_to_text, question, answer):
    assert isinstance(image_text_to_text.model, EvoTokForConditionalGeneration)
    assert isinstance(image_text_to_text.processor, EvoTokProcessor)
    options = {"max_new_tokens": 8, "do_sample": False}
    [record] = image_text_to_text(text=question, **options)
    assert record["generated_text"] == [*question, {"role": "assistant", "content": answer}]
    records = image_text_to_text(text=[question, question], batch_size=2, **options, return_full_text=False)
    assert [record["generated_text"] for [record] in records] == [answer, answer]


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_any_to_any_requires_torchvision_as_documented(image_text_to_text):
    with pytest.raises(ImportError, match="[Tt]orchvision"):
        pipeline("any-to-any", model=image_text_to_text.model, processor=image_text_to_text.processor, device="cpu")
    text = (Path(__file__).parents[1] / "docs/inference.md").read_text(encoding="utf-8")
    assert "Transformers requires torchvision" in text and 'generate_kwargs={"guidance_scale": 7.5}' in text


def test_any_to_any_answers_equal_generate(any_to_any_pipeline, question, answer):
    [record] = any_to_any_pipeline(text=question, max_new_tokens=8, do_sample=False, return_full_text=False)
    assert record["generated_text"] == answer


def test_any_to_any_images_equal_generate(any_to_any_pipeline):
    [record] = any_to_any_pipeline(text=FROG, generation_mode="image", generate_kwargs=seeded())
    assert record["input_text"] == FROG
    image, [expected] = record["generated_image"], generate_images(any_to_any_pipeline, FROG)
    assert image.size == (64, 64) and len(image.getcolors(4096)) > 1, "a blank image would prove nothing"
    assert image.tobytes() == expected.tobytes()


def test_any_to_any_generates_batches_and_variants(any_to_any_pipeline):
    values = {"do_sample": False, "guidance_scale": 1.0}
    options = {"generation_mode": "image", "batch_size": 2, "generate_kwargs": dict(values)}
    for [record], chat in zip(any_to_any_pipeline([FROG, CAT], **options), (FROG, CAT), strict=True):
        [expected] = generate_images(any_to_any_pipeline, chat, **values)
        assert record["input_text"] == chat
        assert record["generated_image"].tobytes() == expected.tobytes()
    variants = seeded() | {"num_return_sequences": 3, "guidance_min_p": 0.0}
    records = any_to_any_pipeline(text=FROG, generation_mode="image", generate_kwargs=variants)
    assert [record["input_text"] for record in records] == [FROG] * 3
    assert len({record["generated_image"].tobytes() for record in records}) == 3


def test_saved_unconditional_prompt_equals_the_processor(any_to_any_pipeline):
    """Pipelines have no other one for guidance."""
    inputs = any_to_any_pipeline.processor.apply_chat_template(FROG, generation_mode="image", **TENSORS)
    saved = any_to_any_pipeline.model.generation_config.image_negative_prompt_ids
    assert inputs["negative_prompt_ids"].tolist() == [saved]
