"""Model card of an exported checkpoint: metadata of the Hub, sizes of its parts, and examples of use.

`evotok export` writes it; the checkpoint's authors add training and results.
"""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from evotok import EvoTokForConditionalGeneration
from evotok.eval.results import markdown_table
from evotok.modeling_evotok.configuration_evotok import EvoTokConfig


TAGS = ["evotok", "image-tokenizer", "residual-vector-quantization", "text-to-image", "image-text-to-text"]
USAGE = """\
```python
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

import evotok  # or, without the package: trust_remote_code=True in both calls, for a folder of `evotok export`

model = AutoModelForMultimodalLM.from_pretrained("assets/evotok-mini")
processor = AutoProcessor.from_pretrained("assets/evotok-mini")
to_tensors = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}

# text -> image
chat = [{"role": "user", "content": "a red heart left of a blue star on a yellow background"}]
inputs = processor.apply_chat_template(chat, generation_mode="image", **to_tensors)
generator = torch.Generator().manual_seed(0)
codes = model.generate(**inputs, generation_mode="image", guidance_scale=7.5, generator=generator)
image = processor.post_process_image_generation(model.decode_image_tokens(codes))[0]
image.save("heart.png")

# image -> text
question = {"type": "text", "text": "What color is the background?"}
chat = [{"role": "user", "content": [{"type": "image", "image": image}, question]}]
inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **to_tensors)
tokens = model.generate(**inputs, max_new_tokens=16)
print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

# image <-> codes
inputs = processor(images=image, return_tensors="pt")
codes = model.model.vq_model.encode(inputs["pixel_values"])  # (1, positions, levels)
pixels = model.model.vq_model.decode_pixels(codes, depth=2)  # any prefix of the levels
```"""
TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}

An EvoTok model: it understands and generates images by the codes of one image tokenizer. The first levels of the codes
hold an image's pixels, the sum of all levels holds its semantics.

{{ parts }}

## How to use it

{{ usage }}

In the pipelines of Transformers it is `image-text-to-text`, and `any-to-any` with `generation_mode="image"` or without.

## Training, results, limits

Not described yet.
"""


def render_checkpoint_card(
    model: EvoTokForConditionalGeneration, name: str, license_id: str, base_models: Sequence[str] = ()
) -> str:
    """Renders the card as Markdown with YAML metadata.

    Args:
        name: heading, and the checkpoint that the example loads.
        license_id: of the weights, as the Hub spells it (`apache-2.0`).
        base_models: Hub ids of the models that parts were initialized from.
    """
    data = ModelCardData(
        license=license_id,
        library_name="transformers",
        pipeline_tag="any-to-any",
        tags=TAGS,
        base_model=list(base_models) or None,
    )
    modules = {"image tokenizer": model.model.vq_model, "language model": model.model.language_model}
    modules |= {"depth decoder": model.depth_decoder, "all": model}
    return render_template(
        data,
        TEMPLATE,
        name=name,
        parts=parts_table(model.config, {part: module.num_parameters() for part, module in modules.items()}),
        usage=USAGE.replace("assets/evotok-mini", name),
    )


def render_template(data: ModelCardData, template: str, **values: Any) -> str:
    """Renders a template of a card, whose `card_data` is the metadata; the result ends in one line break."""
    return f"{str(ModelCard.from_template(data, template_str=template, **values)).rstrip()}\n"


def parts_table(config: EvoTokConfig, parameters: dict[str, int]) -> str:
    """Renders the sizes of the parts of a model as a Markdown table.

    Args:
        parameters: of `image tokenizer`, `language model`, `depth decoder` and `all`.
    """
    vq, text, depth = config.vq_config, config.text_config, config.depth_decoder_config
    sizes = {
        "image tokenizer": f"{vq.image_size} px, {vq.grid_size} x {vq.grid_size} positions, {vq.num_codebooks} "
        f"residual levels of {vq.codebook_size:,} entries, {vq.num_pixel_codebooks} of them for pixels",
        "language model": f"{text.model_type}, {text.num_hidden_layers} layers, {text.hidden_size:,} wide, "
        f"{text.vocab_size:,} tokens",
        "depth decoder": f"{depth.num_hidden_layers} layers, {depth.hidden_size:,} wide, {depth.num_codebooks} codes a "
        "position",
        "all": "with projectors",
    }
    rows = [(part, size, f"{parameters[part] / 1e6:,.1f} M") for part, size in sizes.items()]
    return markdown_table(("part", "size", "parameters"), rows)
