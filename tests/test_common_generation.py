"""Text is generated as Transformers' common tests of generation ask (`GenerationTesterMixin`), images in the prompt."""

import copy

import pytest
import torch
from common_testers import DRAW, IMAGE, POSITIONS, START, TEXT, MultimodalTester
from transformers import DynamicCache, StaticCache
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput, GenerationMixin

from evotok import EvoTokForConditionalGeneration


NEW = 3
LENGTH = MultimodalTester.seq_length
LAYERS = TEXT["num_hidden_layers"]
EVERYTHING = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}
PROCESSORS = {
    "bad_words_ids": [[1, 0], [IMAGE], [START]],
    "repetition_penalty": 1.2,
    "remove_invalid_values": True,
    "max_new_tokens": NEW,
    "min_new_tokens": NEW,
}
SAMPLE = {"do_sample": True, "top_k": 10, "top_p": 0.7, "temperature": 0.7}
BEAMS = {"num_beams": 2, "num_return_sequences": 2, "early_stopping": False, "length_penalty": 2.0}


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    config, inputs = MultimodalTester().prepare_config_and_inputs_for_common()
    config.text_config.eos_token_id = None  # nothing ends early
    config._attn_implementation = "eager"
    return EvoTokForConditionalGeneration(config).eval(), {name: tensor[:2] for name, tensor in inputs.items()}


@pytest.fixture
def model(prepared):
    return prepared[0]


@pytest.fixture
def inputs(prepared):
    return dict(prepared[1])


