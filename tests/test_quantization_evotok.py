"""The residual quantizer: exact search, moving averages, restarts, straight-through."""

import pytest
import torch

from evotok import EvoTokVQConfig
from evotok.modeling_evotok.quantization_evotok import (
    EvoTokCodebook,
    EvoTokResidualVectorQuantizer,
    codebook_usage,
    find_nearest_codes,
)


def quantizer_config(**fields):
    defaults = {"codebook_size": 64, "codebook_dim": 8, "num_codebooks": 4, "num_pixel_codebooks": 2}
    return EvoTokVQConfig(**(defaults | fields))


def filled_quantizer(**fields):
    torch.manual_seed(0)
    quantizer = EvoTokResidualVectorQuantizer(quantizer_config(**fields))
    for level, codebook in enumerate(quantizer.codebooks):
        codebook.weight.data.normal_(std=0.5**level)
    return quantizer


def test_each_level_quantises_what_was_left_over():
    quantizer = filled_quantizer().eval()
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
    assert torch.equal(quantizer.encode(features), output.codes)


def test_loss_is_equation_7_and_reductions_differ_by_scale():
    features = torch.randn(2, 9, 8)
    mean, total = (filled_quantizer(vq_loss_reduction=r).eval()(features) for r in ("mean", "sum"))
    errors, approximation = [], 0
    for level in range(4):
        approximation = approximation + filled_quantizer().codebooks[level].weight[mean.codes[..., level]]
        errors.append((features - approximation).square().mean())
    torch.testing.assert_close(mean.loss, torch.stack(errors).mean())
    torch.testing.assert_close(total.loss, mean.loss * 4 * 8)


def test_gradients_of_both_branches_reach_the_features_unchanged():
    features = torch.randn(1, 4, 8, requires_grad=True)
    output = filled_quantizer().eval()(features)
    (output.pixel_features.sum() + 2 * output.semantic_features.sum()).backward()
    torch.testing.assert_close(features.grad, torch.full_like(features, 3.0))


def test_codes_do_not_change_under_autocast():
    quantizer, features = filled_quantizer().eval(), torch.randn(4, 16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(features).codes, filled_quantizer().eval()(features).codes)


def test_moving_averages_follow_the_clusters():
    config = quantizer_config(codebook_size=2, codebook_warmup_steps=0, codebook_restart_threshold=0)
    codebook = EvoTokCodebook(config)
    codebook.weight.data = torch.tensor([[0.0] * 8, [10.0] * 8])
    vectors = torch.cat([torch.full((30, 8), 1.0), torch.full((10, 8), 9.0)])
    for _ in range(1000):
        codebook.update(vectors, find_nearest_codes(vectors, codebook.weight))
    torch.testing.assert_close(codebook.weight.data, torch.tensor([[1.0] * 8, [9.0] * 8]), atol=1e-2, rtol=0)
    torch.testing.assert_close(codebook.cluster_size, torch.tensor([30.0, 10.0]), atol=1e-1, rtol=0)


def test_moving_sums_of_their_own_are_gone_on_from():
    """A converted codebook, whose entries are not quite its sums by its sizes."""
    torch.manual_seed(0)
    codebook = EvoTokCodebook(quantizer_config(codebook_warmup_steps=0, codebook_keeps_sums=True))
    codebook.weight.data.normal_()
    codebook.cluster_size.copy_(torch.rand(64) * 3 + 2)
    codebook.vector_sum.normal_()
    sums, sizes = codebook.vector_sum.clone(), codebook.cluster_size.clone()
    sizes[5] = codebook.cluster_size[5] = 0.5  # is restarted
    vectors = torch.randn(40, 8)
    codes = torch.randint(6, 64, (40,))
    codebook.update(vectors, codes)
    for code in range(6, 64):
        sums[code] = 0.99 * sums[code] + 0.01 * vectors[codes == code].sum(0)
        sizes[code] = 0.99 * sizes[code] + 0.01 * (codes == code).sum()
    torch.testing.assert_close(codebook.vector_sum[6:], sums[6:])
    torch.testing.assert_close(codebook.cluster_size[6:], sizes[6:])
    torch.testing.assert_close(codebook.weight[6:], sums[6:] / sizes[6:, None], rtol=1e-3, atol=1e-3)
    assert (vectors == codebook.weight[5]).all(1).any()
    torch.testing.assert_close(codebook.vector_sum[5], codebook.weight[5] * codebook.cluster_size[5])


