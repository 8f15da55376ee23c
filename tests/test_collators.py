"""EvoTokCollator: the processor's tokens and TRL's labels, caption dropout, bad records, lengths, codes."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from evotok import EvoTokProcessor
from evotok.data.collators import EvoTokCollator, pixels_of
from evotok.data.conversations import load_conversations
from evotok.processing import image_loading_evotok
from evotok.training.backbones.text_tokenizer import train_text_tokenizer


SIZE, POSITIONS = 16, 4
IMAGE = {"type": "image"}


@pytest.fixture(scope="module")
def processor():
    tokenizer = train_text_tokenizer(["What is this? A red cat face. Draw a dog, please."] * 4, vocab_size=320)
    return EvoTokProcessor.from_parts(tokenizer, image_size=SIZE, num_image_tokens=POSITIONS)


def picture(seed, size=(SIZE, SIZE)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def say(text):
    return {"type": "text", "text": text}


def asking(seed=0, answer="A red cat.", **kwargs):
    messages = [{"role": "user", "content": [IMAGE, say("What?")]}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": [picture(seed)], **kwargs}


def drawing(seed=0, caption="Draw a dog.", **kwargs):
    messages = [{"role": "user", "content": caption}, {"role": "assistant", "content": [IMAGE]}]
    return {"messages": messages, "images": [picture(seed)], **kwargs}


def talk():
    messages = [
        {"role": "system", "content": "Be <|im_end|> kind."},
        {"role": "user", "content": [say("A "), IMAGE, say("and"), IMAGE]},
        {"role": "assistant", "content": [say("Here: "), IMAGE]},
        {"role": "user", "content": "What is <|image_pad|> this?"},
        {"role": "assistant", "content": "A dog."},
    ]
    return {"messages": messages, "images": [picture(1), picture(2, (9, 30)), picture(3)]}


def filled(record):
    """The messages with their images in place, as the processor takes them."""
    images = iter(record["images"])
    messages = []
    for message in record["messages"]:
        content = message["content"]
        if not isinstance(content, str):
            content = [{**part, "image": next(images)} if part["type"] == "image" else part for part in content]
        messages.append({**message, "content": content})
    return messages


@pytest.mark.parametrize("make", [asking, drawing, talk])
@pytest.mark.parametrize("system_prompt", [None, "Be kind."])
def test_the_same_as_the_processor_gives(processor, make, system_prompt):
    processor = EvoTokProcessor.from_parts(processor.tokenizer, SIZE, POSITIONS, system_prompt=system_prompt)
    batch = EvoTokCollator(processor)([make()])
    inputs = processor.apply_chat_template(
        filled(make()), tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    labels = inputs["input_ids"].masked_fill(inputs.pop("assistant_masks") == 0, -100)
    assert batch.pop("labels").equal(labels) and (labels != -100).any()
    assert set(batch) == set(inputs)
    for name, value in inputs.items():
        torch.testing.assert_close(batch[name], value, atol=1e-6, rtol=0)


def forms(image, folder):
    """The same image as every kind of part that names one."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    path, text = folder / "image.png", base64.b64encode(stream.getvalue()).decode()
    path.write_bytes(stream.getvalue())
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return {
        "PIL": {"type": "image", "image": image},
        "path": {"type": "image", "path": str(path)},
        "path object": {"type": "image", "image": path},
        "bytes": {"type": "image", "bytes": stream.getvalue()},
        "bytes of a data set": {"type": "image", "bytes": stream.getvalue(), "path": "elsewhere.png", "url": None},
        "bytes in image": {"type": "image", "image": {"bytes": stream.getvalue(), "path": None}},
        "base64": {"type": "image", "base64": text},
        "base64 with its type": {"type": "image", "base64": f"data:image/png;base64,{text}"},
        "data address": {"type": "image", "url": f"data:image/png;base64,{text}"},
        "OpenAI's": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}", "detail": "low"}},
        "OpenAI's, short": {"type": "image_url", "image_url": f"data:image/png;base64,{text}"},
        "OpenAI's, a file": {"type": "image_url", "image_url": {"url": str(path)}},
        "address as url": {"type": "image_url", "url": str(path)},
        "tensor": {"type": "image", "image": tensor},
        "tensor of 0 to 1": {"type": "image", "image": tensor / 255},
        "array": {"type": "image", "image": np.array(image)},
    }


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_parts_are_read_as_the_processor_reads_them(processor, tmp_path, role):
    expected = None
    for name, part in forms(picture(4, (20, 30)), tmp_path).items():
        shown, said = ([part, say("What?")], "A dog.") if role == "user" else ("Draw a dog.", [part])
        messages = [{"role": "user", "content": shown}, {"role": "assistant", "content": said}]
        batch = EvoTokCollator(processor)([{"messages": messages, "images": []}])
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        key = "pixel_values" if role == "user" else "generation_pixel_values"
        expected = inputs[key] if expected is None else expected
        assert inputs[key].equal(expected) and batch["input_ids"].equal(inputs["input_ids"]), name
        torch.testing.assert_close(batch[key], expected, atol=1e-6, rtol=0, msg=name)


