"""Sets of images: where they come from, their limits, and unreadable images."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from evotok.data.image_sets import check_images, open_images
from evotok.data.processes import Workers
from evotok.processing.image_loading_evotok import EvoTokImageError


def picture(seed: int, size=(40, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Returns five images in subfolders of classes, as ImageNet has them."""
    for index in range(5):
        path = tmp_path / "val" / f"n0{index % 2}" / f"{index}.{'JPEG' if index else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(index).save(path)
    return tmp_path / "val"


def test_open_images_reads_folders_and_limits(folder):
    images = open_images(str(folder))
    assert images.names[0].endswith("n00/0.png") and len(images) == 5
    assert images.pixels([0, 3], 16).shape == (2, 3, 16, 16)
    few = images.limited(2)
    assert few.names == [images.names[0], images.names[2]]
    assert few.image(1, 16).tobytes() == images.image(2, 16).tobytes()
    assert len(images.limited(9)) == len(images.limited(None)) == 5


def test_open_images_reads_the_world():
    images = open_images("world:val")
    assert len(images) == 512 and images.image(0, 64).size == (64, 64)
    assert images.names[0].startswith("val 0: ") and " background" in images.names[0]
    with pytest.raises(ValueError, match="unknown split 'new'"):
        open_images("world:new")


def test_open_images_reads_saved_and_loose_data_sets(tmp_path):
    rows = {"label": [0, 1], "image": [picture(0), picture(1)]}
    data = Dataset.from_dict(rows, Features({"label": Value("int64"), "image": ImageFeature()}))
    data.save_to_disk(tmp_path / "one")
    DatasetDict({"validation": data}).save_to_disk(tmp_path / "split")
    data.to_parquet(tmp_path / "loose" / "validation.parquet")
    for name in ("one", "split", "loose"):
        images = open_images(str(tmp_path / name))
        assert len(images) == 2
        np.testing.assert_array_equal(np.asarray(images.image(1, 30)), np.asarray(picture(1))[:, 5:35])
    with pytest.raises(ValueError, match="'label' is no column of images: set column= to one of image"):
        open_images(str(tmp_path / "one"), column="label")
    with pytest.raises(ValueError, match="nor a data set with a split 'test'"):
        open_images(str(tmp_path / "split"), split="test")


def test_open_images_refuses_folders_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for data in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="neither a folder with images"):
            open_images(str(data))


def test_check_images_lists_unreadable_ones_and_hashes_the_others(folder):
    before = check_images(open_images(str(folder)), 16, Workers())
    (folder / "n00" / "broken.png").write_bytes(b"no image")
    picture(9, (1000, 3)).save(folder / "n01" / "strip.png")
    found = check_images(open_images(str(folder)), 16, Workers())
    assert [name.rpartition("/")[2] for name in found.unreadable] == ["broken.png", "strip.png"]
    assert "not an image" in next(iter(found.unreadable.values()))
    assert len(found.indices) == 5 and found.sha256 == before.sha256
    assert found.sha256 != check_images(open_images(str(folder)), 8, Workers()).sha256
    picture(77).save(folder / "n00" / "0.png")
    assert found.sha256 != check_images(open_images(str(folder)), 16, Workers()).sha256


def test_check_images_refuses_a_set_without_a_readable_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="none of its 1 images can be read"):
        check_images(open_images(str(tmp_path)), 16, Workers())


def test_data_set_reads_files_of_its_folder_only(tmp_path):
    picture(0).save(tmp_path / "outside.png")
    (tmp_path / "set").mkdir()
    names = ["a.png", "http://127.0.0.1:9/a.png", "../outside.png"]
    rows = [{"image": {"bytes": None, "path": name}} for name in names]
    rows.append({"image": {"bytes": (tmp_path / "outside.png").read_bytes(), "path": names[1]}})
    schema = Features({"image": ImageFeature()}).arrow_schema
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "set" / "validation.parquet")
    images = open_images(str(tmp_path / "set"))
    for index, message in enumerate(("no such file|cannot be read", "is an address", "is outside of")):
        with pytest.raises(EvoTokImageError, match=message):
            images.image(index, 32)
    assert images.image(3, 32).size == (32, 32)
