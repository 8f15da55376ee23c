"""Measurements of tokenizers on held-out scenes: a lossless and a useless tokenizer."""

import pytest
import torch
from conftest import save_vision_tower

from evotok.eval.probes import linear_probe
from evotok.training.ablations.probes import Probes


class FakeTokenizer(torch.nn.Module):
    """Tokenizer whose codes are the pixels themselves, or whose outputs do not depend on them."""

    def __init__(self, probes, useless=False):
        super().__init__()
        self.probes, self.useless = probes, useless
        self.weight = torch.nn.Parameter(torch.zeros(5))
        self.device = torch.device("cpu")
        self.config = type("Config", (), {"codebook_size": 256})

    def encode(self, pixels):
        return ((pixels + 1) * 127.5).round().long().flatten(1)[:, :, None].expand(-1, -1, 2)

    def decode_pixels(self, codes):
        pixels = codes[..., 0].unflatten(1, (3, 64, 64)) / 127.5 - 1
        return torch.zeros_like(pixels) if self.useless else pixels

    def decode_semantics(self, codes):
        features = self.probes.teacher(codes[..., 0].unflatten(1, (3, 64, 64)) / 127.5 - 1)
        return torch.randn_like(features) if self.useless else features


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    pytest.importorskip("torchmetrics")
    folder = tmp_path_factory.mktemp("tower")
    save_vision_tower(folder)
    return Probes(str(folder), None, images=24)


def test_probes_use_twice_as_many_training_scenes(probes):
    assert probes.pixels["test"].shape == (24, 3, 64, 64) and probes.labels["train"]["things"].shape == (48, 64)


def test_lossless_tokenizer_equals_its_teacher(probes):
    found = probes.measure(FakeTokenizer(probes), pixel_levels=1)
    assert found["psnr"] > 50 and found["ssim"] > 0.99 and found["fd"] < 1e-2 and found["cosine"] > 0.999
    for name in ("thing", "color"):
        assert found[name] == pytest.approx(probes.references[f"{name} teacher"], abs=0.03)
    assert found["parameters"] == 5 and 0 < found["pixel_bits"] <= 8


def test_useless_tokenizer_is_at_chance(probes):
    torch.manual_seed(0)
    found = probes.measure(FakeTokenizer(probes, useless=True), pixel_levels=2)
    assert found["psnr"] < 12 and found["fd"] > 1e-2 and abs(found["cosine"]) < 0.1
    assert found["color"] < probes.references["color baseline"] + 0.1 and found["thing"] < 0.2


def test_linear_probe_separates_clusters():
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 16, generator=generator) * 3
    labels = torch.arange(80) % 4
    near = centers[labels] + torch.randn(80, 16, generator=generator)
    far = torch.randn(80, 16, generator=generator)
    assert linear_probe(near[:40], labels[:40], near[40:], labels[40:]) > 0.95
    assert linear_probe(far[:40], labels[:40], far[40:], labels[40:]) < 0.6
