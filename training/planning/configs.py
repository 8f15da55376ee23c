"""The model config that a recipe trains, from its checkpoint or from the recipe that will write it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, Qwen2Config, SiglipVisionConfig

from ...modeling_evotok.configuration_evotok import EvoTokConfig, EvoTokVQConfig
from ..backbones.language import VOCAB_SIZE, padded_rows
from ..recipes import Recipe, read_recipe


def find_config(recipe: Recipe, path: Path) -> EvoTokConfig:
    """Returns the multimodal config that a recipe trains: of the checkpoint it starts from, or, before that is written,
    of the recipe that will write it.

    Raises:
        ValueError: neither is there.
    """
    checkpoint = recipe.model.checkpoint
    if checkpoint and (Path(checkpoint) / "config.json").is_file():
        return cast(EvoTokConfig, AutoConfig.from_pretrained(checkpoint))
    if checkpoint:
        source = _required_recipe(checkpoint, path)
        return find_config(read_recipe(source), source)
    fields = json.loads(json.dumps(recipe.model.config))
    language_model = _pretrained_fields(recipe.model.language_model_checkpoint, path, _language_config)
    if language_model:
        fields["text_config"] = language_model | fields.get("text_config", {})
        if fields["text_config"]["vocab_size"] < EvoTokConfig.image_token_id:  # the ids of Qwen2.5 are out of range
            fields |= {
                "image_token_id": 2, "image_generation_token_id": 3, "vision_start_token_id": 4,
                "vision_end_token_id": 5,
            }  # fmt: skip
    if "vq_config" not in fields:
        fields["vq_config"] = _vq_fields(recipe.model.vq_checkpoint, path)
    return EvoTokConfig(**fields)


def tokenizer_fields(recipe: Recipe, path: Path) -> dict[str, Any]:
    """Returns fields of the tokenizer's config: of a recipe, and of the encoder it starts from, but its last layer."""
    encoder = _pretrained_fields(recipe.model.encoder_checkpoint, path, _vision_config)
    if not encoder:
        return recipe.model.config
    encoder |= {"num_hidden_layers": encoder["num_hidden_layers"] - 1, "vision_use_head": False}
    return {"encoder_config": encoder, "semantic_feature_dim": encoder["hidden_size"]} | recipe.model.config


def _vision_config(recipe: Recipe) -> SiglipVisionConfig:
    return SiglipVisionConfig(**recipe.model.config)


def _language_config(recipe: Recipe) -> Qwen2Config:
    rows = padded_rows(recipe.model.text_tokenizer_size or VOCAB_SIZE)
    return Qwen2Config(**recipe.model.config, eos_token_id=1, pad_token_id=0, bos_token_id=None, vocab_size=rows)


def _pretrained_fields(checkpoint: str | None, path: Path, build: Callable[[Recipe], Any]) -> dict[str, Any]:
    """Returns fields of the config of a pretrained part: of its folder, or of the recipe that will write it; none for a
    Hub model, which is planned with the defaults, the parts of the paper."""
    if checkpoint is None:
        return {}
    if (Path(checkpoint) / "config.json").is_file():
        return AutoConfig.from_pretrained(checkpoint).to_dict()
    source = _recipe_of(checkpoint, path)
    return {} if source is None else build(read_recipe(source)).to_dict()


def _vq_fields(checkpoint: str | None, path: Path) -> dict[str, Any]:
    if checkpoint and (Path(checkpoint) / "config.json").is_file():
        return EvoTokVQConfig.from_pretrained(checkpoint).to_dict()
    while checkpoint:
        source = _required_recipe(checkpoint, path)
        recipe = read_recipe(source)
        if recipe.model.config or not recipe.model.checkpoint:
            return tokenizer_fields(recipe, source)
        checkpoint = recipe.model.checkpoint
    return {}


def _required_recipe(checkpoint: str, path: Path) -> Path:
    source = _recipe_of(checkpoint, path)
    if source is None:
        raise ValueError(
            f"{path}: model.checkpoint {checkpoint!r} is no folder, and no recipe beside it has that output_dir: train "
            "the stage before, or give another."
        )
    return source


def _recipe_of(checkpoint: str, path: Path) -> Path | None:
    """Returns the recipe beside `path`, or in the folder above, whose output is this checkpoint."""
    for folder in (path.parent, path.parent.parent):
        for other in sorted(folder.glob("*.yaml")):
            try:
                recipe = read_recipe(other)
            except ValueError:
                continue  # no recipe, or one with mistakes
            if recipe.training.get("output_dir") == checkpoint:
                return other
    return None