def check_cache(cache, rows: int, length: int):
    """Keys and values of every layer, (rows, heads, length, head width)."""
    heads = TEXT["num_key_value_heads"]
    shape = (rows, heads, length, TEXT["hidden_size"] // TEXT["num_attention_heads"])
    assert len(cache) == LAYERS
    assert [(layer.keys.shape, layer.values.shape) for layer in cache.layers] == [(shape, shape)] * LAYERS


def check_states(output, rows: int, cached: bool):
    """Scores, logits, hidden states and attentions of every step."""
    new = output.sequences.shape[1] - LENGTH
    vocabulary = (rows, TEXT["vocab_size"])
    assert [step.shape for step in output.scores] == [vocabulary] * new
    assert [step.shape for step in output.logits] == [vocabulary] * new
    for step in range(new):
        seen = LENGTH + step
        read = 1 if cached and step else seen
        states, attentions = output.hidden_states[step], output.attentions[step]
        assert [state.shape for state in states] == [(rows, read, TEXT["hidden_size"])] * (LAYERS + 1)
        assert [weights.shape for weights in attentions] == [(rows, TEXT["num_attention_heads"], read, seen)] * LAYERS


def assert_same_text(first, second):
    """The same tokens, or scores that were as good as equal where they part."""
    start = first.sequences.shape[1] - len(first.scores)
    for row in range(first.sequences.shape[0]):
        parted = (first.sequences[row] != second.sequences[row]).nonzero().flatten().tolist()
        if parted:
            step = parted[0] - start
            torch.testing.assert_close(first.scores[step][row], second.scores[step][row], atol=1e-5, rtol=1e-5)


def test_it_inherits_generation_directly():
    assert any(issubclass(base, GenerationMixin) for base in EvoTokForConditionalGeneration.__bases__)
    assert "GenerationMixin" in str(EvoTokForConditionalGeneration.__bases__)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("arguments", "kind", "returned", "computed"),
    [
        ({"do_sample": False}, GenerateDecoderOnlyOutput, 2, 2),
        (SAMPLE | {"num_return_sequences": 2}, GenerateDecoderOnlyOutput, 4, 4),
        (BEAMS | {"do_sample": False}, GenerateBeamDecoderOnlyOutput, 4, 4),
        (BEAMS | SAMPLE, GenerateBeamDecoderOnlyOutput, 4, 4),
    ],
    ids=["greedy", "sample", "beams", "beam-sample"],
)
def test_strategies(model, inputs, arguments, kind, returned, computed, cached):
    torch.manual_seed(0)
    arguments = arguments | PROCESSORS | {"use_cache": cached}
    output = model.generate(**inputs, **arguments, **EVERYTHING)
    assert isinstance(output, kind)
    assert output.sequences.shape == (returned, LENGTH + NEW)
    assert torch.equal(output.sequences[:, :LENGTH], inputs["input_ids"].repeat_interleave(returned // 2, 0))
    assert not torch.isin(output.sequences[:, LENGTH:], torch.tensor([IMAGE, DRAW])).any()
    check_states(output, computed, cached)
    if cached:
        check_cache(output.past_key_values, computed, LENGTH + NEW - 1)
    else:
        assert output.past_key_values is None
    torch.manual_seed(0)
    assert torch.equal(model.generate(**inputs, **arguments), output.sequences)


@pytest.mark.parametrize("assistant", ["same", "random", "prompt"])
@pytest.mark.parametrize("sample", [False, True])
def test_assisted_decoding(model, inputs, assistant, sample):
    row = {name: tensor[:1] for name, tensor in inputs.items()}
    arguments = {"max_new_tokens": 4, "do_sample": sample, "eos_token_id": -1, "use_cache": True}
    arguments |= EVERYTHING | {"bad_words_ids": [[IMAGE], [START]]}
    plain = model.generate(**row, **arguments)
    helpers = {"prompt_lookup_num_tokens": 2}
    if assistant != "prompt":
        torch.manual_seed(1)
        helper = EvoTokForConditionalGeneration(copy.deepcopy(model.config)).eval()
        if assistant == "same":
            helper.load_state_dict(model.state_dict())
        helper.generation_config.num_assistant_tokens = 2
        helper.generation_config.num_assistant_tokens_schedule = "constant"
        helpers = {"assistant_model": helper}
    output = model.generate(**row, **arguments, **helpers)
    assert output.sequences.shape == plain.sequences.shape
    check_states(plain, 1, cached=True)
    if not sample:
        assert_same_text(plain, output)


@pytest.mark.parametrize("beams", [1, 2])
def test_embeddings_stand_for_ids(model, inputs, beams):
    ids = inputs.pop("input_ids")
    arguments = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams}
    arguments |= {"return_dict_in_generate": True, "output_scores": True}
    plain = model.generate(ids, **inputs, **arguments)
    embeddings = model.get_input_embeddings()(ids)
    beside = model.generate(ids, inputs_embeds=embeddings, **inputs, **arguments)
    assert_same_text(plain, beside)
    instead = model.generate(inputs_embeds=embeddings, **inputs, **arguments)
    beside.sequences = beside.sequences[:, LENGTH:]
    assert_same_text(instead, beside)


def test_other_embeddings_give_other_scores(model, inputs):
    ids = inputs["input_ids"]
    embeddings = model.get_input_embeddings()(ids)
    arguments = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    first = model.generate(ids, inputs_embeds=embeddings, **arguments)
    other = model.generate(ids, inputs_embeds=torch.rand_like(embeddings), **arguments)
    assert not any(torch.allclose(*scores) for scores in zip(first.scores, other.scores, strict=True))


def test_it_writes_from_nothing(model):
    assert model.generate(do_sample=False, max_new_tokens=NEW, remove_invalid_values=True).shape == (1, 1 + NEW)


def test_left_padding_changes_nothing(model, inputs):
    def padded(tensor: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (32, 0), value=value)

    with torch.no_grad():
        expected = model(**inputs, use_cache=False).logits[:, -1]
        mask = padded(inputs["attention_mask"], 0)
        inputs |= {"input_ids": padded(inputs["input_ids"], TEXT["pad_token_id"]), "attention_mask": mask}
        position_ids = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
        logits = model(**inputs, position_ids=position_ids, use_cache=False).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_the_cache_has_the_usual_form(model, inputs):
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    assert isinstance(cache, DynamicCache)
    check_cache(cache, 2, LENGTH)


def test_a_text_goes_on_from_its_cache(model, inputs):
    arguments = {"do_sample": False, "pad_token_id": -1, "eos_token_id": -1, "return_dict_in_generate": True}
    arguments |= {"output_scores": True}
    whole = model.generate(**inputs, **arguments, max_new_tokens=4)
    begun = model.generate(**inputs, **arguments, max_new_tokens=3)
    ids, mask = begun.sequences, torch.ones_like(begun.sequences)
    ended = model.generate(
        ids, attention_mask=mask, past_key_values=begun.past_key_values, **arguments, max_new_tokens=1
    )
    ended.scores = begun.scores + ended.scores
    assert_same_text(whole, ended)
    for layer, other in zip(whole.past_key_values.layers, ended.past_key_values.layers, strict=True):
        torch.testing.assert_close((layer.keys, layer.values), (other.keys, other.values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("embedded", [False, True])
def test_a_static_cache_changes_nothing(model, inputs, dtype, embedded):
    """Also in a model made half after it was built, tokenizer and all, which nobody loads so."""
    model = copy.deepcopy(model).to(dtype)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    if embedded:
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    arguments = {"max_new_tokens": 10, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    static = model.generate(**inputs, **arguments, cache_implementation="static", disable_compile=True)
    assert isinstance(static.past_key_values, StaticCache)
    check_cache(static.past_key_values, 2, LENGTH + 10 - 1)
    assert_same_text(model.generate(**inputs, **arguments), static)


def test_logits_of_the_last_position_suffice(model, inputs):
    arguments = {"max_new_tokens": 10, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **arguments, logits_to_keep=0), model.generate(**inputs, **arguments))
    with torch.no_grad():
        last = model(**inputs, logits_to_keep=1).logits
        torch.testing.assert_close(last, model(**inputs).logits[:, -1:], atol=1e-5, rtol=1e-5)


def test_unknown_arguments_are_passed_on(model):
    """To prepare inputs is not to check them: ids that happen to be placeholders are no error here."""
    ids = torch.tensor([[1, 2, 3], [IMAGE, DRAW, 6]])
    positions = torch.arange(3).expand(2, -1)
    passed = {"output_attentions": True, "custom_arg": "value", "numeric_arg": 42}
    prepared = model.prepare_inputs_for_generation(
        input_ids=ids, cache_position=torch.tensor([9]), position_ids=positions, **passed
    )
    assert "input_ids" in prepared
    assert {name: prepared[name] for name in passed} == passed


def test_positions_are_found_from_the_mask(model, inputs):
    """With the attention mask, positions may be given or left out."""
    mask = inputs["attention_mask"].clone()
    mask[0, POSITIONS] = 0
    inputs["attention_mask"] = mask
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    arguments = {"max_new_tokens": NEW, "do_sample": False}
    given = model.generate(**inputs, position_ids=positions, **arguments)
    assert torch.equal(given, model.generate(**inputs, **arguments))
