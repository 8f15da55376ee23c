"""`device_map`: codes, answers and images are equal on any placement of the parts."""

import pytest
import torch
from conftest import build_chat_model
from PIL import Image
from transformers import AutoModelForMultimodalLM


TENSORS = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
IMAGE = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
QUESTION = [{"type": "image", "image": IMAGE}, {"type": "text", "text": "what is this?"}]


@pytest.fixture(scope="module")
def whole():
    return build_chat_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, whole):
    folder = tmp_path_factory.mktemp("checkpoint")
    whole[0].save_pretrained(folder)
    return folder


PLACEMENTS = {
    "all in memory": {"device_map": "auto"},
    "tokenizer in memory, the rest on disk": {"device_map": "auto", "max_memory": {"cpu": 200_000}},
    "all on disk": {"device_map": {"": "disk"}},
    "parts": {
        "device_map": {
            "model.vq_model": "disk",
            "model.language_model": "cpu",
            "model.semantic_projector": "disk",
            "model.pixel_projector": "cpu",
            "lm_head": "cpu",
            "depth_decoder": "disk",
        }
    },
}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placement_keeps_codes_answers_and_images(whole, folder, placement, pixels, tmp_path):
    model, processor = whole
    placed = AutoModelForMultimodalLM.from_pretrained(folder, offload_folder=tmp_path, **PLACEMENTS[placement]).eval()
    on_disk = {name for name, parameter in placed.named_parameters() if parameter.is_meta}
    assert bool(on_disk) == (placement != "all in memory")

    assert torch.equal(placed.model.vq_model.encode(pixels), model.model.vq_model.encode(pixels))
    chat = [{"role": "user", "content": QUESTION}]
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **TENSORS)
    answers = [m.generate(**inputs, max_new_tokens=4, do_sample=False) for m in (placed, model)]
    assert torch.equal(*answers)
    chat = [{"role": "user", "content": "a cat"}]
    inputs = processor.apply_chat_template(chat, generation_mode="image", **TENSORS)
    codes = [m.generate(**inputs, generation_mode="image", do_sample=False) for m in (placed, model)]
    assert torch.equal(*codes) and len(codes[0].unique()) > 4
    assert torch.equal(placed.decode_image_tokens(codes[0]), model.decode_image_tokens(codes[0]))


def test_modules_without_hooks_are_not_split(whole):
    """`encode`, `decode_pixels` and the stepwise path of the depth decoder call submodules of these two directly."""
    assert {"EvoTokVQModel", "EvoTokDepthDecoder"} <= whole[0]._no_split_modules
