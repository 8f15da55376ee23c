"""The stage that learns which of two answers is the better one, by TRL's `DPOTrainer` (Rafailov et al., 2023).

It starts from a model that answers, and compares it all along with what it was. That reference is a second model in
memory, but for the tokenizer, which both share; with adapters (`lora`) it is the model itself without them.
"""

from typing import Any

from datasets import Dataset
from transformers import TrainingArguments

from ...data.arguments import DataArguments
from ...data.collators import PreferenceCollator
from ...data.conversations import IndexedRows
from ...data.sources import SOURCES
from ...data.world.icons import load_world
from ...data.world.preferences import WorldPreferences
from ..optimizers import optimizer_choice
from ..recipes import Recipe, num_samples
from ..time_box import time_box
from .stages import build_dataset, build_multimodal, lora_config, prepare_model, whole_weights
from .trainer import MultimodalTrainer, lend_tokenizer


try:
    from trl import DPOConfig, DPOTrainer
except ImportError:
    raise ImportError("the dpo stage trains with TRL: pip install 'evotok[train]'.") from None


# TRL reads rows of `datasets` alone, and sees by the columns of the first that there are images.
_FIRST_ROW = Dataset.from_dict({"images": [[]]})


class PreferenceTrainer(MultimodalTrainer, DPOTrainer):
    """`DPOTrainer` for `EvoTokForConditionalGeneration`, with what [`MultimodalTrainer`] does for images and streams.

    Any data set will do. Nothing is reported to TRL's authors.
    """

    compute_loss = DPOTrainer.compute_loss

    def __init__(self, *args, train_dataset, optimizer_cls_and_kwargs=None, **kwargs):
        super().__init__(*args, train_dataset=_FIRST_ROW, **kwargs)
        self.train_dataset, self.optimizer_cls_and_kwargs = train_dataset, optimizer_cls_and_kwargs

    def _send_telemetry(self):
        pass

    def create_model_card(self, *args, **kwargs):
        """None: TRL's is of a model of text, and `evotok export` writes one."""


def preference_arguments(recipe: Recipe, fields: dict[str, Any]) -> DPOConfig:
    """TRL's form of `TrainingArguments`; what a recipe leaves out is as in every other stage."""
    return DPOConfig(**{"bf16": False, "gradient_checkpointing": False} | vars(recipe.preference) | fields)


def train_preference(recipe: Recipe, arguments: TrainingArguments, resume_from: str | None) -> dict[str, float]:
    """Train as the recipe says; the finished model and its processor lie in `output_dir`. Returns the figures.

    Raises:
        ValueError: a recipe that starts from nothing, or from data without rejected answers.
    """
    if recipe.model.checkpoint is None:
        raise ValueError("model.checkpoint: preferences are learnt by a model that answers: give the stage before.")
    _check_data(recipe.data)
    data = reference = None
    if recipe.data.name == "world":
        world, mixture = load_world(recipe.data.path), recipe.data.mixture or None
        data = IndexedRows(WorldPreferences(world, num_samples(arguments), mixture, arguments.seed))
    with whole_weights(arguments):
        model, processor = build_multimodal(recipe)
        if not recipe.lora:
            reference, _ = build_multimodal(recipe)
    prepare_model(model, recipe)
    if reference is not None:
        prepare_model(reference, recipe)
        reference.requires_grad_(False).eval()
        # An engine would cast and shard a tokenizer of its own, which its codes would not survive.
        lend_tokenizer(reference.model, model.model.vq_model)
    collator = PreferenceCollator(processor, recipe.data.max_length, seed=arguments.seed)
    if data is None:
        data = build_dataset(recipe, arguments, collator, model.model.vq_model)
    trainer = PreferenceTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        callbacks=time_box(recipe, arguments),
        train_dataset=data,
        data_collator=collator,
        processing_class=processor,
        peft_config=lora_config(recipe) if recipe.lora else None,
        recipe=recipe,
        **optimizer_choice(recipe.optimizer, arguments),
    )
    result = trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_metrics("train", result.metrics)
    trainer.save_model()
    return {"step": result.global_step} | result.metrics


def _check_data(data: DataArguments) -> None:
    if data.name == "mixture":
        known = [name for name, source in SOURCES.items() if source.preferences]
        for source in data.sources:
            if source.source not in known:
                raise ValueError(
                    f"data.sources: {source.source!r} has no rejected answers: the dpo stage takes {', '.join(known)}."
                )
    elif data.name != "world":
        raise ValueError(f"data.name {data.name!r}: the dpo stage reads 'world' or a 'mixture' of preferences.")
