"""Images generated row by row in arbitrary batches, without vLLM: they equal `generate`."""

import random

import pytest
import torch
from conftest import build_chat_model
from transformers import DynamicCache

from evotok.modeling_evotok.sampling_evotok import read_settings
from evotok.vllm.generation import KEY, SETTINGS, Row, RowStep, UnfinishedImages, read_row


GREEDY = {"guidance_scale": 1.0, "do_sample": False}
GUIDED = {"guidance_scale": 3.0, "top_k": 20, "guidance_min_p": 0.1}


@pytest.fixture(scope="module")
def parts():
    return build_chat_model()


class Sequence:
    """Row as an engine runs it: its tokens are computed in pieces; a row that waits computes its last token again."""

    def __init__(self, model, row: Row, prompt: torch.Tensor):
        self.model, self.row, self.prompt = model, row, prompt
        self.codes: list[torch.Tensor] = []
        self.preempt()

    def preempt(self) -> None:
        """Drops the computed state."""
        self.cache, self.computed, self.hidden = DynamicCache(config=self.model.config.text_config), 0, None

    @property
    def length(self) -> int:
        return self.prompt.shape[1] + len(self.codes)

    def step(self, index: int, token: int, most: int) -> RowStep:
        """Returns the part of the row for the next step, at most so many tokens."""
        first = self.computed
        count = min(most, self.length - first)
        return RowStep(index, self.row, token, first - self.prompt.shape[1], count, first + count == self.length)

    def compute(self, embeds: torch.Tensor) -> None:
        """Runs the language model over (T, H) embeddings of the next tokens."""
        outputs = self.model.model.language_model(inputs_embeds=embeds[None], past_key_values=self.cache)
        self.hidden, self.computed = outputs.last_hidden_state[0, -1], self.computed + len(embeds)

    def take(self, codes: torch.Tensor | None, is_complete: bool) -> None:
        """Appends the generated position, or discards the last token."""
        if codes is not None:
            self.codes.append(codes)
        elif is_complete:
            self.computed -= 1
            self.cache.crop(-1)


@torch.no_grad()
def run(model, images: UnfinishedImages, sequences: list[Sequence], choose) -> None:
    """Runs steps of the sequences that `choose` picks, until all are finished."""
    embed, positions = model.model.get_input_embeddings(), model.config.vq_config.num_positions
    for number in range(2000):
        open_ones = [sequence for sequence in sequences if len(sequence.codes) < positions]
        if not open_ones:
            return
        chosen, steps, token = choose(number, open_ones), [], 0
        for index, (sequence, most) in enumerate(chosen):
            steps.append(sequence.step(index, token, most))
            token += steps[-1].count
        ids = torch.full((token,), model.config.image_generation_token_id)
        for (sequence, _), step in zip(chosen, steps, strict=True):
            given = sequence.prompt[0, sequence.computed : sequence.computed + step.count]
            ids[step.first_token : step.first_token + len(given)] = given
        embeds = embed(ids)
        if (found := images.inputs(steps)) is not None:
            embeds = embeds.index_copy(0, found[0], model.model.pixel_projector(found[1]))
        for (sequence, _), step in zip(chosen, steps, strict=True):
            sequence.compute(embeds[step.first_token : step.first_token + step.count])
        generated = images.generate(steps, torch.stack([sequence.hidden for sequence, _ in chosen]))
        for (sequence, _), step, codes in zip(chosen, steps, generated, strict=True):
            assert codes is None or step.is_complete
            sequence.take(codes, step.is_complete)
    pytest.fail("the images were never finished")


def everything(number, sequences):
    return [(sequence, 1000) for sequence in sequences]


def anything(seed: int):
    """Returns a function that picks rows in any order with few tokens each, and sometimes preempts one."""
    source = random.Random(seed)

    def choose(number, sequences):
        if source.random() < 0.05:
            source.choice(sequences).preempt()
        chosen = source.sample(sequences, source.randint(1, len(sequences)))
        return [(sequence, source.choice([1, 3, 1000])) for sequence in chosen]

    return choose


def new_images(model) -> UnfinishedImages:
    levels = model.config.depth_decoder_config.num_codebooks
    codebooks = model.model.vq_model.quantizer.stack_codebooks(levels, torch.device("cpu"))
    return UnfinishedImages(model.depth_decoder, codebooks, model.config.vq_config.num_positions)


def order(parts, name: str, prompt: str, seed: int, sampling: dict, negative: str = ""):
    """Returns the sequences of an image, and the codes of `generate` for the same prompt."""
    model, processor = parts
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": prompt}], generation_mode="image", negative_prompt=negative,
        tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    settings = read_settings(model.generation_config, None, dict(sampling))
    row = Row(name, True, seed, tuple(settings[name] for name in SETTINGS))
    sequences = [Sequence(model, row, inputs["input_ids"])]
    if row.is_guided:
        sequences.append(Sequence(model, row._replace(is_conditional=False), inputs["negative_prompt_ids"]))
    expected = model.generate(
        **inputs, generation_mode="image", generator=torch.Generator().manual_seed(seed), **sampling
    )
    return sequences, expected[0]


@pytest.mark.parametrize("choose", [everything, anything(1), anything(2)])
def test_images_in_any_batches_equal_generate(parts, choose):
    orders = [
        order(parts, "a", "a red cat", 1, GREEDY),
        order(parts, "b", "a dog, please", 2, GUIDED),
        order(parts, "c", "a dog, please", 3, GUIDED, negative="the blue one, a dog"),
        order(parts, "d", "the red cat", 4, {"guidance_scale": 1.0, "temperature": 0.7, "top_p": 0.9}),
    ]
    run(parts[0], new_images(parts[0]), [sequence for sequences, _ in orders for sequence in sequences], choose)
    for sequences, expected in orders:
        assert len(expected.unique()) > 4, "a constant image would prove nothing"
        for sequence in sequences:
            assert torch.equal(torch.stack(sequence.codes), expected)


def test_incomplete_pair_waits_and_finished_images_are_removed(parts):
    images = new_images(parts[0])
    (conditional, unconditional), _ = order(parts, "a", "a red cat", 1, GUIDED)
    hidden = torch.zeros(1, parts[0].config.text_config.hidden_size)
    for alone in (conditional, unconditional):
        assert images.generate([alone.step(0, 0, 1000)], hidden) == [None]
    assert len(images) == 0
    steps = [unconditional.step(0, 0, 1000), conditional.step(1, 7, 1000)]
    first, second = images.generate(steps, hidden.expand(2, -1))
    assert torch.equal(first, second) and len(images) == 1
    assert images.generate([steps[0], steps[1]._replace(is_complete=False)], hidden.expand(2, -1)) == [None, None]
    images.keep({"b"})
    assert len(images) == 0


def test_non_finite_scores_affect_their_own_image_only(parts):
    images = new_images(parts[0])
    hidden = torch.zeros(2, parts[0].config.text_config.hidden_size)
    hidden[0] = float("nan")
    sequences = [order(parts, name, "a cat", 1, GREEDY | {"top_k": k})[0][0] for name, k in (("a", 3), ("b", 4))]
    spoilt, whole = images.generate([sequence.step(i, 0, 1000) for i, sequence in enumerate(sequences)], hidden)
    assert spoilt.eq(-1).all() and whole.ge(0).all()


def test_row_is_serializable():
    row = Row("a", False, 2**64 - 1, (7.5, None, True, 1.0, 0, 1.0))
    assert read_row({KEY: row.to_dict(), "other": 1}) == row and row.is_guided
    assert read_row(None) is None and read_row({}) is None
