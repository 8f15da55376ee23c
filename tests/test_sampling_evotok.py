"""The sampler of codes: guidance, warping, one code for both rows."""

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from evotok.modeling_evotok.sampling_evotok import EvoTokCodeSampler


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_warps_as_transformers_does():
    scores = torch.randn(6, 50, generator=seeded()) * 3
    for top_k, top_p, temperature in ((10, 0.9, 1.0), (900, 0.5, 0.7), (0, 0.3, 1.0), (5, 1.0, 2.0), (None, None, 1)):
        expected = scores / temperature
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p:
            expected = TopPLogitsWarper(top_p)(None, expected)
        warped = EvoTokCodeSampler(top_k=top_k, top_p=top_p, temperature=temperature).warp(scores)
        torch.testing.assert_close(warped, expected)
    ties = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert EvoTokCodeSampler(top_k=2, top_p=1.0).warp(ties).isfinite().tolist() == [[False, True, True, True, False]]


def test_draws_as_torch_does():
    logits = 3 * torch.randn(64, 50, generator=seeded())
    sampler = EvoTokCodeSampler(guidance_scale=1, top_k=10, top_p=0.9, generator=seeded(1))
    probabilities = sampler.warp(logits).softmax(-1)
    codes = sampler(logits)
    assert torch.equal(codes, torch.multinomial(probabilities, 1, generator=seeded(1)).squeeze(-1))
    assert len(codes.unique()) > 10 and not torch.equal(sampler(logits), codes)


def test_draws_one_code_for_both_rows():
    logits = torch.randn(8, 50, generator=seeded())
    codes = EvoTokCodeSampler(guidance_scale=2.0, generator=seeded())(logits)
    assert codes.shape == (8,) and torch.equal(codes[:4], codes[4:])
    greedy = EvoTokCodeSampler(guidance_scale=2.0, temperature=0)(logits)
    assert torch.equal(greedy[:4], (logits[4:] + 2 * (logits[:4] - logits[4:])).argmax(-1))


def test_a_generator_for_each_image_makes_rows_independent_of_the_batch():
    logits = 3 * torch.randn(4, 50, generator=seeded())
    alone = [EvoTokCodeSampler(guidance_scale=1, generator=seeded(seed))(logits[seed, None]) for seed in range(4)]
    together = EvoTokCodeSampler(guidance_scale=1, generator=[seeded(seed) for seed in range(4)])(logits)
    assert torch.equal(together, torch.cat(alone)) and len(together.unique()) > 1
    with pytest.raises(ValueError, match="2 generators for 4 images"):
        EvoTokCodeSampler(guidance_scale=1, generator=[seeded(), seeded()])(logits)
