"""Teachers and perceptual distances of `eval/teachers.py`."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import save_vision_tower
from torch import nn

from evotok.data.world.icons import load_world
from evotok.data.world.images import WorldImages
from evotok.eval.teachers import EfficientNetTeacher, SiglipTeacher, build_lpips


def test_siglip_teacher_loads_no_head(tmp_path):
    save_vision_tower(tmp_path)
    assert not any("head" in name for name, _ in SiglipTeacher.from_pretrained(str(tmp_path)).named_parameters())


def test_efficientnet_teacher_is_frozen_and_standardized():
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


def vgg16(weights=None):
    """Returns the layers of VGG16 with random weights, as torchvision builds them."""
    layers, width = [], 3
    for wide in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU()] if wide else [nn.MaxPool2d(2)]
        width = wide or width
    return SimpleNamespace(features=nn.Sequential(*layers))


def test_lpips_uses_downloaded_weights_only(tmp_path, monkeypatch):
    """A module with VGG16 replaces torchvision; LPIPS's own weights come with torchmetrics."""
    pytest.importorskip("torchmetrics")
    import torchmetrics.functional.image.lpips as functional
    import torchmetrics.image.lpip as modular

    torchvision = ModuleType("torchvision")
    torchvision.models = SimpleNamespace(vgg16=vgg16, VGG16_Weights=SimpleNamespace(DEFAULT="IMAGENET1K_V1"))
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    for module in (functional, modular):
        monkeypatch.setattr(module, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"vgg16-397923af.pth: python -c .* fetches them, or set loss") as missing:
        build_lpips()
    assert str(tmp_path) in str(missing.value) and "\n" not in str(missing.value)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth").touch()
    lpips = build_lpips()
    real = torch.rand(2, 3, 32, 32) * 2 - 1
    fake = (real + 0.5).requires_grad_()  # above 1, as in reconstructions
    distance = lpips(fake, real)
    assert len(distance) == 2 and (distance > 0).all() and lpips(real, real).abs().max() < 1e-6
    distance.mean().backward()
    assert fake.grad.abs().max() > 0 and not any(p.requires_grad for p in lpips.parameters())


def test_lpips_without_torchvision_names_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match=r"LPIPS .*pip install 'evotok\[eval\]' torchvision") as missing:
        build_lpips()
    assert "\n" not in str(missing.value)
