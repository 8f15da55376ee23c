"""Inference shared by commands, page and server: rows of a batch are what each prompt gives alone."""

import pytest
import torch
from conftest import build_chat_model
from PIL import Image

from evotok.eval.inference import answer, generate_images
from evotok.inference import (
    RowSampler,
    StoppedError,
    TextSampling,
    answer_batch,
    generate_batch,
    read_chat,
    read_image_prompt,
    stack_prompts,
)


@pytest.fixture(scope="module")
def parts():
    """Model and processor: 32 px, 4 x 4 positions, a context of 512 tokens."""
    return build_chat_model()


def noise(seed):
    pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module")
def chats():
    """Conversations of different lengths with two, no and one image."""
    ask = {"type": "text", "text": "what is this?"}
    two = [{"type": "image", "image": noise(1)}, {"type": "image", "image": noise(2)}, ask]
    one = [ask, {"type": "image", "image": noise(3)}]
    return [[{"role": "user", "content": content}] for content in (two, "a cat, a dog, the red one", one)]


def test_prompts_read_alone_and_stacked_are_the_processors_batch(parts, chats):
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


def test_greedy_answers_of_a_batch_are_those_of_each_prompt_alone(parts, chats):
    model, processor = parts
    prompts = [read_chat(model, processor, chat)[0] for chat in chats]
    answers = answer_batch(model, prompts, [TextSampling(max_new_tokens=count) for count in (9, 4, 12)])
    for chat, found, count in zip(chats, answers, (9, 4, 12), strict=True):
        assert len(found.ids) == count and found.finish_reason == "length"
        [wanted] = answer(model, processor, [chat], max_new_tokens=count, do_sample=False)
        assert processor.tokenizer.decode(found.ids, skip_special_tokens=True).strip() == wanted


def test_sampled_answers_depend_on_their_own_seed_alone(parts, chats):
    model, processor = parts
    prompts = [read_chat(model, processor, chat)[0] for chat in chats]
    settings = [TextSampling(8, temperature=1.5, top_p=0.9, seed=5), TextSampling(8), TextSampling(8, 2.0, 20, seed=6)]
    together = answer_batch(model, prompts, settings)
    for prompt, setting, found in zip(prompts, settings, together, strict=True):
        assert answer_batch(model, [prompt], [setting]) == [found]
    assert answer_batch(model, prompts[:1], [settings[0]._replace(seed=7)]) != together[:1]
    unseeded = [answer_batch(model, prompts[:1], [settings[0]._replace(seed=None)])[0].ids for _ in range(3)]
    assert len({tuple(ids) for ids in unseeded}) > 1


def test_rows_are_sampled_from_their_softmax():
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    sampler = RowSampler([TextSampling(temperature=0.7, top_k=3, seed=0)], torch.device("cpu"))
    found = torch.stack([sampler(torch.zeros(1, 1), scores.clone()).argmax() for _ in range(4000)]).bincount(
        minlength=4
    )
    wanted = (scores[0] / 0.7)[:3].softmax(-1)
    assert found[3] == 0, "beyond the likeliest three"
    torch.testing.assert_close(found[:3] / 4000, wanted, atol=0.03, rtol=0)
    untouched = RowSampler([TextSampling()], torch.device("cpu"))(torch.zeros(1, 1), scores.clone())
    assert torch.equal(untouched, scores)


def test_a_listener_ends_its_row_and_no_other(parts, chats):
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


def test_an_answer_that_ends_by_itself_says_so(parts, chats, monkeypatch):
    model, processor = parts
    prompt, _ = read_chat(model, processor, chats[1])
    [plain] = answer_batch(model, [prompt], [TextSampling(6)])
    end = next(token for token in plain.ids if plain.ids.index(token) > 0)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [end, processor.tokenizer.eos_token_id])
    [ended] = answer_batch(model, [prompt], [TextSampling(6)])
    assert ended.finish_reason == "stop" and ended.ids == plain.ids[: plain.ids.index(end) + 1]


def test_images_of_a_batch_are_those_of_each_prompt_and_seed_alone(parts):
    model, processor = parts
    wishes = [("a cat", "a dog", 5), ("the red one, a cat", "", 6), ("a cat", "a dog", 7)]
    prompts = [read_image_prompt(model, processor, *wish[:2]) for wish in wishes]
    together = generate_batch(model, processor, prompts, [seed for *_, seed in wishes], guidance_scale=3.0)
    for prompt, (*_, seed), image in zip(prompts, wishes, together, strict=True):
        [alone] = generate_batch(model, processor, [prompt], [seed], guidance_scale=3.0)
        assert alone.tobytes() == image.tobytes()
    pixels = generate_images(model, processor, ["the red one, a cat"], guidance_scale=3.0, seed=6)
    assert processor.post_process_image_generation(pixels)[0].tobytes() == together[1].tobytes()
    assert len({image.tobytes() for image in together}) == 3


def test_images_that_nobody_wants_any_more_are_not_finished(parts):
    model, processor = parts
    asked = iter([True, True, False])
    with pytest.raises(StoppedError):
        generate_batch(
            model, processor, [read_image_prompt(model, processor, "a cat")], [0], is_wanted=lambda: next(asked)
        )
    assert next(asked, None) is None


def test_prompts_beyond_the_context_are_refused(parts):
    model, processor = parts
    with pytest.raises(ValueError, match="the model reads fewer than 512"):
        read_chat(model, processor, [{"role": "user", "content": "0xq7" * 400}])
    with pytest.raises(ValueError, match="The negative prompt has .* at most 496"):
        read_image_prompt(model, processor, "a cat", "0xq7" * 480)
