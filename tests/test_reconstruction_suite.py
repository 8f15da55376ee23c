"""`evotok eval reconstruction`: figures, of one process and of two, and bad options."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import build_tiny_model
from PIL import Image

from evotok.cli import main
from evotok.data.image_sets import open_images
from evotok.eval import suite
from evotok.eval.metrics import psnr, round_pixels, ssim
from evotok.eval.suites import reconstruction


IMAGES = 10


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Returns the folder with a tiny tokenizer of 32 px and images of another size, one of them damaged."""
    place = tmp_path_factory.mktemp("place")
    build_tiny_model().model.vq_model.save_pretrained(place / "tokenizer")
    (place / "images").mkdir()
    random = np.random.default_rng(0)
    for index in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((48, 36), Image.Resampling.BICUBIC).save(place / "images" / f"{index}.png")
    (place / "images" / "broken.png").write_bytes(b"no image")
    return place


def words(place, out, *options):
    options = (f"data={place / 'images'}", f"cache={place / 'cache'}", "batch_size=4", *options)
    return ["eval", "reconstruction", str(place / "tokenizer"), *options, "--out", str(out), "--json"]


@pytest.fixture(scope="module")
def results(place):
    """Results of one process."""
    assert main(words(place, place / "one")) == 0
    return json.loads((place / "one" / "results.json").read_text())


def test_figures_equal_those_of_the_images(place, results, tiny_model):
    tokenizer = tiny_model.model.vq_model
    pixels = open_images(str(place / "images")).pixels(range(IMAGES), 32)
    with torch.inference_mode():
        decoded = round_pixels(tokenizer.decode_pixels(tokenizer.encode(pixels), depth=1))
    pair = (decoded + 1) / 2, (pixels + 1) / 2
    figures = results["figures"]
    assert figures["psnr_depth1"] == pytest.approx(psnr(*pair).mean().item(), rel=1e-5)
    assert figures["ssim_depth1"] == pytest.approx(ssim(*pair).mean().item(), rel=1e-4)
    assert figures["ssim_range2_depth1"] == pytest.approx(ssim(*pair, data_range=2.0).mean().item(), rel=1e-4)
    assert figures["ssim_range2_depth1"] > figures["ssim_depth1"], "inflated"
    assert figures["fd_efficientnet_depth2"] > 0 and "rfid_depth2" not in figures and "lpips_depth2" not in figures
    assert (figures["images_n"], figures["unreadable_n"]) == (IMAGES, 1)


def test_report_has_tables_notes_and_images(place, results):
    [row] = results["tables"]["unreadable"]
    assert row["image"].endswith("broken.png") and "not an image" in row["reason"]
    assert all(0 < row["usage"] <= 1 <= row["perplexity"] <= 32 for row in results["tables"]["codebooks"])
    notes = " ".join(results["notes"])
    for missing in ("weights-inception-2015-12-05", "vgg16-397923af.pth", "not FID", "1 images could not be read"):
        assert missing in notes
    assert list(results["data"]) == [str(place / "images")]
    assert results["dtype"] == "float32" and results["files"].keys() == {"checkpoint_settings", "data"}
    assert Image.open(place / "one" / "reconstructions.png").width > 500 and (place / "one" / "depths.svg").is_file()


def test_two_processes_equal_one(place, results):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["evotok.cli", *words(place, place / "two", f"cache={place / 'another'}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    both = json.loads((place / "two" / "results.json").read_text())
    assert both["processes"] == 2 and both["data"] == results["data"]
    assert list(both["figures"]) == list(results["figures"])
    for name, value in results["figures"].items():
        # Per image the figures are equal; sums of features are added in another order.
        assert both["figures"][name] == pytest.approx(value, rel=1e-6 if name.startswith("fd") else 1e-12), name
    assert both["tables"]["codebooks"] == results["tables"]["codebooks"]


def test_other_depths_use_the_cached_statistics(place, results, capsys):
    before = [(path, path.stat().st_mtime_ns) for path in (place / "cache").iterdir()]
    beside = "paper={psnr_depth4: 30, rfid_depth4: 0.43}"  # only beside what is measured
    assert main(words(place, place / "deep", "depths=[4,1,4]", f"count={IMAGES + 1}", beside)) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert {name for name in figures if name.startswith("psnr")} == {"psnr_depth1", "psnr_depth4", "psnr_depth4_paper"}
    assert figures["psnr_depth4_paper"] == 30 and "rfid_depth4_paper" not in figures
    for name in ("psnr_depth1", "fd_efficientnet_depth1"):
        assert figures[name] == pytest.approx(results["figures"][name], rel=1e-9)
    assert len(before) == 1 and before == [(path, path.stat().st_mtime_ns) for path in (place / "cache").iterdir()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": [0]}, "must be 1 or more"),
        ({"limit": 1}, "at least 2"),
        ({"count": 50_000}, "11 images, not 50,000: some are missing, or not of it"),
        ({"paper": {"psnr_depth1": "high"}}, "paper: psnr_depth1 must be a number, not 'high'"),
        ({"inception_weights": "none.pth"}, "no such file: give weights-inception"),
        ({"lpips_weights": "none.pth"}, "no such file: give vgg16"),
    ],
)
def test_check_refuses_bad_options(place, options, message):
    with pytest.raises(ValueError, match=message):
        reconstruction.check(reconstruction.Options(**{"data": str(place / "images")} | options), [])


def test_run_refuses_other_depths_and_unreadable_images(place, tmp_path, capsys):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"x")
    mistakes = {"depths=[9]": "codes of this tokenizer have 4 levels"}
    mistakes |= {f"data={tmp_path}": "none of its 2 images can be read"}
    for word, message in mistakes.items():
        assert main(words(place, tmp_path / "out", word)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_missing_extras_are_named(monkeypatch):
    monkeypatch.setattr(suite, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'evotok\[eval\]'"):
        reconstruction.check(reconstruction.Options(), [])
