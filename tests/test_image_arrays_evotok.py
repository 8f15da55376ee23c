"""Arrays and tensors come out as the picture that they hold, whatever their dtype and layout; or are refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from evotok.processing import image_arrays_evotok
from evotok.processing.image_arrays_evotok import EvoTokImageError, array_to_image, check_unit_range
from evotok.processing.image_loading_evotok import load_image


PICTURE = Image.effect_noise((9, 7), 60).convert("RGB")
BYTES = np.asarray(PICTURE)  # (H, W, C)
TENSOR = torch.from_numpy(BYTES.copy()).permute(2, 0, 1)  # (C, H, W)
ALPHA = np.full((7, 9, 1), 255, dtype=np.uint8)

FORMS = {
    "uint8 (H, W, 3)": BYTES,
    "uint8 (3, H, W)": BYTES.transpose(2, 0, 1),
    "uint8 (H, W, 4), opaque": np.concatenate([BYTES, ALPHA], axis=2),
    "uint8 (4, H, W), opaque": np.concatenate([BYTES, ALPHA], axis=2).transpose(2, 0, 1),
    "uint16 to 65535": BYTES.astype(np.uint16) * 257,
    "uint16 to 255": BYTES.astype(np.uint16),
    "int64": BYTES.astype(np.int64),
    "float32 0 to 255": BYTES.astype(np.float32),
    "float64 0 to 1": BYTES / 255.0,
    "float16 0 to 1": (BYTES / 255.0).astype(np.float16),
    "tensor uint8": TENSOR,
    "tensor uint8 (H, W, 3)": torch.from_numpy(BYTES.copy()),
    "tensor as ToTensor gives it": TENSOR.float().div(255),
    "tensor float64 0 to 1": TENSOR.double() / 255,
    "tensor float32 0 to 255": TENSOR.float(),
    "tensor bfloat16 0 to 255": TENSOR.bfloat16(),
    "tensor that learns": torch.nn.Parameter(TENSOR.float().div(255)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_picture_is_the_picture(form):
    image = load_image(FORMS[form])
    assert image.mode == "RGB" and image.tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize("channels", [2, 3])
def test_greys_get_three_channels(channels):
    grey = BYTES[..., 0] if channels == 2 else BYTES[..., :1]
    for values in (grey, grey / 255.0, torch.from_numpy(grey.copy()) / 255):
        assert np.array_equal(np.asarray(load_image(values)), BYTES[..., :1].repeat(3, axis=2))


def test_masks_are_black_and_white():
    assert load_image(np.eye(8, dtype=bool)).getextrema() == ((0, 255),) * 3
    assert load_image(torch.ones(8, 8, dtype=torch.bool)).getextrema() == ((255, 255),) * 3


def test_transparency_of_arrays_is_laid_on_white():
    clear = np.zeros((7, 9, 4), dtype=np.float32)
    assert load_image(clear).getextrema() == ((255, 255),) * 3
    assert array_to_image(clear).mode == "RGBA"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (BYTES / 127.5 - 1, "pixel_values go to the model as they are"),
        (BYTES.astype(np.int64) * 257, "uint16: to 65535"),
        (BYTES.astype(np.float32) * 2, "values from .* to .*: give floats from 0 to 1"),
        (BYTES / 255.0 * 3, "neither of 0 to 1 nor of 0 to 255: clip them to 0 to 1"),
        (torch.full((3, 8, 8), float("nan")), "NaN or infinite"),
        (np.zeros((2, 8, 8), np.uint8), "with 1, 3 or 4 channels"),
    ],
)
def test_values_of_no_known_range_are_refused(values, reason):
    with pytest.raises(EvoTokImageError, match=reason) as error:
        load_image(values)
    assert len(str(error.value).splitlines()) == 1


def test_what_may_be_read_in_two_ways_is_read_with_a_warning(monkeypatch):
    said = []
    monkeypatch.setattr(image_arrays_evotok.logger, "warning_once", said.append)
    load_image(BYTES.astype(np.uint16))
    assert "uint16 holds nothing over 255" in said.pop()
    square = np.zeros((3, 5, 3), dtype=np.uint8)
    assert load_image(square).size == (5, 3) and "as (H, W, C)" in said.pop()
    assert load_image(torch.from_numpy(square)).size == (3, 5) and "as (C, H, W)" in said.pop()
    for values in FORMS.values():
        if values.dtype != np.uint16:
            load_image(values)
    assert not said


def test_unscaled_arrays_are_floats_of_the_unit_range():
    unit = TENSOR.float() / 255
    assert check_unit_range(unit) is unit
    assert check_unit_range(unit[0]).shape == (3, 7, 9)
    for other in (TENSOR, BYTES, PICTURE, unit * 2, unit - 1, unit[:1]):
        with pytest.raises(EvoTokImageError, match="do_rescale=False"):
            check_unit_range(other)
