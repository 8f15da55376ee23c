"""The residual quantizer: residuals, Eq. 7, straight-through gradients, EMA, restarts."""

import pytest
import torch
import torch.distributed as dist

from evotok import EvoTokVQConfig
from evotok.modeling_evotok.codebook_update_evotok import _update, update_codebooks
from evotok.modeling_evotok.quantization_evotok import (
    EvoTokCodebook,
    EvoTokResidualVectorQuantizer,
    codebook_usage,
)


def quantizer_config(**fields) -> EvoTokVQConfig:
    defaults = {"codebook_size": 64, "codebook_dim": 8, "num_codebooks": 4, "num_pixel_codebooks": 2}
    return EvoTokVQConfig(**(defaults | fields))


def filled_quantizer(**fields) -> EvoTokResidualVectorQuantizer:
    torch.manual_seed(0)
    quantizer = EvoTokResidualVectorQuantizer(quantizer_config(**fields))
    for level, codebook in enumerate(quantizer.codebooks):
        codebook.weight.data.normal_(std=0.5**level)
    return quantizer


def codebook_of_two(**fields) -> EvoTokCodebook:
    codebook = EvoTokCodebook(quantizer_config(codebook_size=2, codebook_restart_threshold=0, **fields))
    codebook.weight.data = torch.tensor([[0.0] * 8, [10.0] * 8])
    return codebook


def test_levels_quantize_the_residual():
    quantizer = filled_quantizer().eval()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    features = torch.randn(2, 9, 8)
    output = quantizer(features)
    residual = features
    for level, codebook in enumerate(quantizer.codebooks):
        distances = torch.cdist(residual.double(), codebook.weight.double()[None])
        assert torch.equal(output.codes[..., level], distances.argmin(-1))
        residual = residual - codebook.weight[output.codes[..., level]]
    torch.testing.assert_close(output.semantic_features, quantizer.decode_codes(output.codes))
    torch.testing.assert_close(output.pixel_features, quantizer.decode_codes(output.codes[..., :2]))
    torch.testing.assert_close(quantizer.embed(output.codes).sum(-2), output.semantic_features)
    stacked = quantizer.stack_codebooks(3, features.device)
    assert torch.equal(stacked, torch.stack([codebook.weight for codebook in quantizer.codebooks[:3]]))
    assert stacked.is_contiguous()
    assert torch.equal(quantizer.encode(features), output.codes)
    assert torch.equal(quantizer.encode(features, depth=2), output.codes[..., :2])
    for depth in (0, 5):
        with pytest.raises(ValueError, match=f"depth={depth} must be between 1 and the 4 levels"):
            quantizer.encode(features, depth)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(features).codes, output.codes)
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(before[name], tensor), f"evaluation changed {name}"


def test_loss_equals_eq_7_for_both_reductions():
    features = torch.randn(2, 9, 8)
    mean, total = (filled_quantizer(vq_loss_reduction=r).eval()(features) for r in ("mean", "sum"))
    errors, approximation = [], 0
    for level in range(4):
        approximation = approximation + filled_quantizer().codebooks[level].weight[mean.codes[..., level]]
        errors.append((features - approximation).square().mean())
    torch.testing.assert_close(mean.loss, torch.stack(errors).mean())
    torch.testing.assert_close(total.loss, mean.loss * 4 * 8)


def test_gradients_of_both_sums_reach_the_features_unchanged():
    features = torch.randn(1, 4, 8, requires_grad=True)
    output = filled_quantizer().eval()(features)
    (output.pixel_features.sum() + 2 * output.semantic_features.sum()).backward()
    torch.testing.assert_close(features.grad, torch.full_like(features, 3.0))


