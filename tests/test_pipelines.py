"""Transformers' own pipelines with the embedded model, as somebody who has never read this repository calls them."""

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
def reading():
    return pipeline("image-text-to-text", model=MINI, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def drawing(reading):
    """`any-to-any` asks for torchvision by name, whatever the processor is; this one works with Pillow alone too."""
    with pytest.MonkeyPatch.context() as patch:
        if not is_torchvision_available():
            patch.setattr(any_to_any, "requires_backends", lambda *_: None)
        return pipeline("any-to-any", model=reading.model, processor=reading.processor, device="cpu")


@pytest.fixture(scope="module")
def question():
    picture = Image.new("RGB", (64, 64), "gold")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Which style is this?"}]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def answer(reading, question):
    """What `generate` says without a pipeline."""
    inputs = reading.processor.apply_chat_template(question, add_generation_prompt=True, **TENSORS)
    tokens = reading.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    text = reading.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text
    return text


def seeded() -> dict:
    return {"generator": torch.Generator().manual_seed(0)}


def drawn_without_a_pipeline(pipe, chat, **kwargs) -> list[Image.Image]:
    inputs = pipe.processor.apply_chat_template(chat, generation_mode="image", **TENSORS)
    codes = pipe.model.generate(**inputs, generation_mode="image", **seeded(), **kwargs)
    return pipe.processor.post_process_image_generation(pipe.model.decode_image_tokens(codes))


def test_pipelines_build_our_classes(reading):
    assert isinstance(reading.model, EvoTokForConditionalGeneration)
    assert isinstance(reading.processor, EvoTokProcessor)


def test_image_text_to_text_answers_as_generate_does(reading, question, answer):
    [record] = reading(text=question, max_new_tokens=8, do_sample=False, return_full_text=False)
    assert record["generated_text"] == answer
    [record] = reading(text=question, max_new_tokens=8, do_sample=False)
    assert record["generated_text"] == [*question, {"role": "assistant", "content": answer}]


def test_image_text_to_text_in_batches(reading, question, answer):
    records = reading(
        text=[question, question], batch_size=2, max_new_tokens=8, do_sample=False, return_full_text=False
    )
    assert [record["generated_text"] for [record] in records] == [answer, answer]


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is there")
def test_any_to_any_requires_torchvision_as_documented(reading):
    with pytest.raises(ImportError, match="[Tt]orchvision"):
        pipeline("any-to-any", model=reading.model, processor=reading.processor, device="cpu")
    text = (Path(__file__).parents[1] / "docs/inference.md").read_text(encoding="utf-8")
    assert "Transformers requires torchvision" in text and 'generate_kwargs={"guidance_scale": 7.5}' in text


def test_any_to_any_reads(drawing, question, answer):
    [record] = drawing(text=question, max_new_tokens=8, do_sample=False, return_full_text=False)
    assert record["generated_text"] == answer


def test_any_to_any_draws_as_generate_does(drawing):
    [record] = drawing(text=FROG, generation_mode="image", generate_kwargs=seeded())
    assert record["input_text"] == FROG
    image, [wanted] = record["generated_image"], drawn_without_a_pipeline(drawing, FROG)
    assert image.size == (64, 64) and len(image.getcolors(4096)) > 1, "a blank image would prove nothing"
    assert image.tobytes() == wanted.tobytes()


def test_any_to_any_takes_batches_and_sampling_values(drawing):
    values = {"do_sample": False, "guidance_scale": 1.0}
    records = drawing([FROG, CAT], generation_mode="image", batch_size=2, generate_kwargs=dict(values))
    for [record], chat in zip(records, (FROG, CAT), strict=True):
        [wanted] = drawn_without_a_pipeline(drawing, chat, **values)
        assert record["input_text"] == chat
        assert record["generated_image"].tobytes() == wanted.tobytes()


def test_any_to_any_draws_variants(drawing):
    records = drawing(
        text=FROG,
        generation_mode="image",
        generate_kwargs=seeded() | {"num_return_sequences": 3, "guidance_min_p": 0.0},
    )
    assert [record["input_text"] for record in records] == [FROG] * 3
    assert len({record["generated_image"].tobytes() for record in records}) == 3


def test_the_saved_unconditional_prompt_is_the_processors(drawing):
    """Without it, a pipeline's guidance would move away from a prompt that training never showed."""
    inputs = drawing.processor.apply_chat_template(FROG, generation_mode="image", **TENSORS)
    assert inputs["negative_prompt_ids"].tolist() == [drawing.model.generation_config.image_negative_prompt_ids]
