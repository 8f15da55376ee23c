"""Losses and discriminator of the tokenizer stage."""

import pytest
import torch

from evotok.training.tokenizer.losses import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    semantic_loss,
    weighted_sum,
)


def test_semantic_loss_is_one_minus_the_cosine():
    features = torch.randn(2, 5, 8)
    assert semantic_loss(3 * features, features).item() == pytest.approx(0, abs=1e-6)
    assert semantic_loss(-features, features).item() == pytest.approx(2, abs=1e-6)
    half = torch.cat([features[..., :4], -features[..., 4:]], dim=-1)
    folded = semantic_loss(half, features, folds=2) - semantic_loss(half, features)
    assert folded.item() == pytest.approx(1, abs=1e-6)  # one slice equal (0), one opposite (2)


def test_weighted_sum_matches_weights_by_name():
    terms = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert weighted_sum(terms, {"b": 10.0, "a": 1.0}).item() == 32


def test_adaptive_weight_makes_both_gradients_equally_long():
    layer = torch.randn(3, 4, requires_grad=True)
    pixel, adversarial = (3 * layer).square().sum(), (layer * torch.arange(4.0)).sum()
    factor = adaptive_weight(pixel, adversarial, layer)
    assert not factor.requires_grad
    (expected,) = torch.autograd.grad(pixel, layer, retain_graph=True)
    (found,) = torch.autograd.grad(factor * adversarial, layer)
    assert found.norm().item() == pytest.approx(expected.norm().item(), rel=1e-3)
    assert adaptive_weight(pixel, 0 * layer.sum(), layer, limit=50.0).item() == 50


def test_hinge_losses_equal_known_values():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.5 + 0.5))
    assert generator_loss(fake).item() == pytest.approx(1.0)


def test_discriminator_learns_to_separate_two_textures():
    torch.manual_seed(0)
    model = PatchDiscriminator(channels=8, num_layers=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    flat, noisy = torch.zeros(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
    for _ in range(20):
        loss = discriminator_loss(model(noisy), model(flat))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model(noisy).mean() > 0.5 and model(flat).mean() < -0.5
    assert model(flat).shape[1] == 1 and model(flat).shape[2] > 1
