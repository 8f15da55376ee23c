"""The stage dpo: preference optimization by TRL's `DPOTrainer` (Rafailov et al., 2023).

Training starts from a model that answers questions, and a frozen copy of it is the reference: a second model in memory
that shares the image tokenizer. With adapters (`lora`) the reference is the same model without them.
"""

from typing import Any

from datasets import Dataset
from transformers import TrainingArguments

from ...data.collators import PreferenceCollator
from ..deepspeed_setup import unsharded_weights
from ..recipes import Recipe
from .stages import build_dataset, build_multimodal, prepare_model, trainable_parts
from .trainer import MultimodalTrainer, share_tokenizer


try:
    from trl import DPOConfig, DPOTrainer
except ImportError:
    raise ImportError("the dpo stage trains with TRL: pip install 'evotok[train]'.") from None


# TRL accepts only data sets of `datasets`, and detects images by the columns of the first row.
_FIRST_ROW = Dataset.from_dict({"images": [[]]})


class PreferenceTrainer(MultimodalTrainer, DPOTrainer):
    """`DPOTrainer` for `EvoTokForConditionalGeneration`, with the images and streams of [`MultimodalTrainer`].

    Any data set is accepted. No telemetry is sent.
    """

    compute_loss = DPOTrainer.compute_loss  # pyright: ignore[reportAssignmentType]  # that of the second base

    def __init__(self, *args, train_dataset, **kwargs):
        super().__init__(*args, train_dataset=_FIRST_ROW, **kwargs)
        self.train_dataset = train_dataset

    def _send_telemetry(self):
        pass

    def create_model_card(self, *args, **kwargs):
        """Writes no card: TRL's describes a model of text, and `evotok export` writes one."""


def preference_arguments(recipe: Recipe, fields: dict[str, Any]) -> DPOConfig:
    """Builds TRL's form of `TrainingArguments`; its defaults are those of every other stage."""
    defaults: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False}
    return DPOConfig(**defaults | vars(recipe.preference) | fields)


def build_trainer(recipe: Recipe, arguments: TrainingArguments) -> PreferenceTrainer:
    """Builds the trainer of this stage.

    Raises:
        ValueError: a recipe without `model.checkpoint`.
    """
    if recipe.model.checkpoint is None:
        raise ValueError("model.checkpoint: the dpo stage starts from a model that answers: give the stage before.")
    adapters = reference = None
    with unsharded_weights(arguments):
        model, processor = build_multimodal(recipe)
        if not recipe.lora:
            reference, _ = build_multimodal(recipe)
    prepare_model(model, recipe)
    if reference is None:
        from .lora import adapter_config

        adapters = adapter_config(recipe.lora, trainable_parts(recipe))
    else:
        prepare_model(reference, recipe)
        reference.requires_grad_(False).eval()
        # DeepSpeed would cast and shard a tokenizer of its own, which would change the codes.
        share_tokenizer(reference.model, model.model.vq_model)
    collator = PreferenceCollator(processor, recipe.data.max_length, seed=arguments.seed)
    return PreferenceTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        recipe=recipe,
        train_dataset=build_dataset(recipe, arguments, collator, model.model.vq_model),
        data_collator=collator,
        processing_class=processor,
        peft_config=adapters,
    )
