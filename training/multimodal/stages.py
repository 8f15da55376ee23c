"""The stages that train the language model: pretrain, sft, gen (paper, Sec. 3.2 and 3.3), and unified, both at once.

They differ in data and in which parts learn; model, collator and trainer are the same. So is the way to all of them for
the dpo stage, which has a collator and a trainer of its own (`preference_stage`).
"""

import contextlib
import copy
import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from transformers.integrations import set_hf_deepspeed_config, unset_hf_deepspeed_config

from ...data.arguments import DataArguments
from ...data.collators import EvoTokCollator
from ...data.conversations import IndexedRows, load_conversations
from ...data.stream_loader import build_stream, estimate_length
from ...data.world.conversations import WorldConversations
from ...data.world.icons import load_world
from ...modeling_evotok.configuration_evotok import EvoTokConfig
from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...processing.processing_evotok import EvoTokProcessor
from ..optimizers import optimizer_choice
from ..recipes import Recipe, num_samples
from ..stages import STAGES
from ..time_box import time_box
from ..trainer_options import check_length
from .trainer import MultimodalTrainer


PARTS = {
    "semantic_projector": "model.semantic_projector",
    "pixel_projector": "model.pixel_projector",
    "language_model": "model.language_model",
    "lm_head": "lm_head",
    "depth_decoder": "depth_decoder",
}


def trainable_parts(recipe: Recipe) -> list[str]:
    """Returns the names of the parts that learn: those of the recipe, or the stage's own."""
    return recipe.model.trainable or list(STAGES[recipe.stage].trainable)


def freeze_all_but(model: EvoTokForConditionalGeneration, parts: list[str]) -> None:
    """Let only these parts learn; the tokenizer never does.

    Raises:
        ValueError: a name that is no part.
    """
    for name in parts:
        if name not in PARTS:
            raise ValueError(f"model.trainable: {name!r} is no part of the model. Parts: {', '.join(PARTS)}.")
    model.requires_grad_(False)
    for name in parts:
        model.get_submodule(PARTS[name]).requires_grad_(True)


@contextlib.contextmanager
def whole_weights(arguments: TrainingArguments) -> Iterator[None]:
    """Models built inside have all their weights, in their own precision, in every process; the engine shards them when
    training begins.

    Under ZeRO-3 Transformers would shard a model while it is built, in half precision: parts could not be put together,
    and the tokenizer would have been rounded.
    """
    config = getattr(arguments, "hf_deepspeed_config", None)
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)


def build_multimodal(recipe: Recipe) -> tuple[EvoTokForConditionalGeneration, EvoTokProcessor]:
    """Model and processor that a recipe starts from: the stage before, or trained parts put together.

    Everything is built in fp32; mixed precision is the trainer's business.

    Raises:
        ValueError: a recipe that names neither the stage before nor both parts.
    """
    arguments = recipe.model
    if arguments.checkpoint:
        return _load_checkpoint(arguments.checkpoint), EvoTokProcessor.from_pretrained(arguments.checkpoint)
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
    model.lm_head.load_state_dict(language_model.get_output_embeddings().state_dict())
    return model, processor


def _load_checkpoint(checkpoint: str) -> EvoTokForConditionalGeneration:
    """The model of a stage before; low-rank adapters are merged into the weights they were trained on."""
    if not (Path(checkpoint) / "adapter_config.json").is_file():
        return EvoTokForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    from .lora import base_of, merge_adapters

    return merge_adapters(_load_checkpoint(base_of(checkpoint)), checkpoint)


def build_config(recipe: Recipe, processor: EvoTokProcessor, vq_config, language_model) -> EvoTokConfig:
    """The multimodal config of a recipe, with the special tokens where the text tokenizer has them.

    Raises:
        ValueError: a text tokenizer of more tokens than the language model has rows.
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
    """Attention as the recipe says, and only the stage's parts may learn."""
    if recipe.model.attn_implementation:  # not the tokenizer's: its codes must not move
        for part in (model.model.language_model, model.depth_decoder):
            part.set_attn_implementation(recipe.model.attn_implementation)
    freeze_all_but(model, trainable_parts(recipe))


def build_dataset(
    recipe: Recipe,
    arguments: TrainingArguments,
    collator: EvoTokCollator,
    vq_model: EvoTokVQModel,
) -> Dataset:
    """What the trainer reads: a stream of batches for a mixture, else numbered records."""
    if recipe.data.name != "mixture":
        return IndexedRows(build_data(recipe, arguments))
    length_of = functools.partial(estimate_length, num_image_tokens=collator.processor.num_image_tokens)
    return build_stream(recipe.data, arguments, collator, length_of, vq_model, collator.processor.image_processor)


def check_data(data: DataArguments) -> None:
    """Raises ValueError for data of another stage."""
    if data.name not in ("world", "llava", "mixture"):
        raise ValueError(f"data.name {data.name!r}: this stage reads 'world', 'llava' or a 'mixture', give one.")


def build_data(recipe: Recipe, arguments: TrainingArguments) -> Dataset:
    """Records of conversations.

    Raises:
        ValueError: data of another stage, or without end and no number of steps.
    """
    check_data(recipe.data)
    check_length(recipe, arguments.max_steps)
    if recipe.data.name == "world":
        world, mixture = load_world(recipe.data.path), recipe.data.mixture or None
        return WorldConversations(world, num_samples(arguments), mixture, arguments.seed, block=recipe.data.block)
    return load_conversations(recipe.data.path, recipe.data.image_folder)


def train_multimodal(recipe: Recipe, arguments: TrainingArguments, resume_from: str | None) -> dict[str, float]:
    """Train as the recipe says; the finished model and its processor lie in `output_dir`. Returns the figures."""
    check_data(recipe.data)  # before a model is built, which may take long
    with whole_weights(arguments):
        model, processor = build_multimodal(recipe)
    prepare_model(model, recipe)
    collator = EvoTokCollator(processor, recipe.data.max_length, recipe.data.caption_dropout, seed=arguments.seed)
    data = build_dataset(recipe, arguments, collator, model.model.vq_model)
    if recipe.lora:
        model = add_lora(model, recipe)
    trainer = MultimodalTrainer(
        model=model,
        args=arguments,
        callbacks=time_box(recipe, arguments),
        train_dataset=data,
        data_collator=collator,
        processing_class=processor,
        sample_prompts=recipe.data.sample_prompts,
        code_noise=recipe.data.code_noise,
        recipe=recipe,
        **optimizer_choice(recipe.optimizer, arguments),
    )
    result = trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_metrics("train", result.metrics)
    trainer.save_model()
    return {"step": result.global_step} | result.metrics


def add_lora(model: EvoTokForConditionalGeneration, recipe: Recipe):
    """The model with the adapters of [`lora_config`]."""
    from peft import get_peft_model

    return get_peft_model(model, lora_config(recipe))


def lora_config(recipe: Recipe):
    """Low-rank adapters on the language model; projectors and depth decoder learn in full."""
    from peft import LoraConfig

    parts = trainable_parts(recipe)
    fields = {
        "target_modules": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        "modules_to_save": [name for name in parts if name not in ("language_model", "lm_head")],
    }
    return LoraConfig(**(fields | recipe.lora))
