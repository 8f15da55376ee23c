"""The stages of the language model: pretrain, sft, gen (paper, Sec. 3.2 and 3.3), and unified, which joins sft and gen.

They differ in data and in trained parts; model, collator and trainer are the same. The stage dpo builds its model and
data here, too; its trainer is in `preferences.py`.
"""

import copy
import functools
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from ...data.collators import EvoTokCollator
from ...data.conversations import IndexedRows, load_conversations
from ...data.stream_loader import build_stream, estimate_length
from ...data.world.conversations import WorldConversations
from ...data.world.icons import load_world
from ...data.world.preferences import WorldPreferences
from ...modeling_evotok.configuration_evotok import EvoTokConfig
from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...processing.processing_evotok import EvoTokProcessor
from ..deepspeed_setup import unsharded_weights
from ..recipes import Recipe, num_rows
from ..stages import STAGES
from .trainer import MultimodalTrainer


PARTS = {
    "semantic_projector": "model.semantic_projector",
    "pixel_projector": "model.pixel_projector",
    "language_model": "model.language_model",
    "lm_head": "lm_head",
    "depth_decoder": "depth_decoder",
}


def trainable_parts(recipe: Recipe) -> list[str]:
    """Returns the names of the trained parts: those of the recipe, or of the stage."""
    return recipe.model.trainable or list(STAGES[recipe.stage].trainable)


def freeze_all_but(model: EvoTokForConditionalGeneration, parts: list[str]) -> None:
    """Freezes the model but for these parts; the image tokenizer is always frozen.

    Raises:
        ValueError: an unknown part.
    """
    for name in parts:
        if name not in PARTS:
            raise ValueError(f"model.trainable: {name!r} is no part of the model. Parts: {', '.join(PARTS)}.")
    model.requires_grad_(False)
    for name in parts:
        model.get_submodule(PARTS[name]).requires_grad_(True)


def build_multimodal(recipe: Recipe) -> tuple[EvoTokForConditionalGeneration, EvoTokProcessor]:
    """Builds the model and the processor that a recipe starts from: the stage before, or trained parts.

    Everything is in fp32; the trainer applies mixed precision.

    Raises:
        ValueError: a recipe that names neither the stage before nor both parts.
    """
    arguments = recipe.model
    if arguments.checkpoint:
        return load_checkpoint(arguments.checkpoint), EvoTokProcessor.from_pretrained(arguments.checkpoint)
    if arguments.vq_checkpoint is None:
        raise ValueError("give the recipe model.checkpoint (the stage before) or model.vq_checkpoint (a tokenizer).")
    if arguments.language_model_checkpoint is None:
        raise ValueError(
            "model.vq_checkpoint: give model.language_model_checkpoint, a causal language model, beside it."
        )
    vq_model = EvoTokVQModel.from_pretrained(arguments.vq_checkpoint, dtype=torch.float32)
    language_model = AutoModelForCausalLM.from_pretrained(arguments.language_model_checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.language_model_checkpoint)
    vq_config = vq_model.config
    processor = EvoTokProcessor.from_parts(
        tokenizer, image_size=vq_config.image_size, num_image_tokens=vq_config.num_positions, **recipe.processor
    )
    config = build_config(recipe, processor, vq_config, language_model)
    model = EvoTokForConditionalGeneration._from_config(config, dtype=torch.float32)
    model.model.vq_model.load_state_dict(vq_model.state_dict())
    model.model.language_model.load_state_dict(language_model.base_model.state_dict())
    model.lm_head.load_state_dict(cast(nn.Module, language_model.get_output_embeddings()).state_dict())
    return model, processor


def load_checkpoint(checkpoint: str) -> EvoTokForConditionalGeneration:
    """Loads the model of a checkpoint in fp32; LoRA adapters are merged into the weights they were trained on."""
    if not (Path(checkpoint) / "adapter_config.json").is_file():
        return EvoTokForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    from .lora import base_of, merge_adapters

    return merge_adapters(load_checkpoint(base_of(checkpoint)), checkpoint)


