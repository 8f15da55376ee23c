"""Promises of the embedded EvoTok-mini: it is complete and small, has no code, understands and generates images."""

import json
from pathlib import Path

import pytest
import torch

from evotok import EvoTokForConditionalGeneration, EvoTokProcessor
from evotok.data.world.images import held_out_scenes, scene_pixels
from evotok.data.world.palette import COLORS
from evotok.eval.metrics import psnr
from evotok.eval.mini.targets import TARGETS


ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "assets" / "evotok-mini"


@pytest.fixture(scope="module")
def mini():
    model, info = EvoTokForConditionalGeneration.from_pretrained(MINI, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval(), EvoTokProcessor.from_pretrained(MINI)


def test_mini_is_small_and_has_no_code():
    """`evotok export mini --out FOLDER` writes a folder with code."""
    assert sum(path.stat().st_size for path in MINI.glob("*.safetensors")) <= 32e6
    assert {path.suffix for path in MINI.iterdir()} <= {".json", ".jinja", ".md", ".png", ".safetensors"}
    assert not [path.name for path in MINI.glob("*.json") if "auto_map" in path.read_text("utf-8")]


def test_mini_has_the_documented_sizes(mini):
    vq = mini[0].config.vq_config
    assert (vq.image_size, vq.grid_size, vq.num_codebooks, vq.num_pixel_codebooks) == (64, 8, 16, 4)
    assert mini[0].generation_config.guidance_scale == 7.5 and 0 < mini[0].generation_config.guidance_min_p < 1


def test_results_of_mini_have_every_figure():
    figures = json.loads((MINI / "results.json").read_text())["figures"]
    for name in TARGETS:
        assert figures[name] >= 0 and figures[f"{name}_target"] == TARGETS[name]


def test_reconstructions_of_mini_equal_the_results(mini, world):
    model, _ = mini
    pixels = scene_pixels(world, held_out_scenes(world, "test", 24))
    decoded = model.model.vq_model.decode_pixels(model.model.vq_model.encode(pixels))
    measured = psnr((decoded + 1) / 2, (pixels + 1) / 2).mean().item()
    figures = json.loads((MINI / "results.json").read_text())["figures"]
    assert measured == pytest.approx(figures["psnr_new_style_depth4"], abs=1.5)


def test_mini_generates_and_understands_an_image(mini):
    model, processor = mini
    to_tensors = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    chat = [{"role": "user", "content": "a red heart"}]
    inputs = processor.apply_chat_template(chat, generation_mode="image", **to_tensors)
    codes = model.generate(**inputs, generation_mode="image", generator=torch.Generator().manual_seed(0))
    assert codes.shape == (1, 64, 4)
    [image] = processor.post_process_image_generation(model.decode_image_tokens(codes))
    assert image.size == (64, 64)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What color is the heart?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, **to_tensors
    )
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer in COLORS