def test_nothing_moves_before_the_warmup_is_over():
    config = quantizer_config(codebook_size=2, codebook_warmup_steps=3, codebook_restart_threshold=0)
    codebook = EvoTokCodebook(config)
    codebook.weight.data = torch.tensor([[0.0] * 8, [10.0] * 8])
    before, vectors = codebook.weight.clone(), torch.ones(20, 8)
    for _ in range(3):
        codebook.update(vectors, find_nearest_codes(vectors, codebook.weight))
        assert torch.equal(codebook.weight, before)
    codebook.update(vectors, find_nearest_codes(vectors, codebook.weight))
    assert not torch.equal(codebook.weight[0], before[0])
    assert torch.equal(codebook.weight[1], before[1])  # nobody chose it: no mean to move to


def test_unused_codes_are_restarted_from_the_batch():
    codebook = EvoTokCodebook(quantizer_config(codebook_restart_threshold=1.0))
    codebook.weight.data.fill_(1e6)
    codebook.weight.data[0] = 0
    vectors = torch.randn(640, 8)
    codebook.update(vectors, find_nearest_codes(vectors, codebook.weight))
    distances = torch.cdist(codebook.weight[1:].double(), vectors.double())
    assert (distances.amin(1) < 1e-6).all()
    assert (
        codebook_usage(torch.bincount(find_nearest_codes(vectors, codebook.weight), minlength=64)[None])["usage"].item()
        > 0.9
    )


def test_evaluation_leaves_the_codebooks_alone():
    quantizer = filled_quantizer().eval()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer(torch.randn(2, 9, 8))
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())


def test_usage_and_perplexity_of_known_counts():
    counts = torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0]])
    metrics = codebook_usage(counts)
    torch.testing.assert_close(metrics["usage"], torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(metrics["perplexity"], torch.tensor([4.0, 1.0]))


@pytest.mark.parametrize("codes", [torch.zeros(1, 4, 5, dtype=torch.long), torch.zeros(1, 4, 2)])
def test_codes_of_the_wrong_kind_are_refused(codes):
    with pytest.raises(ValueError, match="1 to 4 levels"):
        filled_quantizer().decode_codes(codes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_code_and_is_not_learned(value):
    features = torch.randn(2, 9, 8)
    spoilt = features.clone()
    spoilt[1, 4, 2] = value
    quantizer = filled_quantizer(codebook_warmup_steps=0, codebook_restart_threshold=0.001).eval()
    with pytest.raises(ValueError, match="features are NaN or infinite"):
        quantizer.encode(spoilt)
    with pytest.raises(ValueError, match="features are NaN or infinite"):
        quantizer(spoilt)
    without = filled_quantizer(codebook_warmup_steps=0, codebook_restart_threshold=0.001).train()
    torch.manual_seed(1)
    rest = features.flatten(0, 1)[torch.arange(18) != 13]
    without(rest[None])
    torch.manual_seed(1)
    output = quantizer.train()(spoilt)
    assert (output.codes[1, 4] == -1).all() and (output.codes.flatten(0, 1)[torch.arange(18) != 13] >= 0).all()
    assert not output.loss.isfinite()
    for mine, other in zip(quantizer.codebooks, without.codebooks, strict=True):
        assert mine.weight.isfinite().all() and mine.cluster_size.isfinite().all()
        used = other.cluster_size > 0.001  # those that were not restarted, from other random vectors
        torch.testing.assert_close(mine.weight[used], other.weight[used])
        torch.testing.assert_close(mine.cluster_size[used], other.cluster_size[used])


def test_an_update_by_hand_passes_over_what_is_not_finite():
    codebook = filled_quantizer(codebook_warmup_steps=0, codebook_restart_threshold=1.0).codebooks[0]
    vectors = torch.full((32, 8), float("nan"))
    before = codebook.weight.clone()
    codebook.update(vectors, torch.zeros(32, dtype=torch.long))
    assert torch.equal(codebook.weight, before), "restarts would be drawn from nothing else"
    assert (codebook.cluster_size == 0).all()
