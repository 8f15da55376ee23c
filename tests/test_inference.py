"""Inference: each row of a batch, and each stream, equals the result of its prompt alone."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch
from conftest import POSITIONS, build_chat_model
from PIL import Image

from evotok.inference import (
    UNFINISHED,
    CodeIteratorStreamer,
    RowSampler,
    StoppedError,
    StopSignal,
    TextSampling,
    answer,
    answer_batch,
    generate_batch,
    generate_images,
    preview_images,
    read_chat,
    read_image_prompt,
    stack_prompts,
    stream_answer,
    stream_codes,
    stream_in_thread,
)


PROMPTS = ["a cat", "a dog, the red one", "this"]


@pytest.fixture(scope="module")
def parts():
    """Returns a model and its processor: 32 px, 4 x 4 positions, a context of 512 tokens."""
    return build_chat_model()


def noise(seed):
    pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module")
def chats():
    """Returns conversations of different lengths with two, no and one image."""
    ask = {"type": "text", "text": "what is this?"}
    two = [{"type": "image", "image": noise(1)}, {"type": "image", "image": noise(2)}, ask]
    one = [ask, {"type": "image", "image": noise(3)}]
    return [[{"role": "user", "content": content}] for content in (two, "a cat, a dog, the red one", one)]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_stack_prompts_equals_the_processor(parts, chats):
    model, processor = parts
    stacked = stack_prompts([read_chat(model, processor, chat)[0] for chat in chats], processor.tokenizer.pad_token_id)
    wanted = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert stacked.keys() == wanted.keys()
    assert all(torch.equal(stacked[name], wanted[name]) for name in wanted)
    images = [read_image_prompt(model, processor, prompt, "a dog") for prompt in ("a cat", "the red one, a cat")]
    stacked = stack_prompts(images, processor.tokenizer.pad_token_id)
    assert stacked["negative_prompt_attention_mask"].tolist() == [[1] * stacked["negative_prompt_ids"].shape[1]] * 2
    assert stacked["attention_mask"][0].tolist() != stacked["attention_mask"][1].tolist()


def test_answer_batch_greedy_rows_equal_single_answers(parts, chats):
    model, processor = parts
    prompts = [read_chat(model, processor, chat)[0] for chat in chats]
    answers = answer_batch(model, prompts, [TextSampling(max_new_tokens=count) for count in (9, 4, 12)])
    for chat, found, count in zip(chats, answers, (9, 4, 12), strict=True):
        assert len(found.ids) == count and found.finish_reason == "length"
        [wanted] = answer(model, processor, [chat], max_new_tokens=count, do_sample=False)
        assert processor.tokenizer.decode(found.ids, skip_special_tokens=True).strip() == wanted


def test_answer_batch_sampled_rows_depend_on_their_seed_only(parts, chats):
    model, processor = parts
    prompts = [read_chat(model, processor, chat)[0] for chat in chats]
    settings = [TextSampling(8, temperature=1.5, top_p=0.9, seed=5), TextSampling(8), TextSampling(8, 2.0, 20, seed=6)]
    together = answer_batch(model, prompts, settings)
    for prompt, setting, found in zip(prompts, settings, together, strict=True):
        assert answer_batch(model, [prompt], [setting]) == [found]
    assert answer_batch(model, prompts[:1], [settings[0]._replace(seed=7)]) != together[:1]
    unseeded = [answer_batch(model, prompts[:1], [settings[0]._replace(seed=None)])[0].ids for _ in range(3)]
    assert len({tuple(ids) for ids in unseeded}) > 1


def test_row_sampler_samples_from_the_softmax():
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    sampler = RowSampler([TextSampling(temperature=0.7, top_k=3, seed=0)], torch.device("cpu"))
    samples = torch.stack([sampler(torch.zeros(1, 1), scores.clone()).argmax() for _ in range(4000)])
    shares = samples.bincount(minlength=4) / 4000
    assert shares[3] == 0, "beyond the likeliest three"
    torch.testing.assert_close(shares[:3], (scores[0] / 0.7)[:3].softmax(-1), atol=0.03, rtol=0)
    untouched = RowSampler([TextSampling()], torch.device("cpu"))(torch.zeros(1, 1), scores.clone())
    assert torch.equal(untouched, scores)


def test_answer_batch_listener_ends_its_row_only(parts, chats):
    model, processor = parts
    prompts = [read_chat(model, processor, chat)[0] for chat in chats]
    heard, reasons = [[], [], []], []

    def listen(row, token, reason):
        heard[row].append(token)
        reasons.append(reason)
        return row == 1 and len(heard[1]) == 2

    answers = answer_batch(model, prompts, [TextSampling(6)] * 3, listen)
    assert [len(found.ids) for found in answers] == [6, 2, 6]
    assert heard == [found.ids for found in answers] and reasons == [None] * 12 + ["length"] * 2


def test_answer_batch_end_of_text_has_the_reason_stop(parts, chats, monkeypatch):
    model, processor = parts
    prompt, _ = read_chat(model, processor, chats[1])
    [plain] = answer_batch(model, [prompt], [TextSampling(6)])
    end = next(token for token in plain.ids if plain.ids.index(token) > 0)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [end, processor.tokenizer.eos_token_id])
    [ended] = answer_batch(model, [prompt], [TextSampling(6)])
    assert ended.finish_reason == "stop" and ended.ids == plain.ids[: plain.ids.index(end) + 1]


def test_generate_batch_images_depend_on_their_prompt_and_seed(parts):
    model, processor = parts
    requests = [("a cat", "a dog", 5), ("the red one, a cat", "", 6), ("a cat", "a dog", 7)]
    prompts = [read_image_prompt(model, processor, *request[:2]) for request in requests]
    together = generate_batch(model, processor, prompts, [seed for *_, seed in requests], guidance_scale=3.0)
    for prompt, (*_, seed), image in zip(prompts, requests, together, strict=True):
        [alone] = generate_batch(model, processor, [prompt], [seed], guidance_scale=3.0)
        assert alone.tobytes() == image.tobytes()
    [alone] = generate_images(model, processor, ["the red one, a cat"], seed=6, guidance_scale=3.0)
    assert alone.tobytes() == together[1].tobytes()
    assert len({image.tobytes() for image in together}) == 3


def test_generate_batch_stops_without_open_images(parts):
    model, processor = parts
    is_wanted = iter([True, True, False])
    prompts = [read_image_prompt(model, processor, "a cat")]
    with pytest.raises(StoppedError):
        generate_batch(model, processor, prompts, [0], is_wanted=lambda: next(is_wanted))
    assert next(is_wanted, None) is None


def test_generate_images_repeats_by_seed(parts):
    arguments = {"guidance_scale": 7.5, "guidance_min_p": 0.1, "batch_size": 2}
    images, again, other = (generate_images(*parts, PROMPTS, seed=seed, **arguments) for seed in (3, 3, 4))
    assert len(images) == 3 and images[0].size == (32, 32)
    assert images == again and images != other


@pytest.mark.parametrize("sampling", [{"seeds": [5, 6, 7]}, {"do_sample": False}])
def test_generate_images_with_seeds_is_independent_of_the_batch(parts, sampling):
    together, alone = (
        np.stack(generate_images(*parts, PROMPTS, guidance_scale=2.0, batch_size=size, **sampling)).astype(int)
        for size in (3, 1)
    )
    assert np.abs(together - alone).max() <= 1, "a step of 8 bits, where sums are rounded"


@pytest.mark.parametrize(
    ("prompts", "sampling", "message"),
    [(["a"], {"guidance_min_p": 3}, "guidance_min_p=3"), (["a"], {"temprature": 1}, "temprature"), ([], {}, "prompts")],
)
def test_generate_images_refuses_bad_arguments(parts, prompts, sampling, message):
    with pytest.raises(ValueError, match=message):
        generate_images(*parts, prompts, **sampling)


def test_prompts_beyond_the_context_are_refused(parts):
    model, processor = parts
    with pytest.raises(ValueError, match="the limit is 511"):
        read_chat(model, processor, [{"role": "user", "content": "0xq7" * 400}])
    with pytest.raises(ValueError, match="The negative prompt has .* the limit before an image is 496"):
        read_image_prompt(model, processor, "a cat", "0xq7" * 480)
    with pytest.raises(ValueError, match="Prompt 2 of 2 has .* the limit before an image is 496"):
        generate_images(model, processor, ["a cat", "0xq7" * 480])


# --- streams ----------------------------------------------------------------------------------------------------------


def stream(work, seconds=60):
    """Streams the values that `work(put)` puts."""
    signal = StopSignal(seconds)
    streamer = CodeIteratorStreamer(signal)
    return stream_in_thread(lambda: work(streamer.put), streamer, signal)


def count(put):
    for step in itertools.count():
        put(step)
        time.sleep(0.002)


def test_stream_yields_steps_in_order_and_raises_the_error():
    def work(put):
        put(1)
        put(2)
        raise ValueError("no memory")

    seen = []
    with pytest.raises(ValueError, match="no memory"):
        for step in stream(work):
            seen.append(step)  # noqa: PERF402 - the steps before the error are checked
    assert seen == [1, 2]


@pytest.mark.parametrize("end", ["closed", "deadline"])
def test_stream_closed_early_releases_the_model(end):
    first = stream(count, seconds=60 if end == "closed" else 0.2)
    assert next(first) == 0
    if end == "closed":
        first.close()
    else:
        assert list(first)
    assert list(stream(lambda put: put("next"))) == ["next"]


def test_stream_runs_one_generation_at_a_time():
    running, most = [], []

    def read(name):
        def work(put):
            running.append(name)
            for step in range(5):
                most.append(len(running))
                put(step)
                time.sleep(0.002)
            running.remove(name)

        assert list(stream(work)) == list(range(5))

    readers = [threading.Thread(target=read, args=(name,)) for name in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert most == [1] * 15


def test_stream_answer_pieces_join_to_the_answer(parts, chats):
    for chat in chats[1:]:
        pieces = list(stream_answer(*parts, chat, 12, 60))
        assert len(pieces) > 2 and "".join(pieces).strip() == answer(*parts, [chat], max_new_tokens=12)[0]
    assert "".join(stream_answer(*parts, chats[1], 12, -1)) == ""


def test_stream_codes_equals_generate(parts):
    model, processor = parts
    inputs = read_image_prompt(model, processor, "a cat", "a dog")
    seeded = lambda: {"generator": torch.Generator().manual_seed(1), "num_return_sequences": 2}  # noqa: E731
    codes = torch.stack(list(stream_codes(model, inputs, 60, **seeded())), dim=1)
    assert torch.equal(codes, model.generate(**inputs, generation_mode="image", **seeded()))
    assert codes.shape[:2] == (2, POSITIONS)


def test_preview_images_are_grey_at_missing_positions(parts):
    codes = torch.randint(32, (1, 6, 2), generator=torch.Generator().manual_seed(0))
    [image] = preview_images(*parts, codes)
    cells = [image.crop((8 * c, 8 * r, 8 * c + 8, 8 * r + 8)) for r in range(4) for c in range(4)]
    grey = [set(cell.get_flattened_data()) == {UNFINISHED} for cell in cells]
    assert grey == [False] * 6 + [True] * 10
