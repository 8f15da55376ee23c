"""The registry of training stages.

A stage is one entry here and one module. Recipes, `evotok train`, `evotok plan`, the chain and the documents read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


_PROJECTOR = ("semantic_projector",)
_LANGUAGE_MODEL = ("language_model", "lm_head")
_DEPTH_DECODER = ("pixel_projector", "depth_decoder")
_EVOTOK_CONFIG = ".modeling_evotok.configuration_evotok:EvoTokConfig"
_EXPORT = "evotok export {folder} --out DIR"


@dataclass(frozen=True)
class Stage:
    """One kind of training.

    References are written `module:name`, and a module that starts with a dot is one of this package. They are resolved
    by [`Stage.load`] when they are needed, because most stages import libraries that the others do not need.
    """

    name: str
    """As in the field `stage` of a recipe."""
    summary: tuple[str, str]
    """What is trained and on which data, for the documents."""
    build: str = ".training.multimodal.stages:build_trainer"
    """Function `(recipe, arguments) -> EvoTokTrainer`."""
    config: str = _EVOTOK_CONFIG
    """Config class that `model.config` of a recipe holds fields of."""
    arguments: str = ".training.train:default_arguments"
    """Function `(recipe, fields) -> TrainingArguments`."""
    plan: str | None = ".training.planning.plan:plan_multimodal"
    """Function `(recipe, path, batch, gpus) -> ModelPlan` of `evotok plan`; None for a training of minutes."""
    data: tuple[str, ...] = ("world", "llava", "mixture")
    """Values of `data.name` that the stage reads."""
    own_keys: tuple[str, ...] = ()
    """Keys of a recipe that the other stages refuse."""
    chain: tuple[str, ...] = ()
    """Names of the stage's recipes in a chain, in the order of training."""
    trainable: tuple[str, ...] = ()
    """Parts of `EvoTokForConditionalGeneration` that are trained unless `model.trainable` names others."""
    tasks: Mapping[str, float] = field(default_factory=dict)
    """Share of the rows by task, `understanding` and `generation`, where the data do not state it."""
    reads_images: bool = False
    """Whether rows are images without texts."""
    has_discriminator: bool = False
    """Whether `loss.adversarial` trains a discriminator."""
    compares_answers: bool = False
    """Whether a row has two answers, which a frozen reference model evaluates, too."""
    next_step: str = ""
    """What is usually done with the result, with `{folder}` in place of it."""

    @property
    def is_multimodal(self) -> bool:
        """Returns whether the stage trains `EvoTokForConditionalGeneration`, and not one of its parts."""
        return self.config == _EVOTOK_CONFIG

    def load(self, name: str) -> Any:
        """Imports what the field `name` refers to."""
        module, _, attribute = getattr(self, name).partition(":")
        package = (__package__ or "").removesuffix(".training") if module.startswith(".") else None
        return getattr(import_module(module, package), attribute)


_ALL = (
    Stage(
        "vision",
        ("a small vision tower in place of SigLIP2", "labelled scenes of the embedded world"),
        build=".training.backbones.vision:build_trainer",
        config="transformers:SiglipVisionConfig",
        plan=None,
        data=("world",),
        chain=("vision-shapes", "vision"),
        reads_images=True,
        next_step="train the stage tokenizer with model.encoder_checkpoint={folder}",
    ),
    Stage(
        "language",
        ("a small language model, with its BPE, in place of Qwen2.5", "texts of the embedded world"),
        build=".training.backbones.language:build_trainer",
        config="transformers:Qwen2Config",
        plan=None,
        data=("world",),
        chain=("language",),
        next_step="train the stage pretrain with model.language_model_checkpoint={folder}",
    ),
    Stage(
        "tokenizer",
        ("encoder, codebooks, both decoders", "images"),
        build=".training.tokenizer.stage:build_trainer",
        config=".modeling_evotok.configuration_evotok:EvoTokVQConfig",
        arguments=".training.tokenizer.stage:tokenizer_arguments",
        plan=".training.planning.plan:plan_tokenizer",
        data=("world", "folder", "mixture"),
        own_keys=("optimizer.average_decay", "data.validation_path"),
        chain=("tokenizer",),
        reads_images=True,
        has_discriminator=True,
        next_step="evotok eval reconstruction {folder}",
    ),
    Stage(
        "pretrain",
        ("the semantic projector", "questions about images"),
        chain=("pretrain",),
        trainable=_PROJECTOR,
        tasks={"understanding": 1.0},
        next_step="train the stage sft with model.checkpoint={folder}",
    ),
    Stage(
        "sft",
        ("semantic projector and language model", "more kinds of questions"),
        chain=("sft-keywords", "sft", "sft-places"),
        trainable=_PROJECTOR + _LANGUAGE_MODEL,
        tasks={"understanding": 1.0},
        next_step="evotok chat {folder}",
    ),
    Stage(
        "gen",
        ("pixel projector, depth decoder, language model", "prompts and their images"),
        chain=("gen-single", "gen", "gen-counts"),
        trainable=_DEPTH_DECODER + _LANGUAGE_MODEL,
        tasks={"generation": 1.0},
        next_step=_EXPORT,
    ),
    Stage(
        "unified",
        ("all but the tokenizer", "both at once, in place of `sft` and `gen`"),
        trainable=_PROJECTOR + _DEPTH_DECODER + _LANGUAGE_MODEL,
        tasks={"understanding": 0.5, "generation": 0.5},
        next_step=_EXPORT,
    ),
    Stage(
        "dpo",
        ("semantic projector and language model", "pairs of answers, one better than the other"),
        build=".training.multimodal.preferences:build_trainer",
        arguments=".training.multimodal.preferences:preference_arguments",
        data=("world", "mixture"),
        trainable=_PROJECTOR + _LANGUAGE_MODEL,
        tasks={"understanding": 1.0},
        compares_answers=True,
        next_step=_EXPORT,
    ),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _ALL}
