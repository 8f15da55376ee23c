"""Image files: crops, pixels, shares of a folder, names that lead out of it."""

import numpy as np
import pytest
import torch
from bombs import little_memory
from PIL import Image
from transformers import SiglipImageProcessorPil

from evotok.data.image_files import (
    crop_square,
    folder_pixels,
    pixels_of,
    resolve_file,
    to_pixels,
    to_uint8,
    to_unit_range,
)
from evotok.data.sequences import pick_evenly
from evotok.processing.image_loading_evotok import EvoTokImageError


def test_crop_square_crops_the_middle_or_a_place():
    image = Image.new("RGB", (90, 30), "white")
    image.paste("red", (30, 0, 60, 30))
    cropped = np.asarray(crop_square(image, 10))
    assert cropped.shape == (10, 10, 3) and (cropped[:, 1:-1] == (255, 0, 0)).all()
    assert (np.asarray(crop_square(image, 10, (0.0, 0.5)))[:, :-1] == 255).all()


def test_crop_square_refuses_strips():
    for image in (Image.new("L", (60_000, 1)), Image.new("L", (1, 21))):
        with little_memory(300), pytest.raises(EvoTokImageError, match="aspect ratio is limited to 20"):
            crop_square(image, 256)
    assert crop_square(Image.new("RGB", (600, 30)), 32).size == (32, 32)


def test_to_pixels_and_to_uint8_are_inverse():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = to_pixels(image)
    assert pixels.shape == (3, 16, 16) and pixels.min() == -1 and pixels.max() == 1
    assert torch.equal(pixels, to_pixels(Image.fromarray(image)))
    assert (to_uint8(pixels).permute(1, 2, 0).numpy() == image).all()
    assert to_uint8(torch.tensor([-3.0, 0.0, 7.0])).tolist() == [0, 128, 255]


def test_to_unit_range_keeps_what_is_outside():
    assert to_unit_range(torch.tensor([-1.5, -1.0, 0.0, 1.0])).tolist() == [-0.25, 0.0, 0.5, 1.0]


def test_folder_pixels_are_shared_evenly(tmp_path):
    (tmp_path / "deep").mkdir()
    for number in range(7):
        image = Image.new("RGB", (40, 20), (number * 20, 0, 0))
        image.save(tmp_path / ("deep" if number % 2 else "") / f"{number}.png")
    shares = [folder_pixels(tmp_path, 16, 5, rank, 2) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 2] and shares[0].shape[1:] == (3, 16, 16)
    shades = {round(((image[0, 0, 0].item() + 1) * 127.5) / 20) for share in shares for image in share}
    assert len(shades) == 5
    with pytest.raises(ValueError, match="2 images to measure on 3 processes"):
        folder_pixels(tmp_path, 16, 2, 0, 3)
    with pytest.raises(ValueError, match="no images below this folder"):
        folder_pixels(tmp_path / "none", 16, 2)


def test_pick_evenly_keeps_order_and_limits():
    assert pick_evenly("abcdefg", 3) == ["a", "c", "e"]
    assert pick_evenly("abc", 9) == pick_evenly("abc", None) == ["a", "b", "c"]


def test_resolve_file_stays_in_the_folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "8.png").touch()
    (tmp_path / "secret.png").touch()
    (folder / "again.png").symlink_to(folder / "8.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    assert resolve_file(folder, "again.png") == resolve_file(folder, "8.png") == str(folder / "8.png")
    for name in ("/etc/passwd", "../secret.png", "a/../../secret.png", "link.png", "up/secret.png", "."):
        with pytest.raises(ValueError, match=f"image '{name}' is outside of {folder}"):
            resolve_file(folder, name)
    with pytest.raises(ValueError, match="text 'http://x' is an address, which is not fetched"):
        resolve_file(folder, "http://x", "text")
    with pytest.raises(ValueError, match="is no file name"):
        resolve_file(folder, "a\0.png")


def random_images(sizes):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)) for size in sizes]


@pytest.mark.parametrize("size", [(16, 16), (9, 30)])
def test_pixels_of_equals_the_image_processor(size):
    image_processor, images = SiglipImageProcessorPil(size={"height": 16, "width": 16}), random_images([size] * 3)
    expected = image_processor(images, return_tensors="pt")["pixel_values"]
    for given in (images, [np.asarray(image) for image in images]):
        torch.testing.assert_close(pixels_of(given, image_processor), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"resample": 0}, {"do_resize": False}, {"do_rescale": False}])
def test_pixels_of_other_sizes_equal_the_image_processor_in_all_bits(settings):
    image_processor = SiglipImageProcessorPil(size={"height": 16, "width": 20}, image_mean=[0.4, 0.5, 0.6], **settings)
    images = random_images([(9, 30)] if "do_resize" in settings else [(9, 30), (20, 17), (50, 40), (1, 1), (16, 20)])
    expected = image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels_of(images, image_processor), expected)
    assert torch.equal(torch.cat([pixels_of([image], image_processor) for image in images]), expected)
