"""`evotok eval trajectory`: every depth measured, and drawn."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipVisionConfig, SiglipVisionModel

from evotok import EvoTokVQConfig, EvoTokVQModel
from evotok.cli import main
from evotok.eval.clusters import cluster
from evotok.eval.suites import trajectory
from evotok.training import taught_images


pytest.importorskip("sklearn")

ENCODER = {
    "model_type": "siglip_vision_model",
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vision_use_head": False,
}
PICTURES = ("trajectory.svg", "trajectory.png", "tsne.svg", "tsne.png", "clusters.png", "reconstructions.png")


@pytest.fixture
def tokenizer(tmp_path):
    """Function: width of its semantics -> folder of a tokenizer of five levels, fresh but for codebooks that differ."""

    def save(feature_dim: int) -> str:
        torch.manual_seed(0)
        config = EvoTokVQConfig(
            encoder_config=ENCODER,
            codebook_size=16,
            codebook_dim=8,
            num_codebooks=5,
            num_pixel_codebooks=2,
            pixel_latent_channels=8,
            pixel_base_channels=8,
            pixel_channel_multipliers=[1, 1, 1, 1],
            pixel_num_res_blocks=0,
            pixel_norm_groups=2,
            semantic_hidden_size=16,
            semantic_num_hidden_layers=1,
            semantic_num_attention_heads=2,
            semantic_feature_dim=feature_dim,
        )
        model = EvoTokVQModel(config)
        for codebook in model.quantizer.codebooks:
            torch.nn.init.normal_(codebook.weight, std=0.1)
        folder = tmp_path / "tokenizer"
        model.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def quick_teacher(monkeypatch):
    """Calibrated on few images."""
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setattr(taught_images, "CALIBRATION_IMAGES", 16)
    taught_images.calibrated_teacher.cache_clear()
    yield
    taught_images.calibrated_teacher.cache_clear()


def test_drawings_never_seen_are_measured_at_every_depth(tokenizer, quick_teacher, tmp_path, capsys):
    words = [tokenizer(432), "images=40", "tokens=40", "clusters=3"]
    capsys.readouterr()  # DeepSpeed, where it is, speaks when the first model is saved
    assert main(["eval", "trajectory", *words, "--out", str(tmp_path / "out"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    rows = results["tables"]["by_depth"]
    assert [row["depth"] for row in rows] == [1, 2, 3, 4, 5]
    for row in rows:
        assert -1 <= row["similarity_pixels"] <= 1 and -1 <= row["similarity_semantics"] <= 1 and row["fd"] > 0
    assert results["figures"]["psnr_depth2"] == rows[1]["psnr"]
    clusters = results["tables"]["clusters"]
    assert [row["depth"] for row in clusters] == [1, 4] and {"group", "color"} < clusters[0].keys()
    for name in PICTURES:
        assert (tmp_path / "out" / name).stat().st_size > 3000, name
    with (tmp_path / "out/tsne.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 40 * 5
    assert (tmp_path / "out/by_depth.csv").is_file()
    readme = (tmp_path / "out/README.md").read_text()
    assert all(f"]({name})" in readme for name in results["pictures"])


def test_a_folder_of_images_with_a_teacher_of_its_own(tokenizer, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(8):
        array = rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"images/{index}.png")
    SiglipVisionModel(SiglipVisionConfig(**ENCODER | {"num_hidden_layers": 2})).save_pretrained(tmp_path / "siglip")
    words = [tokenizer(32), f"data={tmp_path / 'images'}", f"teacher={tmp_path / 'siglip'}", "tokens=40", "clusters=2"]
    capsys.readouterr()
    assert main(["eval", "trajectory", *words, "--out", str(tmp_path / "out"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results["tables"]["by_depth"]) == 5 and "clusters" not in results["tables"]
    assert set(results["data"]) == {"images"}


def test_an_image_that_cannot_be_read_is_named_before_anything_long(tokenizer, tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    for index in range(9):
        Image.new("RGB", (70, 80), (index, 0, 0)).save(tmp_path / f"images/{index}.png")
    path = tmp_path / "images/5.png"
    path.write_bytes(path.read_bytes()[:80])
    monkeypatch.setattr(trajectory, "run", None)
    assert main(["eval", "trajectory", tokenizer(32), f"data={path.parent}", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"1 of 9 images cannot be read, the first is {path}: " in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher=nowhere"], "teacher: nowhere: no such folder"),
        (["data=nowhere"], "no images below this folder"),
        (["clusters=1"], "clusters=1 must be at least 2"),
    ],
)
def test_mistakes_are_named(tokenizer, words, message, tmp_path, capsys):
    assert main(["eval", "trajectory", tokenizer(32), *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_the_tokenizer_does_not_know_is_refused(tokenizer, quick_teacher, tmp_path, capsys):
    assert main(["eval", "trajectory", tokenizer(32), "--out", str(tmp_path / "out")]) == 2
    assert "give the teacher that it learnt from" in capsys.readouterr().err


def test_clusters_come_largest_first_and_nearest_first():
    generator = torch.Generator().manual_seed(0)
    labels = ["few"] * 10 + ["many"] * 30
    offsets = torch.tensor([[8.0] if label == "few" else [0.0] for label in labels])
    vectors = torch.randn(40, 4, generator=generator) + offsets
    found = cluster(vectors, 2, seed=0)
    many, few = found.largest(5)
    assert set(many) == set(range(10, 40)) and set(few) == set(range(10))
    distances = [(vectors[index] - vectors[10:].mean(0)).norm().item() for index in many]
    assert distances == sorted(distances)
    assert found.agreement(labels) == pytest.approx(1)
    assert found.agreement(["a", "b"] * 20) < 0.2
