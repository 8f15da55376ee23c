"""Initial attention weights of a language model that is trained from random weights.

Retrieval by attention needs a matching head and a copying head, and neither reduces the loss without the other. Trained
from random weights, a small model predicts frequent answers for thousands of steps. A pretrained model has both heads;
this initialization provides them in a weak form.

Sources: mimetic initialization of self-attention (Trockman and Kolter, 2023, arXiv:2305.09828); heads that attend to
the previous token, and induction heads, which find a token by the one before it (Olsson et al., 2022,
arXiv:2209.11895).
"""

from typing import cast

import torch
from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention


_MATCH = 0.84  # scale of queries and keys: at 64 channels a token matches itself with a logit of about 5
_PREVIOUS = 1.26  # scale of the biases that prefer the previous token
_RANDOM = 0.3  # share of the random weights that is kept in queries and keys,
_RANDOM_PREVIOUS = 0.2  # and where position decides, not content


@torch.no_grad()
def initialize_attention(model: Qwen2ForCausalLM) -> None:
    """Initializes the attention of a language model with random weights, in place.

    There are three kinds of heads; those that share keys and values are of one kind:

    - *Previous token*, half of the heads of the first layer: the biases of queries and keys, with rotary embeddings,
      prefer a distance of 1. What they copy is written to channels of its own.
    - *Induction*, the first key-value head of every other layer: the query is matched with those channels, and so
      attends to the token after an equal one.
    - *Match and copy*, all others: queries and keys have equal weights, and the output weights are the transpose of the
      value weights.

    Args:
        model: a `Qwen2ForCausalLM`: its queries and keys have biases.
    """
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    key_value_heads = config.num_key_value_heads or config.num_attention_heads
    inv_freq = model.model.rotary_emb.inv_freq.float()
    key_bias = _PREVIOUS * torch.cat([torch.ones_like(inv_freq), torch.zeros_like(inv_freq)])
    query_bias = _PREVIOUS * torch.cat([inv_freq.cos(), -inv_freq.sin()])  # the key's, one position earlier

    def channels() -> torch.Tensor:
        """Samples orthonormal rows, (head_dim, hidden_size)."""
        square = torch.randn(config.hidden_size, config.hidden_size, device=inv_freq.device)
        return torch.linalg.qr(square)[0][:head_dim]

    read, written = channels(), channels()  # of the heads that attend to the previous token
    for index, layer in enumerate(model.model.layers):
        attention = cast(Qwen2Attention, layer.self_attn)
        queries = attention.q_proj.weight.view(key_value_heads, -1, head_dim, config.hidden_size)
        query_biases = attention.q_proj.bias.view(key_value_heads, -1, head_dim)
        outputs = attention.o_proj.weight.view(config.hidden_size, key_value_heads, -1, head_dim)
        keys = attention.k_proj.weight.view(key_value_heads, head_dim, config.hidden_size)
        key_biases = attention.k_proj.bias.view(key_value_heads, head_dim)
        values = attention.v_proj.weight.view(key_value_heads, head_dim, config.hidden_size)
        for head in range(key_value_heads):
            value = output = channels()
            if index == 0 and head < max(1, key_value_heads // 2):
                value, output = read, written
                queries[head] *= _RANDOM_PREVIOUS
                keys[head] *= _RANDOM_PREVIOUS
                query_biases[head], key_biases[head] = query_bias, key_bias
            else:
                query = key = channels()
                if index > 0 and head == 0:
                    query, key = read, written
                queries[head] = _MATCH * query + _RANDOM * queries[head]
                keys[head] = _MATCH * key + _RANDOM * keys[head]
            values[head] = value
            outputs[:, head] = output.T[:, None]