def test_parts_that_are_ambiguous_or_no_image_are_refused_by_both(processor):
    twice = {"type": "image", "path": "a.png", "url": "b.png"}
    for part, reason in ((twice, "as path and as url"), ({"type": "video", "path": "a.mp4"}, "not supported")):
        messages = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "A."}]
        for read in (lambda m: EvoTokCollator(processor)([{"messages": m}]), processor.apply_chat_template):
            with pytest.raises(ValueError, match=reason):
                read(messages)
    broken = [{"role": "user", "content": [{"type": "image", "base64": "%"}]}, {"role": "assistant", "content": "A."}]
    with pytest.raises(ValueError, match="base64 that is none"):
        processor.apply_chat_template(broken, tokenize=True)
    collator = EvoTokCollator(processor)
    assert len(collator([asking(), {"messages": broken}])["input_ids"]) == 1 and collator.skipped == {"image": 1}


def test_addresses_are_fetched_in_training_only_if_allowed(processor, monkeypatch):
    stream = io.BytesIO()
    picture(4).save(stream, "PNG")
    monkeypatch.setattr(image_loading_evotok, "_download", lambda address, name: stream.getvalue())
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    messages = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "A dog."}]
    records = [asking(), {"messages": messages}, {**asking(), "images": ["http://example.org/b.png"]}]
    collator = EvoTokCollator(processor)
    assert len(collator(records)["input_ids"]) == 1 and collator.skipped == {"image": 2}
    assert len(EvoTokCollator(processor, allow_remote_images=True)(records)["input_ids"]) == 3
    assert processor.apply_chat_template(messages, tokenize=True, return_dict=True)["pixel_values"]
    closed = EvoTokProcessor.from_parts(processor.tokenizer, SIZE, POSITIONS, allow_remote_images=False)
    with pytest.raises(ValueError, match="addresses are not fetched here"):
        closed.apply_chat_template(messages, tokenize=True)


@pytest.mark.parametrize("key", ["tools", "video"])
def test_records_of_something_else_are_refused(processor, key):
    with pytest.raises(ValueError, match=f"record 7: {key}: conversations hold text and images alone"):
        EvoTokCollator(processor)([{**asking(), "id": 7, key: ["a"]}])


def test_targets_are_the_assistants_turns(processor):
    labels = EvoTokCollator(processor)([talk()])["labels"][0]
    said = processor.decode(labels[labels != -100])
    image = "<|vision_start|>" + "<|image_gen|>" * POSITIONS + "<|vision_end|>"
    assert said == "Here: " + image + "<|im_end|>A dog.<|im_end|>"
    labels = EvoTokCollator(processor, train_on="all")([talk()])["labels"][0]
    assert (labels == -100).sum() == 2 * POSITIONS  # all but the images given


def test_trl_collates_the_same(processor):
    sft_trainer = pytest.importorskip("trl.trainer.sft_trainer")
    theirs = sft_trainer.DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True)
    records = [asking(0), asking(1, "No.")]
    batch, expected = EvoTokCollator(processor)(records), theirs(records)
    assert set(batch) == set(expected)
    for name, value in batch.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)


def test_rows_are_padded_on_the_right(processor):
    batch = EvoTokCollator(processor)([asking(0, "A."), talk(), drawing(1), drawing(2)])
    lengths = batch["attention_mask"].sum(1)
    assert batch["attention_mask"].equal((torch.arange(lengths.max()) < lengths[:, None]).long())
    padding = batch["attention_mask"] == 0
    assert (batch["labels"][padding] == -100).all()
    assert (batch["input_ids"][padding] == processor.tokenizer.pad_token_id).all()
    assert batch["pixel_values"].shape == batch["generation_pixel_values"].shape == (3, 3, SIZE, SIZE)
    expected = pixels_of([picture(3), picture(1), picture(2)], processor.image_processor)
    assert batch["generation_pixel_values"].equal(expected)


def test_codes_stand_for_written_images(processor):
    codes = np.arange(POSITIONS * 2, dtype=np.uint16).reshape(POSITIONS, 2)
    both = {**talk(), "images": [picture(0), picture(1)], "codes": codes[None] + 9}
    batch = EvoTokCollator(processor)([{**drawing(), "images": [], "codes": codes}, both, asking()])
    assert batch["generation_codes"].dtype == torch.long
    assert batch["generation_codes"].tolist() == [codes.tolist(), (codes + 9).tolist()]
    assert batch["pixel_values"].shape[0] == 3 and "generation_pixel_values" not in batch
    with pytest.raises(ValueError, match="record 5: codes of shape"):
        EvoTokCollator(processor)([{**drawing(), "id": 5, "images": [], "codes": codes[:2]}])
    with pytest.raises(ValueError, match="give one kind"):
        EvoTokCollator(processor)([{**drawing(), "images": [], "codes": codes}, drawing()])


# --- caption dropout --------------------------------------------------------------------------------------------------


