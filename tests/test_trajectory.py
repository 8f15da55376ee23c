"""`evotok eval trajectory`: figures of every depth, plots, clusters."""

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
from evotok.eval.suites.trajectory import Options, check


pytest.importorskip("sklearn")

IMAGES = ("trajectory.svg", "trajectory.png", "tsne.svg", "tsne.png", "clusters.png", "reconstructions.png")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, world):
    return save_mini(tmp_path_factory.mktemp("runs"), world)


def evaluated(checkpoint, out, *words):
    assert main(["eval", "trajectory", checkpoint, *words, "tokens=40", "--out", str(out)]) == 0
    return json.loads((out / "results.json").read_text())


def save_images(folder, count):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return str(folder)


def test_held_out_scenes_are_measured_at_every_depth(checkpoint, tmp_path):
    results = evaluated(checkpoint, tmp_path, "images=40", "probe_scenes=40", "clusters=3")
    rows = results["tables"]["by_depth"]
    assert [row["depth"] for row in rows] == list(range(1, LEVELS + 1))
    for row in rows:
        assert -1 <= row["similarity_pixels"] <= 1 and -1 <= row["similarity_semantics"] <= 1
        assert row["fd"] > 0 and 0 <= row["probe"] <= 1
    assert results["figures"][f"psnr_depth{PIXEL_LEVELS}"] == rows[PIXEL_LEVELS - 1]["psnr"]
    clusters = results["tables"]["clusters"]
    assert [row["depth"] for row in clusters] == [1, 4]
    assert clusters[0].keys() == {"depth", "thing", "color", "background"}
    for name in IMAGES:
        assert (tmp_path / name).stat().st_size > 3000, name
    with (tmp_path / "tsne.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 40 * LEVELS
    assert "things read by a linear probe" in (tmp_path / "trajectory.svg").read_text()
    assert all(f"]({name})" in (tmp_path / "README.md").read_text() for name in results["pictures"])
    assert set(results["files"]) == {"checkpoint_settings", "teacher"}


def test_image_folder_is_measured_without_a_probe(checkpoint, tmp_path):
    teacher = Path(checkpoint).parent / "vision"
    folder = save_images(tmp_path / "images", 8)
    results = evaluated(checkpoint, tmp_path / "out", f"data={folder}", f"teacher={teacher}", "clusters=2")
    rows = results["tables"]["by_depth"]
    assert len(rows) == LEVELS and "probe" not in rows[0] and "clusters" not in results["tables"]
    assert set(results["data"]) == {"images"}


def test_check_names_a_damaged_image(checkpoint, tmp_path):
    path = Path(save_images(tmp_path / "images", 9)) / "5.png"
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(ValueError, match=f"1 of 9 images cannot be read, the first is {path}: ") as error:
        check(Options(data=str(path.parent)), [checkpoint])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "nowhere"}, "teacher: nowhere: no such folder"),
        ({"data": "nowhere"}, "no images below this folder"),
        ({"clusters": 1}, "clusters=1 must be at least 2"),
    ],
)
def test_check_refuses_bad_options(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        check(Options(**options), [checkpoint])


def test_teacher_of_other_width_is_refused(checkpoint, tmp_path, capsys):
    save_tower(tmp_path / "wider", 32)
    words = [f"teacher={tmp_path / 'wider'}", "images=40", "--out", str(tmp_path / "out")]
    assert main(["eval", "trajectory", checkpoint, *words]) == 2
    assert "(64, 32) for an image, the tokenizer decodes (64, 16): give the vision tower" in capsys.readouterr().err


def test_clusters_are_ordered_by_size_and_distance():
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
