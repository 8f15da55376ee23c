"""The depth decoder: its size, its two paths over the same weights, its loss."""

import pytest
import torch
import torch.nn.functional as F

from evotok import EvoTokDepthDecoder, EvoTokDepthDecoderConfig
from evotok.modeling_evotok import depth_linear_evotok, losses_evotok
from evotok.modeling_evotok.depth_linear_evotok import EvoTokDepthLinear, input_dtype


POSITIONS, LEVELS, CODES, DIM, HIDDEN = 5, 3, 32, 8, 24


def tiny_depth_decoder(**kwargs) -> EvoTokDepthDecoder:
    torch.manual_seed(0)
    config = EvoTokDepthDecoderConfig(
        codebook_size=CODES,
        codebook_dim=DIM,
        num_codebooks=LEVELS,
        backbone_hidden_size=HIDDEN,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        **kwargs,
    )
    return EvoTokDepthDecoder(config).eval()


@pytest.fixture
def batch():
    """Returns the hidden states (M, H), codebooks (L, K, C), codes (M, L) and their entries (M, L, C)."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, HIDDEN, generator=generator)
    codebooks = torch.randn(LEVELS, CODES, DIM, generator=generator)
    codes = torch.randint(CODES, (POSITIONS, LEVELS), generator=generator)
    return hidden, codebooks, codes, codebooks[torch.arange(LEVELS), codes]


@pytest.mark.parametrize(
    ("attention", "dtype", "tolerance"),
    [("sdpa", torch.float32, 1e-5), ("eager", torch.float32, 1e-5), ("sdpa", torch.bfloat16, 0.15)],
)
def test_step_equals_the_teacher_forced_logits(batch, attention, dtype, tolerance):
    hidden, _, _, embeddings = batch
    model = tiny_depth_decoder(attn_implementation=attention)
    expected = model(hidden, embeddings).logits
    cache = model.to(dtype).new_cache(POSITIONS)
    for _ in range(2):  # the second position reuses the cache of the first
        inputs = hidden
        for level in range(LEVELS):
            logits = model.step(inputs, level, cache).float()
            torch.testing.assert_close(logits, expected[:, level], atol=tolerance, rtol=tolerance)
            inputs = embeddings[:, : level + 1].sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_projections_equal_the_separate(batch, dtype):
    hidden, codebooks, _, _ = batch
    model, tolerance = tiny_depth_decoder().to(dtype), 8 * torch.finfo(dtype).eps
    names = set(model.state_dict())

    def logits(cache) -> torch.Tensor:
        levels = []
        model.generate_codes(hidden, codebooks, lambda row: levels.append(row) or row.argmax(-1), cache)
        return torch.stack(levels)

    for _ in range(2):
        fused = model.new_cache(POSITIONS)
        separate = model.new_cache(POSITIONS, fuse_projections=False)
        assert all(layer.projections is not None for layer in fused.layers)
        assert all(layer.projections is None for layer in separate.layers)
        torch.testing.assert_close(logits(fused), logits(separate), atol=tolerance, rtol=tolerance)
        before = logits(separate)
        with torch.no_grad():  # a step of training, after which a new cache has the new weights
            model.layers[0].self_attn.k_proj.weight.normal_()
            model.layers[1].self_attn.v_proj.bias.normal_()
        assert not torch.equal(logits(separate), before)
    assert set(model.state_dict()) == names


def quantize(attention) -> None:
    attention.k_proj.weight = torch.nn.Parameter(attention.k_proj.weight.to(torch.int8), requires_grad=False)


def adapt(attention) -> None:
    attention.v_proj = torch.nn.Sequential(attention.v_proj)


SEPARATE = {
    "adapter": adapt,
    "quantized": quantize,
    "hook": lambda attention: attention.q_proj.register_forward_pre_hook(lambda *_: None),
    "offloaded": lambda attention: attention.q_proj.to("meta"),
    "replaced forward": lambda attention: setattr(attention.q_proj, "forward", attention.q_proj.forward),
    "sharded": lambda attention: setattr(attention.q_proj.weight, "data", torch.empty(0)),
}


@pytest.mark.parametrize("change", SEPARATE.values(), ids=SEPARATE)
def test_only_plain_projections_are_fused(change):
    model = tiny_depth_decoder()
    change(model.layers[0].self_attn)
    first, second = model.new_cache(POSITIONS).layers
    assert first.projections is None and second.projections is not None


def test_forward_is_causal_over_levels(batch):
    hidden, _, _, embeddings = batch
    model = tiny_depth_decoder()
    changed = embeddings.clone()
    changed[:, 1] += 1
    logits, other = model(hidden, embeddings).logits, model(hidden, changed).logits
    torch.testing.assert_close(logits[:, :2], other[:, :2])
    assert not torch.allclose(logits[:, 2], other[:, 2])


def test_generate_codes_selects_the_argmax_of_teacher_forcing(batch):
    hidden, codebooks, _, _ = batch
    model = tiny_depth_decoder()
    codes, total = model.generate_codes(hidden, codebooks, lambda logits: logits.argmax(-1))
    embeddings = codebooks[torch.arange(LEVELS), codes]
    assert torch.equal(model(hidden, embeddings).logits.argmax(-1), codes)
    torch.testing.assert_close(total, embeddings.sum(1))


def test_loss_and_gradients_equal_the_plain_loss(batch, monkeypatch):
    hidden, _, codes, embeddings = batch
    model = tiny_depth_decoder()
    monkeypatch.setattr(losses_evotok, "_BLOCK_ROWS", 2)
    output = model.loss(hidden, embeddings, codes)
    output.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected = F.cross_entropy(model(hidden, embeddings).logits.transpose(1, 2), codes, reduction="none")
    expected.mean().backward()
    torch.testing.assert_close(output.loss, expected.mean())
    torch.testing.assert_close(output.level_losses, expected.mean(0))
    assert not output.level_losses.requires_grad
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)


def test_loss_is_equal_with_a_replaced_projection(batch):
    hidden, _, codes, embeddings = batch
    model = tiny_depth_decoder()
    expected = model.loss(hidden, embeddings, codes).loss
    for head in model.classifiers:
        plain = torch.nn.Linear(head.proj.in_features, head.proj.out_features)
        plain.load_state_dict(head.proj.state_dict())
        head.proj = plain
    torch.testing.assert_close(model.loss(hidden, embeddings, codes).loss, expected)


@pytest.mark.parametrize("shape", [(3, 1, 24), (40, 24)], ids=["few rows", "many rows"])
def test_linear_in_half_precision_equals_the_product(shape, monkeypatch):
    monkeypatch.setattr(depth_linear_evotok, "_FEW_ROWS", range(1, 33))  # as on a CPU with matrix units
    torch.manual_seed(0)
    linear, states = EvoTokDepthLinear(24, 40).bfloat16(), torch.randn(shape).bfloat16()
    with torch.no_grad():
        product = linear(states)
        expected = F.linear(states.float(), linear.weight.float(), linear.bias.float())
    assert product.dtype == torch.bfloat16 and product.is_contiguous()
    torch.testing.assert_close(product.float(), expected, atol=2e-2, rtol=2e-2)


def test_linear_leaves_weights_of_other_types_to_their_own_product(monkeypatch):
    """Quantized tensors of TorchAO have the dtype of their products, and no product from the left."""
    monkeypatch.setattr(depth_linear_evotok, "_FEW_ROWS", range(1, 33))

    class Quantized(torch.Tensor):
        pass

    linear, states = EvoTokDepthLinear(24, 40).bfloat16(), torch.ones(2, 24).bfloat16()
    calls = []
    monkeypatch.setattr(torch, "mm", lambda *tensors: calls.append(1) or tensors[0] @ tensors[1])
    with torch.no_grad():
        expected = linear(states)
        linear.weight = torch.nn.Parameter(linear.weight.detach().as_subclass(Quantized))
        torch.testing.assert_close(linear(states).as_subclass(torch.Tensor), expected, atol=2e-2, rtol=2e-2)
    assert calls == [1]


def test_dropout_is_active_in_training_only(batch):
    hidden, _, _, embeddings = batch
    model = tiny_depth_decoder(hidden_dropout=0.5)
    assert torch.equal(model(hidden, embeddings).logits, model(hidden, embeddings).logits)
    model.train()
    assert not torch.equal(model(hidden, embeddings).logits, model(hidden, embeddings).logits)


def test_input_has_the_dtype_of_the_weight_unless_it_is_quantized():
    layer = torch.nn.Linear(16, 4).bfloat16()
    layer.bias.data = layer.bias.data.float()  # as vLLM does for some of its kernels
    assert input_dtype(layer) == torch.bfloat16
    for dtype in (torch.int8, torch.float8_e4m3fn):
        layer.weight = torch.nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
        assert input_dtype(layer) == torch.float32
    del layer.weight  # packed under another name
    assert input_dtype(layer) == torch.float32
