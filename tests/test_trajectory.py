"""`evotok eval trajectory`: every depth measured, and drawn."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mini_materials import LEVELS, PIXEL_LEVELS, save_mini, save_tower
from PIL import Image

from evotok.cli import main
from evotok.eval.clusters import cluster
from evotok.eval.suites import trajectory


pytest.importorskip("sklearn")

PICTURES = ("trajectory.svg", "trajectory.png", "tsne.svg", "tsne.png", "clusters.png", "reconstructions.png")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, world):
    """A tiny model of the world's size, the tower beside it."""
    return save_mini(tmp_path_factory.mktemp("runs"), world)


def test_scenes_in_held_out_styles_are_measured_at_every_depth(checkpoint, tmp_path, capsys):
    words = [checkpoint, "images=40", "probe_scenes=40", "tokens=40", "clusters=3"]
    capsys.readouterr()  # DeepSpeed, where it is, speaks when the first model is saved
    assert main(["eval", "trajectory", *words, "--out", str(tmp_path / "out"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    rows = results["tables"]["by_depth"]
    assert [row["depth"] for row in rows] == list(range(1, LEVELS + 1))
    for row in rows:
        assert -1 <= row["similarity_pixels"] <= 1 and -1 <= row["similarity_semantics"] <= 1
        assert row["fd"] > 0 and 0 <= row["probe"] <= 1
    assert results["figures"][f"psnr_depth{PIXEL_LEVELS}"] == rows[PIXEL_LEVELS - 1]["psnr"]
    clusters = results["tables"]["clusters"]
    assert [row["depth"] for row in clusters] == [1, 4]
    assert clusters[0].keys() == {"depth", "thing", "color", "background"}
    for name in PICTURES:
        assert (tmp_path / "out" / name).stat().st_size > 3000, name
    with (tmp_path / "out/tsne.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 40 * LEVELS
    assert "things read by a linear probe" in (tmp_path / "out/trajectory.svg").read_text()
    readme = (tmp_path / "out/README.md").read_text()
    assert all(f"]({name})" in readme for name in results["pictures"])
    assert set(results["files"]) == {"checkpoint_settings", "teacher"}


def test_a_folder_of_images_with_a_teacher_named(checkpoint, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(8):
        array = rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"images/{index}.png")
    teacher = Path(checkpoint).parent / "vision"
    words = [checkpoint, f"data={tmp_path / 'images'}", f"teacher={teacher}", "tokens=40", "clusters=2"]
    capsys.readouterr()
    assert main(["eval", "trajectory", *words, "--out", str(tmp_path / "out"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    rows = results["tables"]["by_depth"]
    assert len(rows) == LEVELS and "probe" not in rows[0] and "clusters" not in results["tables"]
    assert set(results["data"]) == {"images"}


def test_an_image_that_cannot_be_read_is_named_before_anything_long(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    for index in range(9):
        Image.new("RGB", (70, 80), (index, 0, 0)).save(tmp_path / f"images/{index}.png")
    path = tmp_path / "images/5.png"
    path.write_bytes(path.read_bytes()[:80])
    monkeypatch.setattr(trajectory, "run", None)
    assert main(["eval", "trajectory", checkpoint, f"data={path.parent}", "--out", str(tmp_path / "out")]) == 2
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
def test_mistakes_are_named(checkpoint, words, message, tmp_path, capsys):
    assert main(["eval", "trajectory", checkpoint, *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_the_tokenizer_was_not_trained_with_is_refused(checkpoint, tmp_path, capsys):
    save_tower(tmp_path / "wider", 32)
    words = [f"teacher={tmp_path / 'wider'}", "images=40", "--out", str(tmp_path / "out")]
    assert main(["eval", "trajectory", checkpoint, *words]) == 2
    assert "(64, 32) for an image, the tokenizer decodes (64, 16): give the vision tower" in capsys.readouterr().err


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
