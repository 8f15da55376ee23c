"""Losses, discriminator, teacher and data of the tokenizer stage."""

import pytest
import torch

from evotok.data.world.icons import load_world
from evotok.data.world.images import WorldImages
from evotok.eval.teachers import EfficientNetTeacher
from evotok.training.tokenizer.discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from evotok.training.tokenizer.losses import semantic_loss, weighted_sum


def test_semantic_loss_is_one_minus_the_cosine_whatever_the_length():
    features = torch.randn(2, 5, 8)
    assert semantic_loss(3 * features, features).item() == pytest.approx(0, abs=1e-6)
    assert semantic_loss(-features, features).item() == pytest.approx(2, abs=1e-6)
    half = torch.cat([features[..., :4], -features[..., 4:]], dim=-1)
    folded = semantic_loss(half, features, folds=2) - semantic_loss(half, features)
    assert folded.item() == pytest.approx(1, abs=1e-6)  # one slice equal (0), one opposite (2)


def test_weighted_sum_takes_weights_by_name():
    terms = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert weighted_sum(terms, {"b": 10.0, "a": 1.0}).item() == 32


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.5 + 0.5))
    assert generator_loss(fake).item() == pytest.approx(1.0)


def test_discriminator_tells_two_textures_apart():
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


def test_teacher_is_frozen_standardised_and_one_vector_a_position():
    pytest.importorskip("efficientnet_lite_pytorch")
    teacher = EfficientNetTeacher(grid_size=8).train()
    assert not teacher.model.training and not any(p.requires_grad for p in teacher.parameters())
    images = WorldImages(load_world(), 16)
    pixels = torch.stack([images[index]["pixel_values"] for index in range(16)])
    teacher.calibrate(pixels)
    features = teacher(pixels)
    assert features.shape == (16, 64, EfficientNetTeacher.FEATURE_DIM)
    assert features.mean((0, 1)).abs().max() < 1e-3
    same = pixels[:2]
    assert teacher.perceptual_distance(same, same).item() == pytest.approx(0, abs=1e-6)
    assert teacher.perceptual_distance(same, same.flip(0)).item() > 0.01
