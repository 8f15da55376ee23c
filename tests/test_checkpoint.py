"""What the embedded EvoTok-mini promises: it is whole, small, carries current code, reads and draws."""

import json
from pathlib import Path

import pytest
import torch

from evotok import EvoTokForConditionalGeneration, EvoTokProcessor
from evotok.training.emoji.world import EmojiWorld
from evotok.training.tokenizer_data import emoji_pixels


ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "assets" / "evotok-mini"


@pytest.fixture(scope="module")
def mini():
    model, info = EvoTokForConditionalGeneration.from_pretrained(MINI, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval(), EvoTokProcessor.from_pretrained(MINI)


def test_it_is_small_and_only_safetensors():
    assert sum(path.stat().st_size for path in MINI.glob("*.safetensors")) <= 32e6
    assert {path.suffix for path in MINI.iterdir()} <= {".json", ".jinja", ".md", ".png", ".py", ".safetensors"}


def test_carried_code_is_the_current_code():
    """After a change of a carried file: `evotok export mini --out assets/evotok-mini`."""
    copies = list(MINI.glob("*.py"))
    assert copies
    for copy in copies:
        [source] = [path for top in ("modeling_evotok", "processing") for path in (ROOT / top).glob(copy.name)]
        assert copy.read_text() == source.read_text(), copy.name


def test_sizes_are_those_of_the_issue(mini):
    vq = mini[0].config.vq_config
    assert (vq.image_size, vq.grid_size, vq.num_codebooks, vq.num_pixel_codebooks) == (64, 8, 16, 4)
    assert mini[0].generation_config.guidance_scale == 7.5 and 0 < mini[0].generation_config.guidance_min_p < 1


def test_results_name_every_figure_promised():
    results = json.loads((MINI / "results.json").read_text())
    promised = (
        "psnr_new_concept_depth4",
        "qa_name_new_pair",
        "qa_group_new_concept",
        "qa_color",
        "qa_yes_no",
        "qa_count",
    )
    for name in (*promised, "t2i_top5_train_cfg7.5", "t2i_top5_new_pair_cfg7.5"):
        assert results[name] >= 0 and f"{name}_target" in results


def test_reconstructions_are_as_good_as_reported(mini):
    model, _ = mini
    pixels = emoji_pixels(EmojiWorld(), "new_concept", 24)
    decoded = model.model.vq_model.decode_pixels(model.model.vq_model.encode(pixels)).clamp(-1, 1)
    error = ((decoded - pixels) / 2).square().mean((1, 2, 3))
    measured = (-10 * error.log10()).mean().item()
    assert measured == pytest.approx(json.loads((MINI / "results.json").read_text())["psnr_new_concept_depth4"], abs=2)


def test_it_reads_and_draws(mini):
    model, processor = mini
    to_tensors = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    chat = [{"role": "user", "content": "a frog, noto style"}]
    inputs = processor.apply_chat_template(chat, generation_mode="image", **to_tensors)
    codes = model.generate(**inputs, generation_mode="image", generator=torch.Generator().manual_seed(0))
    assert codes.shape == (1, 64, 4)
    [image] = processor.post_process_image_generation(model.decode_image_tokens(codes))
    assert image.size == (64, 64)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Which style is this?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, **to_tensors
    )
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer in {"noto", "twemoji", "fluent flat", "fluent 3d"}
