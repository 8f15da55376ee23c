"""Collators: the processor's tokens and TRL's labels, caption dropout, malformed rows, lengths, codes, images."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from evotok import EvoTokProcessor
from evotok.data.collators import MAX_EMPTY_BATCHES, EmptyBatchFallback, EvoTokCollator, ImageCollator
from evotok.data.conversations import load_conversations
from evotok.data.image_files import pixels_of
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


def text(words):
    return {"type": "text", "text": words}


def question(seed=0, answer="A red cat.", **kwargs):
    messages = [{"role": "user", "content": [IMAGE, text("What?")]}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": [picture(seed)], **kwargs}


def prompt(seed=0, caption="Draw a dog.", **kwargs):
    messages = [{"role": "user", "content": caption}, {"role": "assistant", "content": [IMAGE]}]
    return {"messages": messages, "images": [picture(seed)], **kwargs}


def conversation():
    messages = [
        {"role": "system", "content": "Be <|im_end|> kind."},
        {"role": "user", "content": [text("A "), IMAGE, text("and"), IMAGE]},
        {"role": "assistant", "content": [text("Here: "), IMAGE]},
        {"role": "user", "content": "What is <|image_pad|> this?"},
        {"role": "assistant", "content": "A dog."},
    ]
    return {"messages": messages, "images": [picture(1), picture(2, (9, 30)), picture(3)]}


def with_images(row):
    """Returns the messages with their images in place, as the processor takes them."""
    images, messages = iter(row["images"]), []
    for message in row["messages"]:
        content = message["content"]
        if not isinstance(content, str):
            content = [{**part, "image": next(images)} if part["type"] == "image" else part for part in content]
        messages.append({**message, "content": content})
    return messages


def test_collator_equals_the_processor(processor):
    processor = EvoTokProcessor.from_parts(processor.tokenizer, SIZE, POSITIONS, system_prompt="Be kind.")
    for make in (question, prompt, conversation):
        batch = EvoTokCollator(processor)([make()])
        inputs = processor.apply_chat_template(
            with_images(make()), tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
        )
        labels = inputs["input_ids"].masked_fill(inputs.pop("assistant_masks") == 0, -100)
        assert batch.pop("labels").equal(labels) and set(batch) == set(inputs)
        for name, value in inputs.items():
            torch.testing.assert_close(batch[name], value, atol=1e-6, rtol=0)
    image = "<|vision_start|>" + "<|image_gen|>" * POSITIONS + "<|vision_end|>"
    assert processor.decode(labels[labels != -100]) == "Here: " + image + "<|im_end|>A dog.<|im_end|>"


def test_collator_fetches_remote_images_only_if_allowed(processor, monkeypatch):
    stream = io.BytesIO()
    picture(4).save(stream, "PNG")
    monkeypatch.setattr(image_loading_evotok, "_download", lambda address, name: stream.getvalue())
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    messages = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "A dog."}]
    rows = [question(), {"messages": messages}, {**question(), "images": ["http://example.org/b.png"]}]
    collator = EvoTokCollator(processor)
    assert len(collator(rows)["input_ids"]) == 1 and collator.skipped == {"image": 2}
    assert len(EvoTokCollator(processor, allow_remote_images=True)(rows)["input_ids"]) == 3


def test_collator_train_on_all_excludes_input_images(processor):
    labels = EvoTokCollator(processor, train_on="all")([conversation()])["labels"][0]
    assert (labels == -100).sum() == 2 * POSITIONS
    with pytest.raises(ValueError, match="train_on='user' assistant or all"):
        EvoTokCollator(processor, train_on="user")


def test_collator_appends_completions_as_targets(processor):
    row = {"messages": [{"role": "user", "content": [IMAGE]}], "images": [picture(1)]}
    row["completions"] = [(" red", "cat\n"), (" a <|im_end|>", "dog\n")]
    [ids], [labels] = (EvoTokCollator(processor)([row])[name] for name in ("input_ids", "labels"))
    text = processor.decode(ids[ids != processor.image_token_id])
    assert text.endswith("<|im_end|>\n redcat\n a <|im_end|>dog\n")
    assert processor.decode(labels[labels != -100]) == "cat\ndog\n"
    assert (ids == processor.tokenizer.eos_token_id).sum() == 1  # the text cannot end the message
    [everything] = EvoTokCollator(processor, train_on="all")([row])["labels"]
    assert processor.decode(everything[everything != -100]).endswith(" redcat\n a <|im_end|>dog\n")


def test_collator_pads_on_the_right(processor):
    batch = EvoTokCollator(processor)([question(0, "A."), conversation(), prompt(1), prompt(2)])
    lengths = batch["attention_mask"].sum(1)
    assert batch["attention_mask"].equal((torch.arange(lengths.max()) < lengths[:, None]).long())
    padding = batch["attention_mask"] == 0
    assert (batch["labels"][padding] == -100).all()
    assert (batch["input_ids"][padding] == processor.tokenizer.pad_token_id).all()
    assert batch["pixel_values"].shape == batch["generation_pixel_values"].shape == (3, 3, SIZE, SIZE)
    expected = pixels_of([picture(3), picture(1), picture(2)], processor.image_processor)
    assert batch["generation_pixel_values"].equal(expected)


def test_collator_accepts_codes_of_generated_images(processor):
    codes = np.arange(POSITIONS * 2, dtype=np.uint16).reshape(POSITIONS, 2)
    both = {**conversation(), "images": [picture(0), picture(1)], "codes": codes[None] + 9}
    batch = EvoTokCollator(processor)([{**prompt(), "images": [], "codes": codes}, both, question()])
    assert batch["generation_codes"].dtype == torch.long
    assert batch["generation_codes"].tolist() == [codes.tolist(), (codes + 9).tolist()]
    assert batch["pixel_values"].shape[0] == 3 and "generation_pixel_values" not in batch
    with pytest.raises(ValueError, match="row 5: codes of shape"):
        EvoTokCollator(processor)([{**prompt(), "id": 5, "images": [], "codes": codes[:2]}])
    with pytest.raises(ValueError, match="give one kind"):
        EvoTokCollator(processor)([{**prompt(), "images": [], "codes": codes}, prompt()])


# --- caption dropout --------------------------------------------------------------------------------------------------


def test_caption_dropout_yields_the_negative_prompt(processor):
    row = prompt()
    row["messages"] = [{"role": "system", "content": "Be kind."}, *row["messages"]]
    dropped, kept = EvoTokCollator(processor, caption_dropout=1.0)([row]), EvoTokCollator(processor)([row])
    inputs = processor.apply_chat_template(
        row["messages"][:-1], generation_mode="image", tokenize=True, return_dict=True
    )
    for batch, expected in ((dropped, inputs["negative_prompt_ids"][0]), (kept, inputs["input_ids"][0])):
        ids = batch["input_ids"][0].tolist()
        assert ids[: ids.index(processor.image_generation_token_id)] == expected
    targets = [batch["labels"][batch["labels"] != -100] for batch in (dropped, kept)]
    assert targets[0].equal(targets[1])
    others = [question(), conversation()]
    dropped, kept = EvoTokCollator(processor, caption_dropout=1.0)(others), EvoTokCollator(processor)(others)
    assert dropped["input_ids"].equal(kept["input_ids"])


def test_caption_dropout_follows_the_index_or_torch(processor):
    def dropped(rows, **kwargs):
        lengths = EvoTokCollator(processor, caption_dropout=0.3, **kwargs)(rows)["attention_mask"].sum(1)
        return (lengths < lengths.max()).tolist()

    rows = [prompt(caption="Draw a dog, please. Draw.", index=index) for index in range(200)]
    by_index = dropped(rows)
    assert 35 <= sum(by_index) <= 85
    assert dropped(rows[::-1]) == by_index[::-1] and dropped(rows, seed=1) != by_index
    rows = [prompt(caption="Draw a dog, please. Draw.") for _ in range(50)]
    torch.manual_seed(0)
    by_torch = dropped(rows)
    assert dropped(rows) != by_torch
    torch.manual_seed(0)
    assert dropped(rows) == by_torch


# --- rows that cannot be used -----------------------------------------------------------------------------------------


def test_fallback_repeats_the_last_usable_row_for_some_batches():
    fallback = EmptyBatchFallback(limit=3)
    with pytest.raises(ValueError, match=r"Nothing in the batch can be used, \{'image': 2\} so far: check"):
        fallback.fill([], {"image": 2})
    assert fallback.fill(["a", "b"], {}) == ["a", "b"]
    assert [fallback.fill([], {}) for _ in range(2)] == [["b"], ["b"]]
    assert fallback.fill(["c"], {}) == ["c"], "the count starts again"
    assert [fallback.fill([], {}) for _ in range(2)] == [["c"], ["c"]]
    with pytest.raises(ValueError, match=r"Nothing in the last 3 batches can be used, \{'image': 9\} so far"):
        fallback.fill([], {"image": 9})


def test_collator_skips_and_counts_corrupt_images(processor, tmp_path):
    picture(0).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    conversation = '[{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", "value": "A red cat."}]'
    lines = [f'{{"id": "{name}", "image": "{name}.png", "conversations": {conversation}}}' for name in (0, 1, 2)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    good, bad, missing = load_conversations(tmp_path / "data.jsonl", cache_dir=tmp_path / "cache")
    collator = EvoTokCollator(processor)
    with pytest.raises(ValueError, match="Nothing in the batch can be used"):
        collator([bad])
    batch, expected = collator([bad, good, missing]), EvoTokCollator(processor)([question()])
    again = collator([bad])
    assert all(again[name].equal(batch[name]) and batch[name].equal(expected[name]) for name in expected)
    assert collator.skipped == {"image": 4}


def test_collator_truncates_text_but_not_images(processor):
    length = EvoTokCollator(processor)([question()])["input_ids"].shape[1]
    collator = EvoTokCollator(processor, max_length=length)
    batch = collator([question(answer="A red cat. " * 9)])
    assert batch["input_ids"].shape[1] == length and batch["labels"][0, -1] != -100
    assert batch["pixel_values"].shape[0] == 1
    late = {"messages": [*question()["messages"], *prompt()["messages"]], "images": [picture(0), picture(1)]}
    batch = collator([late, question(), question(answer="")])
    assert collator.skipped == {"length": 1} and batch["input_ids"].shape[0] == 2
    long = question()
    long["messages"][0]["content"].append(text("What is this? " * 20))
    collator([long, question()])
    assert collator.skipped == {"length": 1, "target": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "row 3: 0 images for 1 image parts"),
        ({"images": [picture(0)] * 2}, "row 3: 2 images for 1 image parts"),
        ({"messages": []}, "row 3: A conversation is a list"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "row 3: .*robot"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "path": "a", "url": "b"}]}]},
            "as path and as url",
        ),
        ({"completions": [(" red",)]}, "row 3: completions: give pairs of texts"),
        ({"video": ["a"]}, "row 3: video: conversations hold text and images alone"),
    ],
)
def test_collator_refuses_malformed_rows(processor, change, message):
    with pytest.raises(ValueError, match=message):
        EvoTokCollator(processor)([question(), {**question(), "id": 3, **change}])


# --- images alone -----------------------------------------------------------------------------------------------------


def test_image_collator_skips_bad_images_and_reads_odd_modes(tmp_path):
    modes = {"rgba": "RGBA", "palette": "P", "grey16": "I;16", "bilevel": "1", "cmyk": "CMYK"}
    for name, mode in modes.items():
        Image.new(mode, (40, 50)).save(tmp_path / f"{name}.{'tiff' if mode == 'CMYK' else 'png'}")
    (tmp_path / "corrupt.jpg").write_bytes(b"\xff\xd8 no image")
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    Image.new("L", (4000, 2)).save(tmp_path / "strip.png")
    paths = sorted(tmp_path.iterdir())
    collator = ImageCollator(size=32)
    batch = collator([{"id": path.name, "index": n, "images": [str(path)]} for n, path in enumerate(paths)])
    assert batch["pixel_values"].shape == (len(modes), 3, 32, 32) and collator.skipped == {"image": 3}
    empty = {"id": "x", "index": 0, "images": []}
    assert collator([empty])["pixel_values"].shape[0] == 1 and collator.skipped["no_image"] == 1
    with pytest.raises(ValueError, match=f"Nothing in the last {MAX_EMPTY_BATCHES} batches can be used"):
        for _ in range(MAX_EMPTY_BATCHES):
            collator([empty])


def test_image_collator_crops_by_seed_and_index():
    image = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (50, 1)))
    row = {"id": "x", "index": 5, "images": [image]}
    one, again = (ImageCollator(32, seed=1)([row])["pixel_values"] for _ in range(2))
    other = ImageCollator(32, seed=1)([row | {"index": 6}])["pixel_values"]
    assert (one == again).all() and (one != other).any()
