"""Interface of the model and the processor for images in vLLM's backend for Transformers models, without vLLM."""

import pytest
import torch
from conftest import build_chat_model
from PIL import Image


IMAGES = [Image.linear_gradient("L").convert("RGB"), Image.new("RGB", (50, 20), "red")]
TENSORS = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}


@pytest.fixture(scope="module")
def parts():
    return build_chat_model()


@pytest.fixture(scope="module")
def question(parts):
    content = [*({"type": "image", "image": image} for image in IMAGES), {"type": "text", "text": "a dog?"}]
    return parts[1].apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, **TENSORS)


def test_placeholders_are_counted_and_reported(parts):
    model, processor = parts
    positions = model.config.vq_config.num_positions
    assert processor.tokenizer.encode(processor.image_token, add_special_tokens=False) == [processor.image_token_id]
    counted = processor._get_num_multimodal_tokens(image_sizes=[[256, 256], [20, 50]])
    assert counted["num_image_tokens"] == [positions] * 2 and counted["num_image_patches"] == [1, 1]
    text = f"{processor.image_token} and {processor.image_token}"
    inputs = processor(text=text, images=IMAGES, return_text_replacement_offsets=True)
    [offsets] = inputs["text_replacement_offsets"]
    assert [(entry["type"], entry["replacement"]) for entry in offsets] == [
        ("image", processor.image_token * positions)
    ] * 2
    ids = torch.tensor(inputs["input_ids"])
    assert (ids == processor.image_token_id).sum() == 2 * positions


def test_features_at_placeholders_equal_forward(parts, question):
    model, _ = parts
    features = model.model.get_image_features(question["pixel_values"]).pooler_output
    width = model.config.text_config.hidden_size
    assert features.shape == (2, model.config.vq_config.num_positions, width)
    embeds = model.model.get_input_embeddings()(question["input_ids"])
    embeds[question["input_ids"] == model.config.image_token_id] = features.flatten(0, 1)
    with torch.no_grad():
        hidden = model.model.language_model(inputs_embeds=embeds).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden), model(**question).logits)