def build_config(recipe: Recipe, processor: EvoTokProcessor, vq_config, language_model) -> EvoTokConfig:
    """Builds the multimodal config of a recipe, with the ids of the special tokens of the text tokenizer.

    Raises:
        ValueError: a text tokenizer with more tokens than the language model has rows.
    """
    fields = copy.deepcopy(recipe.model.config)
    tokenizer = processor.tokenizer
    fields["text_config"] = language_model.config.to_dict() | fields.get("text_config", {})
    if len(tokenizer) > fields["text_config"]["vocab_size"]:
        raise ValueError(
            f"the text tokenizer has {len(tokenizer)} tokens but the language model's vocabulary only "
            f"{fields['text_config']['vocab_size']}: resize the model before, or take its own tokenizer."
        )
    fields["image_token_id"] = processor.image_token_id
    fields["image_generation_token_id"] = processor.image_generation_token_id
    fields["vision_start_token_id"] = tokenizer.convert_tokens_to_ids(processor.vision_start_token)
    fields["vision_end_token_id"] = tokenizer.convert_tokens_to_ids(processor.vision_end_token)
    return EvoTokConfig(vq_config=vq_config.to_dict(), **fields)


def prepare_model(model: EvoTokForConditionalGeneration, recipe: Recipe) -> None:
    """Sets the attention of a recipe, and freezes all parts but those that it trains."""
    if recipe.model.attn_implementation:  # not in the image tokenizer: its codes must not change
        for part in (model.model.language_model, model.depth_decoder):
            part.set_attn_implementation(recipe.model.attn_implementation)
    freeze_all_but(model, trainable_parts(recipe))


def build_dataset(
    recipe: Recipe,
    arguments: TrainingArguments,
    collator: EvoTokCollator,
    vq_model: EvoTokVQModel,
) -> Dataset:
    """Builds the training data: a stream of batches for a mixture, otherwise rows with their index."""
    data, seed = recipe.data, arguments.seed
    if data.name == "mixture":
        length_of = functools.partial(estimate_length, num_image_tokens=collator.processor.num_image_tokens)
        return build_stream(data, arguments, collator, length_of, vq_model, collator.processor.image_processor)
    if data.name == "llava":
        assert data.path is not None  # `check_data` refuses None
        return IndexedRows(load_conversations(data.path, data.image_folder))
    world, mixture, length = load_world(data.path), data.mixture or None, num_rows(arguments)
    if STAGES[recipe.stage].compares_answers:
        return IndexedRows(WorldPreferences(world, length, mixture, seed))
    return IndexedRows(WorldConversations(world, length, mixture, seed, block=data.block))


def build_trainer(recipe: Recipe, arguments: TrainingArguments) -> MultimodalTrainer:
    """Builds the trainer of pretrain, sft, gen and unified."""
    with unsharded_weights(arguments):
        model, processor = build_multimodal(recipe)
    return assemble_trainer(recipe, arguments, model, processor)


def assemble_trainer(
    recipe: Recipe, arguments: TrainingArguments, model: EvoTokForConditionalGeneration, processor: EvoTokProcessor
) -> MultimodalTrainer:
    """Builds the trainer around a model, which is frozen or extended by adapters as the recipe states."""
    prepare_model(model, recipe)
    collator = EvoTokCollator(processor, recipe.data.max_length, recipe.data.caption_dropout, seed=arguments.seed)
    data = build_dataset(recipe, arguments, collator, model.model.vq_model)
    trained: nn.Module = model
    if recipe.lora:
        from .lora import add_adapters, round_frozen_matrices

        trained = add_adapters(model, recipe.lora, trainable_parts(recipe))
        if arguments.bf16 and not arguments.deepspeed:  # which rounds everything itself
            round_frozen_matrices(trained)
    return MultimodalTrainer(
        model=trained,
        args=arguments,
        recipe=recipe,
        train_dataset=data,
        data_collator=collator,
        processing_class=processor,
        sample_prompts=recipe.data.sample_prompts,
        code_noise=recipe.data.code_noise,
    )