def prompt_of(batch, processor, row):
    """Ids up to the first image position that is written."""
    ids = batch["input_ids"][row].tolist()
    return ids[: ids.index(processor.image_generation_token_id)]


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be kind."}]])
def test_dropped_caption_is_the_negative_prompt(processor, system):
    record = drawing()
    record["messages"] = system + record["messages"]
    batch = EvoTokCollator(processor, caption_dropout=1.0)([record])
    inputs = processor.apply_chat_template(
        record["messages"][:-1], generation_mode="image", tokenize=True, return_dict=True
    )
    assert prompt_of(batch, processor, 0) == inputs["negative_prompt_ids"][0]
    kept = EvoTokCollator(processor)([record])
    assert prompt_of(kept, processor, 0) == inputs["input_ids"][0]
    said = [batch["labels"][batch["labels"] != -100], kept["labels"][kept["labels"] != -100]]
    assert said[0].equal(said[1])


def test_only_text_to_image_loses_its_text(processor):
    others = [asking(), talk()]
    dropped, kept = EvoTokCollator(processor, caption_dropout=1.0)(others), EvoTokCollator(processor)(others)
    assert dropped["input_ids"].equal(kept["input_ids"])


def dropped_rows(processor, records, **kwargs):
    lengths = EvoTokCollator(processor, caption_dropout=0.3, **kwargs)(records)["attention_mask"].sum(1)
    return (lengths < lengths.max()).tolist()


def test_dropout_follows_the_index(processor):
    records = [drawing(caption="Draw a dog, please. Draw.", index=index) for index in range(200)]
    rows = dropped_rows(processor, records)
    assert 35 <= sum(rows) <= 85
    assert dropped_rows(processor, records[::-1]) == rows[::-1]
    assert dropped_rows(processor, records, seed=1) != rows


def test_dropout_without_index_follows_torch(processor):
    records = [drawing(caption="Draw a dog, please. Draw.") for _ in range(50)]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    rows = dropped_rows(processor, records)
    torch.set_rng_state(state)
    assert dropped_rows(processor, records) == rows
    assert dropped_rows(processor, records) != rows


# --- records that do not fit ------------------------------------------------------------------------------------------


def test_corrupt_images_are_skipped_and_counted(processor, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = {**asking(), "images": [str(tmp_path / "bad.png")]}
    collator = EvoTokCollator(processor)
    with pytest.raises(ValueError, match="Nothing in the batch can be used"):
        collator([bad])
    batch = collator([bad, asking(1), bad])
    assert batch["input_ids"].shape[0] == batch["pixel_values"].shape[0] == 1
    again = collator([bad])
    assert all(again[name].equal(batch[name]) for name in batch)
    assert collator.skipped == {"image": 4}
    with pytest.raises(ValueError, match="batches can be used"):
        for _ in range(100):
            collator([bad])


def test_data_set_goes_in_as_it_is(processor, tmp_path):
    picture(0).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    turns = '[{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", "value": "A red cat."}]'
    lines = [f'{{"id": "{name}", "image": "{name}.png", "conversations": {turns}}}' for name in (0, 1, 2)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    collator = EvoTokCollator(processor)
    batch = collator(list(load_conversations(tmp_path / "data.jsonl", cache_dir=tmp_path / "cache")))
    expected = EvoTokCollator(processor)([asking()])
    assert collator.skipped == {"image": 2}
    assert all(batch[name].equal(expected[name]) for name in expected)


def test_long_text_is_cut_and_images_never(processor):
    length = EvoTokCollator(processor)([asking()])["input_ids"].shape[1]
    collator = EvoTokCollator(processor, max_length=length)
    batch = collator([asking(answer="A red cat. " * 9)])
    assert batch["input_ids"].shape[1] == length and batch["labels"][0, -1] != -100
    assert batch["pixel_values"].shape[0] == 1
    late = {"messages": [*asking()["messages"], *drawing()["messages"]], "images": [picture(0), picture(1)]}
    batch = collator([late, asking(), asking(answer="")])
    assert collator.skipped == {"length": 1} and batch["input_ids"].shape[0] == 2
    question = asking()
    question["messages"][0]["content"].append(say("What is this? " * 20))
    collator([question, asking()])
    assert collator.skipped == {"length": 1, "target": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": []}, "record 3: 0 images for 1 image parts"),
        ({"images": [picture(0)] * 2}, "record 3: 2 images for 1 image parts"),
        ({"messages": []}, "record 3: A conversation is a list"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "record 3: .*robot"),
    ],
)
def test_malformed_records_are_named(processor, change, reason):
    with pytest.raises(ValueError, match=reason):
        EvoTokCollator(processor)([asking(), {**asking(), "id": 3, **change}])


@pytest.mark.parametrize("kwargs", [{"caption_dropout": 1.5}, {"train_on": "user"}])
def test_arguments_are_checked(processor, kwargs):
    with pytest.raises(ValueError):
        EvoTokCollator(processor, **kwargs)


@pytest.mark.parametrize("size", [(SIZE, SIZE), (9, 30)])
def test_pixels_are_the_image_processors(processor, size):
    images = [picture(seed, size) for seed in range(3)]
    expected = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    for given in (images, [np.asarray(image) for image in images]):
        torch.testing.assert_close(pixels_of(given, processor.image_processor), expected, atol=1e-6, rtol=0)
