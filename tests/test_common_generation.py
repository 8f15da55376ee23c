"""Text generation with images in the prompt behaves as Transformers' tests require (`GenerationTesterMixin`)."""

import copy

import pytest
import torch
from common_testers import GENERATED, IMAGE, POSITIONS, START, TEXT, MultimodalTester
from transformers import StaticCache
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput, GenerationMixin

from evotok import EvoTokForConditionalGeneration


NEW = 3
LENGTH = MultimodalTester.seq_length
LAYERS = TEXT["num_hidden_layers"]
ALL_OUTPUTS = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}
SCORES = {"return_dict_in_generate": True, "output_scores": True}
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
    config.text_config.eos_token_id = None  # no answer ends early
    config._attn_implementation = "eager"
    return EvoTokForConditionalGeneration(config).eval(), {name: tensor[:2] for name, tensor in inputs.items()}


@pytest.fixture
def model(prepared):
    return prepared[0]


@pytest.fixture
def inputs(prepared):
    return dict(prepared[1])


def check_cache(cache, rows: int, length: int):
    """Checks keys and values of every layer, (rows, heads, length, head width)."""
    shape = (rows, TEXT["num_key_value_heads"], length, TEXT["hidden_size"] // TEXT["num_attention_heads"])
    assert [(layer.keys.shape, layer.values.shape) for layer in cache.layers] == [(shape, shape)] * LAYERS


def check_states(output, rows: int, cached: bool):
    """Checks scores, logits, hidden states and attentions of every step."""
    new = output.sequences.shape[1] - LENGTH
    vocabulary = (rows, TEXT["vocab_size"])
    assert [step.shape for step in output.scores] == [step.shape for step in output.logits] == [vocabulary] * new
    for step in range(new):
        length = LENGTH + step
        queries = 1 if cached and step else length
        states, attentions = output.hidden_states[step], output.attentions[step]
        assert [state.shape for state in states] == [(rows, queries, TEXT["hidden_size"])] * (LAYERS + 1)
        shape = (rows, TEXT["num_attention_heads"], queries, length)
        assert [weights.shape for weights in attentions] == [shape] * LAYERS


def assert_same_text(first, second):
    """Asserts equal tokens, or about equal scores at the first different token."""
    start = first.sequences.shape[1] - len(first.scores)
    for row in range(first.sequences.shape[0]):
        different = (first.sequences[row] != second.sequences[row]).nonzero().flatten().tolist()
        if different:
            step = different[0] - start
            torch.testing.assert_close(first.scores[step][row], second.scores[step][row], atol=1e-5, rtol=1e-5)


def test_generation_mixin_is_a_direct_base():
    assert any(issubclass(base, GenerationMixin) for base in EvoTokForConditionalGeneration.__bases__)
    assert "GenerationMixin" in str(EvoTokForConditionalGeneration.__bases__)


@pytest.mark.parametrize(
    ("arguments", "kind", "rows", "cached"),
    [
        (SAMPLE | {"num_return_sequences": 2}, GenerateDecoderOnlyOutput, 4, False),
        (BEAMS | SAMPLE, GenerateBeamDecoderOnlyOutput, 4, True),
    ],
    ids=["sample-uncached", "beam-sample"],
)
def test_generate_supports_strategy(model, inputs, arguments, kind, rows, cached):
    arguments = arguments | PROCESSORS | {"use_cache": cached}
    torch.manual_seed(0)
    output = model.generate(**inputs, **arguments, **ALL_OUTPUTS)
    assert isinstance(output, kind) and output.sequences.shape == (rows, LENGTH + NEW)
    assert torch.equal(output.sequences[:, :LENGTH], inputs["input_ids"].repeat_interleave(rows // 2, 0))
    assert not torch.isin(output.sequences[:, LENGTH:], torch.tensor([IMAGE, GENERATED])).any()
    check_states(output, rows, cached)
    if cached:
        check_cache(output.past_key_values, rows, LENGTH + NEW - 1)
    else:
        assert output.past_key_values is None
    torch.manual_seed(0)
    assert torch.equal(model.generate(**inputs, **arguments), output.sequences)


def test_assisted_decoding_equals_plain_decoding(model, inputs):
    row = {name: tensor[:1] for name, tensor in inputs.items()}
    arguments = SCORES | {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1, "bad_words_ids": [[IMAGE]]}
    torch.manual_seed(1)
    assistant = EvoTokForConditionalGeneration(copy.deepcopy(model.config)).eval()
    assistant.generation_config.num_assistant_tokens = 2
    plain, assisted = (model.generate(**row, **arguments, assistant_model=each) for each in (None, assistant))
    assert_same_text(plain, assisted)


def test_embeddings_equal_ids(model, inputs):
    ids = inputs.pop("input_ids")
    arguments = SCORES | {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 2}
    plain = model.generate(ids, **inputs, **arguments)
    embeddings = model.get_input_embeddings()(ids)
    beside = model.generate(ids, inputs_embeds=embeddings, **inputs, **arguments)
    assert_same_text(plain, beside)
    instead = model.generate(inputs_embeds=embeddings, **inputs, **arguments)
    beside.sequences = beside.sequences[:, LENGTH:]
    assert_same_text(instead, beside)
    other = model.generate(ids, inputs_embeds=torch.rand_like(embeddings), **arguments)
    assert not torch.allclose(other.scores[0], plain.scores[0])


def test_generate_works_without_inputs(model):
    assert model.generate(do_sample=False, max_new_tokens=NEW, remove_invalid_values=True).shape == (1, 1 + NEW)


def test_left_padding_keeps_logits(model, inputs):
    def padded(tensor: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (32, 0), value=value)

    with torch.no_grad():
        expected = model(**inputs, use_cache=False).logits[:, -1]
        mask = padded(inputs["attention_mask"], 0)
        inputs |= {"input_ids": padded(inputs["input_ids"], TEXT["pad_token_id"]), "attention_mask": mask}
        position_ids = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
        logits = model(**inputs, position_ids=position_ids, use_cache=False).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    arguments = {"max_new_tokens": NEW, "do_sample": False}
    given = model.generate(**inputs, position_ids=position_ids, **arguments)
    assert torch.equal(given, model.generate(**inputs, **arguments)), "positions follow from the mask"


def test_static_cache_equals_dynamic_cache(model, inputs):
    """The prompt is given as embeddings, to a model that was cast to half precision after it was built."""
    model = copy.deepcopy(model).half()
    inputs["pixel_values"] = inputs["pixel_values"].half()
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    arguments = SCORES | {"max_new_tokens": 10, "do_sample": False}
    static = model.generate(**inputs, **arguments, cache_implementation="static", disable_compile=True)
    assert isinstance(static.past_key_values, StaticCache)
    check_cache(static.past_key_values, 2, LENGTH + 10 - 1)
    assert_same_text(model.generate(**inputs, **arguments), static)


def test_prepare_inputs_keeps_unknown_arguments(model):
    """Ids are not checked, since they may be placeholders."""
    ids = torch.tensor([[1, 2, 3], [IMAGE, GENERATED, 6]])
    positions = torch.arange(POSITIONS - 1).expand(2, -1)
    arguments = {"output_attentions": True, "custom_arg": "value", "numeric_arg": 42}
    prepared = model.prepare_inputs_for_generation(
        input_ids=ids, cache_position=torch.tensor([9]), position_ids=positions, **arguments
    )
    assert "input_ids" in prepared
    assert {name: prepared[name] for name in arguments} == arguments
