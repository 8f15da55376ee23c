"""What docs/vllm.md promises of the model and the processor, held without vLLM."""

import re
from pathlib import Path

import pytest
import torch
from conftest import build_chat_model
from PIL import Image
from transformers import DynamicCache

from evotok.modeling_evotok.sampling_evotok import EvoTokCodeSampler


PLAN = (Path(__file__).resolve().parents[1] / "docs" / "vllm.md").read_text(encoding="utf-8")
PICTURES = [Image.linear_gradient("L").convert("RGB"), Image.new("RGB", (50, 20), "red")]
TENSORS = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}


@pytest.fixture(scope="module")
def parts():
    return build_chat_model()


@pytest.fixture(scope="module")
def question(parts):
    content = [*({"type": "image", "image": picture} for picture in PICTURES), {"type": "text", "text": "a dog?"}]
    return parts[1].apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, **TENSORS)


def test_every_name_of_ours_in_the_plan_exists(parts):
    """Names in code style that are neither ours nor vLLM's would be misspelt."""
    model, processor = parts
    ours = {
        "_get_num_multimodal_tokens": processor, "image_token": processor, "get_image_features": model.model,
        "language_model": model.model, "vq_model.encode": model.model.vq_model,
        "_keep_in_fp32_modules_strict": model, "depth_decoder.generate_codes": model.depth_decoder,
        "new_cache": model.depth_decoder, "pixel_projector": model.model, "decode_image_tokens": model,
        "image_generation_token_id": model.config, "vision_start_token_id": model.config,
        "vision_end_token_id": model.config,
    }  # fmt: skip
    for name, owner in ours.items():
        assert name in PLAN and hasattr(owner, name.rpartition(".")[2]), name
    assert EvoTokCodeSampler.__name__ in PLAN
    assert set(re.findall(r"processor\(text, images, (\w+)=True\)", PLAN)) == {"return_text_replacement_offsets"}


def test_placeholders_are_counted_before_and_told_after(parts):
    model, processor = parts
    positions = model.config.vq_config.num_positions
    assert processor.tokenizer.encode(processor.image_token, add_special_tokens=False) == [processor.image_token_id]
    counted = processor._get_num_multimodal_tokens(image_sizes=[[256, 256], [20, 50]])
    assert counted["num_image_tokens"] == [positions] * 2 and counted["num_image_patches"] == [1, 1]
    text = f"{processor.image_token} and {processor.image_token}"
    inputs = processor(text=text, images=PICTURES, return_text_replacement_offsets=True)
    [offsets] = inputs["text_replacement_offsets"]
    assert [(entry["type"], entry["replacement"]) for entry in offsets] == [
        ("image", processor.image_token * positions)
    ] * 2
    ids = torch.tensor(inputs["input_ids"])
    assert (ids == processor.image_token_id).sum() == 2 * positions


def test_features_at_the_placeholders_give_the_logits_of_forward(parts, question):
    model, _ = parts
    features = model.model.get_image_features(question["pixel_values"]).pooler_output
    width = model.config.text_config.hidden_size
    assert features.shape == (2, model.config.vq_config.num_positions, width)
    embeds = model.model.get_input_embeddings()(question["input_ids"])
    embeds[question["input_ids"] == model.config.image_token_id] = features.flatten(0, 1)
    with torch.no_grad():
        hidden = model.model.language_model(inputs_embeds=embeds).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden), model(**question).logits)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_two_sequences_that_share_the_codes_alone_draw_the_image(parts, guidance_scale):
    """The loop of the plan over separate caches, one a sequence, as requests of vLLM are."""
    model, processor = parts
    wish = [{"role": "user", "content": "the red cat, a dog"}]
    inputs = processor.apply_chat_template(wish, generation_mode="image", **TENSORS)
    settings = {"guidance_scale": guidance_scale, "top_k": 20}
    expected = model.generate(**inputs, generation_mode="image", generator=torch.Generator().manual_seed(3), **settings)
    prompts = [inputs["input_ids"], inputs["negative_prompt_ids"]][: 1 if guidance_scale == 1 else 2]
    assert len({prompt.shape[1] for prompt in prompts}) == len(prompts), "of different length"
    caches = [DynamicCache(config=model.config.text_config) for _ in prompts]
    sampler = EvoTokCodeSampler(**settings, generator=torch.Generator().manual_seed(3))
    levels, size = model.config.depth_decoder_config.num_codebooks, model.config.vq_config.codebook_size
    every = torch.arange(size)[:, None].expand(-1, levels)
    codebooks = model.model.vq_model.quantizer.embed(every).transpose(0, 1).contiguous()  # (L, K, C)
    cache = model.depth_decoder.new_cache(len(prompts))
    embeds, drawn = [model.model.get_input_embeddings()(prompt) for prompt in prompts], []
    with torch.no_grad():
        for _ in range(model.config.vq_config.num_positions):
            states = [
                model.model.language_model(inputs_embeds=embed, past_key_values=past).last_hidden_state[:, -1]
                for embed, past in zip(embeds, caches, strict=True)
            ]
            codes, features = model.depth_decoder.generate_codes(torch.cat(states), codebooks, sampler, cache)
            assert features.shape == (len(prompts), model.config.vq_config.codebook_dim)
            assert (features == features[:1]).all() and (codes == codes[:1]).all()
            drawn.append(codes[:1])
            embeds = list(model.model.pixel_projector(features)[:, None].split(1))
    assert torch.equal(torch.stack(drawn, dim=1), expected) and len(expected.unique()) > 4
