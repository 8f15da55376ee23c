"""The model card of a checkpoint that nobody has described yet: the Hub's metadata, its parts, and how it is used.

`evotok export` writes it; what the model was trained on and what it reaches is for its authors to add.
"""

from collections.abc import Sequence

from huggingface_hub import ModelCardData

from evotok import EvoTokForConditionalGeneration
from evotok.cards.mini import TAGS, USAGE


def render_checkpoint_card(
    model: EvoTokForConditionalGeneration, name: str, license_id: str, base_models: Sequence[str] = ()
) -> str:
    """The card as Markdown with a YAML head, ending in a line break.

    Args:
        model: whose sizes are told.
        name: heading, and what the example loads.
        license_id: of the weights, as the Hub writes it (`apache-2.0`).
        base_models: Hub ids of the models that parts of it started from.
    """
    metadata = ModelCardData(
        license=license_id,
        library_name="transformers",
        pipeline_tag="any-to-any",
        tags=TAGS,
        base_model=list(base_models) or None,
    )
    vq, text, depth = model.config.vq_config, model.config.text_config, model.config.depth_decoder_config
    side, layers = vq.grid_size, f"{text.num_hidden_layers} layers, {text.hidden_size:,} wide"
    levels = f"{vq.num_codebooks} residual levels of {vq.codebook_size:,} codes, {vq.num_pixel_codebooks} for pixels"
    parts = (
        ("image tokenizer", f"{vq.image_size} px, {side} x {side} positions, {levels}", model.model.vq_model),
        ("language model", f"{text.model_type}, {layers}, {text.vocab_size:,} tokens", model.model.language_model),
        ("depth decoder", f"{depth.num_hidden_layers} layers, {depth.hidden_size:,} wide", model.depth_decoder),
        ("all", "with projectors and text head", model),
    )
    rows = [f"| {part} | {size} | {module.num_parameters() / 1e6:,.1f} M |" for part, size, module in parts]
    table = "\n".join(["| part | size | parameters |", "| --- | --- | --- |", *rows])
    return f"""\
---
{metadata.to_yaml()}
---

# {name}

An EvoTok model: it understands and generates images by the codes of one image tokenizer. The first levels of the codes
hold an image's pixels, the sum of all levels holds its semantics.

{table}

## How to use it

{USAGE.replace("assets/evotok-mini", name)}

In the pipelines of Transformers it is `image-text-to-text`, and `any-to-any` with `generation_mode="image"` or without.

## Training, results, limits

Not described yet.
"""
