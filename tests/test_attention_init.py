import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from evotok.training.backbones.attention_init import initialize_attention


LENGTH = 24


@pytest.fixture(scope="module")
def attentions() -> list[torch.Tensor]:
    """Returns the attention of every layer, (heads, queries, keys), on different tokens that occur twice, in the same
    order."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=64,
        initializer_range=0.06,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config._attn_implementation = "eager"
    model = Qwen2ForCausalLM(config)
    initialize_attention(model)
    tokens = torch.randperm(256)[:LENGTH].repeat(2)
    with torch.no_grad():
        return [layer[0] for layer in model(tokens[None], output_attentions=True).attentions]


def share(attention: torch.Tensor, distance: int) -> float:
    """Returns the mean attention of the second half of the tokens to the token at a distance before them."""
    return torch.stack([attention[:, i, i - distance] for i in range(LENGTH, 2 * LENGTH)]).mean().item()


def test_first_layer_prefers_the_previous_token(attentions):
    previous, other = attentions[0].split(2)
    assert share(previous, 1) > 5 * share(other, 1)
    assert share(previous, 1) > 1.2 * share(previous, 2)


def test_match_heads_prefer_equal_tokens(attentions):
    for match in (attentions[0][2:], attentions[1][2:]):
        assert share(match, LENGTH) > 3 * share(match, LENGTH - 1)


def test_induction_heads_attend_to_the_token_after_an_equal_one(attentions):
    induction, match = attentions[1].split(2)
    assert share(induction, LENGTH - 1) > 5 * share(match, LENGTH - 1)
    assert share(induction, LENGTH - 1) > 1.25 * share(induction, LENGTH - 2)