def test_update_moves_entries_to_the_means_of_their_vectors():
    codebook = codebook_of_two(codebook_warmup_steps=0, codebook_decay=0.9)
    vectors = torch.cat([torch.full((30, 8), 1.0), torch.full((10, 8), 9.0)])
    for _ in range(100):
        update_codebooks([codebook], vectors[None], codebook(vectors)[None])
    torch.testing.assert_close(codebook.weight.data, torch.tensor([[1.0] * 8, [9.0] * 8]), atol=1e-2, rtol=0)
    torch.testing.assert_close(codebook.cluster_size, torch.tensor([30.0, 10.0]), atol=1e-1, rtol=0)


def one_level_after(codebook: EvoTokCodebook, vectors, codes) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns entries and sizes (K, C), (K,) after a step without restarts, by loops over entries."""
    sizes = torch.stack([0.99 * size + (1 - 0.99) * (codes == k).sum() for k, size in enumerate(codebook.cluster_size)])
    smoothed = (sizes + codebook.epsilon) / (sizes.sum() + len(sizes) * codebook.epsilon) * sizes.sum()
    weight = codebook.weight.clone()
    for k in (sizes > 0).nonzero().flatten():
        old_sum = codebook.cluster_size[k] * weight[k]
        weight[k] = (0.99 * old_sum + (1 - 0.99) * vectors[codes == k].sum(0)) / smoothed[k]
    return weight, sizes


@pytest.mark.parametrize("update", [update_codebooks, _update], ids=["one by one", "together"])
def test_update_of_all_levels_is_that_of_each(update):
    quantizer = filled_quantizer(codebook_warmup_steps=0, codebook_restart_threshold=0)
    vectors, codes = torch.randn(4, 40, 8), torch.randint(64, (4, 40))
    for codebook in quantizer.codebooks:
        codebook.cluster_size.copy_(torch.rand(64) + 0.5)
    expected = [one_level_after(*level) for level in zip(quantizer.codebooks, vectors, codes, strict=True)]
    update(list(quantizer.codebooks), vectors, codes)
    for codebook, (weight, sizes) in zip(quantizer.codebooks, expected, strict=True):
        torch.testing.assert_close(codebook.weight.data, weight)
        torch.testing.assert_close(codebook.cluster_size, sizes)
        assert codebook.step == 1


def test_update_sends_one_message(monkeypatch):
    """The other process has had the same batch, and has sampled nothing."""
    messages = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)

    def all_reduce(message):
        messages.append(tuple(message.shape))
        message[..., :9] *= 2

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    quantizer, vectors = filled_quantizer(codebook_restart_threshold=1.0), torch.randn(4, 40, 8)
    update_codebooks(quantizer.codebooks, vectors, torch.full((4, 40), 2))
    assert messages == [(4, 64, 9 + 8)]
    for codebook, own in zip(quantizer.codebooks, vectors, strict=True):
        assert codebook.cluster_size[2] == 1  # 1 % of 80 is below the threshold
        sampled = (codebook.weight.data[:, None] == own).all(-1).any(1)
        assert sampled[1::2].all() and not sampled[0::2].any()


def test_update_continues_the_sums_of_a_converted_codebook():
    """Its entries are not exactly its sums divided by its sizes."""
    torch.manual_seed(0)
    codebook = EvoTokCodebook(quantizer_config(codebook_warmup_steps=0, codebook_keeps_sums=True))
    codebook.weight.data.normal_()
    codebook.cluster_size.copy_(torch.rand(64) * 3 + 2)
    codebook.vector_sum.normal_()
    sums, sizes = codebook.vector_sum.clone(), codebook.cluster_size.clone()
    sizes[5] = codebook.cluster_size[5] = 0.5  # is restarted
    vectors, codes = torch.randn(40, 8), torch.randint(6, 64, (40,))
    update_codebooks([codebook], vectors[None], codes[None])
    for code in range(6, 64):
        sums[code] = 0.99 * sums[code] + 0.01 * vectors[codes == code].sum(0)
        sizes[code] = 0.99 * sizes[code] + 0.01 * (codes == code).sum()
    torch.testing.assert_close(codebook.vector_sum[6:], sums[6:])
    torch.testing.assert_close(codebook.cluster_size[6:], sizes[6:])
    torch.testing.assert_close(codebook.weight[6:], sums[6:] / sizes[6:, None], rtol=1e-3, atol=1e-3)
    assert (vectors == codebook.weight[5]).all(1).any()
    torch.testing.assert_close(codebook.vector_sum[5], codebook.weight[5] * codebook.cluster_size[5])


def test_update_keeps_entries_during_the_warmup():
    codebook, vectors = codebook_of_two(codebook_warmup_steps=3), torch.ones(20, 8)
    before = codebook.weight.clone()
    for _ in range(3):
        update_codebooks([codebook], vectors[None], codebook(vectors)[None])
        assert torch.equal(codebook.weight, before)
    update_codebooks([codebook], vectors[None], codebook(vectors)[None])
    assert not torch.equal(codebook.weight[0], before[0])
    assert torch.equal(codebook.weight[1], before[1]), "an entry that was never chosen has no mean"


def test_update_restarts_unused_entries_from_the_batch():
    codebook = EvoTokCodebook(quantizer_config(codebook_restart_threshold=1.0))
    codebook.weight.data.fill_(1e6)
    codebook.weight.data[0] = 0
    vectors = torch.randn(640, 8)
    update_codebooks([codebook], vectors[None], codebook(vectors)[None])
    assert (torch.cdist(codebook.weight[1:].double(), vectors.double()).amin(1) < 1e-6).all()
    assert codebook_usage(torch.bincount(codebook(vectors), minlength=64)[None])["usage"].item() > 0.9


def test_codebook_usage_equals_known_counts():
    metrics = codebook_usage(torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0]]))
    torch.testing.assert_close(metrics["usage"], torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(metrics["perplexity"], torch.tensor([4.0, 1.0]))


@pytest.mark.parametrize("codes", [torch.zeros(1, 4, 5, dtype=torch.long), torch.zeros(1, 4, 2)])
def test_decode_codes_refuses_other_shapes_and_dtypes(codes):
    with pytest.raises(ValueError, match="1 to 4 levels"):
        filled_quantizer().decode_codes(codes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_features_have_no_code_and_no_update(value):
    fields = {"codebook_warmup_steps": 0, "codebook_restart_threshold": 0.001}
    features = torch.randn(2, 9, 8)
    spoilt = features.clone()
    spoilt[1, 4, 2] = value
    quantizer, without = filled_quantizer(**fields).eval(), filled_quantizer(**fields).train()
    for run in (quantizer.encode, quantizer):
        with pytest.raises(ValueError, match="features are NaN or infinite"):
            run(spoilt)
    is_finite = torch.arange(18) != 13
    torch.manual_seed(1)
    without(features.flatten(0, 1)[is_finite][None])
    torch.manual_seed(1)
    output = quantizer.train()(spoilt)
    assert (output.codes[1, 4] == -1).all() and (output.codes.flatten(0, 1)[is_finite] >= 0).all()
    assert not output.loss.isfinite()
    for codebook, other in zip(quantizer.codebooks, without.codebooks, strict=True):
        assert codebook.weight.isfinite().all() and codebook.cluster_size.isfinite().all()
        used = other.cluster_size > 0.001  # the others were restarted from other random vectors
        torch.testing.assert_close(codebook.weight[used], other.weight[used])
        torch.testing.assert_close(codebook.cluster_size[used], other.cluster_size[used])
    codebook = filled_quantizer(codebook_warmup_steps=0, codebook_restart_threshold=1.0).codebooks[0]
    before = codebook.weight.clone()
    update_codebooks([codebook], torch.full((1, 32, 8), value), torch.zeros(1, 32, dtype=torch.long))
    assert torch.equal(codebook.weight, before) and (codebook.cluster_size == 0).all()
