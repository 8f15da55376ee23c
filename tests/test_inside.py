"""The tab Look inside: decoding at every depth, maps of codes, swapped levels."""

import pytest
import torch
from conftest import POSITIONS, build_chat_model
from PIL import Image


pytest.importorskip("gradio", reason="the page needs the extra `app`")

from evotok.app.inside import inspect, swap


@pytest.fixture(scope="module")
def parts():
    """Returns a model and its processor: 4 x 4 positions, 4 levels, 2 of them for pixels."""
    return build_chat_model()


@pytest.fixture
def image():
    noise = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return Image.fromarray(noise.numpy())


def test_inspect_decodes_at_every_depth(parts, image):
    model, processor = parts
    found = inspect(model, processor, image)
    pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    codes = model.model.vq_model.encode(pixels)
    assert torch.equal(found.codes, codes[0]) and found.codes.shape == (POSITIONS, 4)
    assert len(found.images) == len(found.psnr) == 2
    [wanted] = processor.post_process_image_generation(model.model.vq_model.decode_pixels(codes, 1))
    assert found.images[0].tobytes() == wanted.tobytes() != found.images[1].tobytes()
    assert len(found.similarity) == 4 and found.similarity[-1] == pytest.approx(1, abs=1e-5)
    assert found.similarity[0] < 0.999


def test_maps_have_one_colour_for_each_code(parts, image):
    found = inspect(*parts, image)
    assert len(found.maps) == 4
    for level, code_map in enumerate(found.maps):
        codes = found.codes[:, level].tolist()
        colors = [code_map.getpixel((16 * column + 8, 16 * row + 8)) for row in range(4) for column in range(4)]
        of_code = dict(zip(codes, colors, strict=True))
        assert [of_code[code] for code in codes] == colors
        assert len(set(of_code.values())) == len(of_code) > 1


def test_swap_exchanges_the_chosen_levels_only(parts, image):
    first, second = inspect(*parts, image), inspect(*parts, Image.new("RGB", (32, 32), (10, 200, 30)))
    none = swap(*parts, first.codes, second.codes, [])
    assert none[0].image.tobytes() == first.images[-1].tobytes()
    assert none[0].to_own == pytest.approx(1, abs=1e-5)
    every = swap(*parts, first.codes, second.codes, [1, 2, 3, 4])
    assert every[0].image.tobytes() == second.images[-1].tobytes()
    assert every[1].to_other == pytest.approx(1, abs=1e-5)
    semantic = swap(*parts, first.codes, second.codes, [3, 4])
    assert semantic[0].image.tobytes() == first.images[-1].tobytes(), "only the first two levels code the pixels"
    assert semantic[0].to_own < 0.9999
