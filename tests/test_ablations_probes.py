"""Probes of tokenizers on held-out scenes: what a perfect and a useless one get."""

import pytest
import torch
from conftest import save_vision_tower

from evotok.training.ablations import probes as tokenizer_probes
from evotok.training.ablations.probes import Probes


class Faithful(torch.nn.Module):
    """Stands in for a tokenizer whose codes lose nothing: they are the images themselves, or nothing at all."""

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
    folder = tmp_path_factory.mktemp("tower")
    save_vision_tower(folder)
    return Probes(str(folder), None, images=24)


def test_a_faithful_tokenizer_has_the_figures_of_its_teacher(probes):
    pytest.importorskip("torchmetrics")
    found = probes.measure(Faithful(probes), pixel_levels=1)
    assert found["psnr"] > 50 and found["ssim"] > 0.99 and found["fd"] < 1e-2 and found["cosine"] > 0.999
    for name in ("thing", "color"):
        assert found[name] == pytest.approx(probes.references[f"{name} teacher"], abs=0.03)
    assert found["color"] > probes.references["color baseline"], "colours are there before anything is learnt"
    assert found["parameters"] == 5 and 0 < found["pixel_bits"] <= 8


def test_a_useless_one_is_at_chance(probes):
    pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    found = probes.measure(Faithful(probes, useless=True), pixel_levels=2)
    assert found["psnr"] < 12 and found["fd"] > 1e-2 and abs(found["cosine"]) < 0.1
    assert found["color"] < probes.references["color baseline"] + 0.1 and found["thing"] < 0.2


def test_scenes_are_of_styles_that_nothing_was_trained_on(monkeypatch, tmp_path):
    save_vision_tower(tmp_path)
    asked = []
    scenes = tokenizer_probes.held_out_scenes
    monkeypatch.setattr(
        tokenizer_probes,
        "held_out_scenes",
        lambda world, split, count: asked.append((split, count)) or scenes(world, split, count),
    )
    probes = Probes(str(tmp_path), None, images=4)
    assert asked == [("train", 8), ("test", 4)]
    assert probes.pixels["held_out"].shape == (4, 3, 64, 64) and probes.labels["taught"]["things"].shape == (8, 64)
