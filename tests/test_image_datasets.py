"""Images below folders: `data/image_datasets.py`."""

import pytest
from PIL import Image

from evotok.data.image_datasets import FolderImages, folder_pixels, to_pixels


def test_folder_images_are_cropped_to_squares(tmp_path):
    Image.new("RGB", (100, 40), (255, 0, 0)).save(tmp_path / "wide.png")
    (tmp_path / "deep").mkdir()
    Image.new("L", (20, 50), 255).save(tmp_path / "deep" / "small.png")
    data = FolderImages(tmp_path, size=32)
    assert [row["pixel_values"].shape for row in data] == [(3, 32, 32)] * 2
    with pytest.raises(ValueError, match="no images below this folder"):
        FolderImages(tmp_path / "none", size=32)


def test_pixels_range_from_minus_one_to_one():
    image = Image.new("RGB", (2, 1))
    image.putpixel((1, 0), (255, 255, 255))
    assert to_pixels(image).tolist() == [[[-1.0, 1.0]]] * 3


def test_folder_pixels_are_sharded_and_evenly_picked(tmp_path):
    for number in range(7):
        Image.new("RGB", (40, 20), (number * 20, 0, 0)).save(tmp_path / f"{number}.png")
    shares = [folder_pixels(tmp_path, 16, 5, rank, 2) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 2] and shares[0].shape[1:] == (3, 16, 16)
    shades = sorted(round(((image[0, 0, 0].item() + 1) * 127.5) / 20) for share in shares for image in share)
    assert shades == [0, 1, 2, 4, 5]
    with pytest.raises(ValueError, match="2 images to measure on 3 processes"):
        folder_pixels(tmp_path, 16, 2, 0, 3)
