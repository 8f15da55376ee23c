"""The registry of training stages.

A stage is one entry here and one module. Recipes, `evotok train`, `evotok plan` and the documents read the registry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


_PROJECTOR = ("semantic_projector",)
_LANGUAGE_MODEL = ("language_model", "lm_head")
_DEPTH_DECODER = ("pixel_projector", "depth_decoder")
_EVOTOK_CONFIG = ".modeling_evotok.configuration_evotok:EvoTokConfig"
_MULTIMODAL = ".training.multimodal.stages:train_multimodal"
_PLAN_MULTIMODAL = ".training.planning.plan:plan_multimodal"
_EXPORT = "evotok export {folder} --out DIR"


@dataclass(frozen=True)
class Stage:
    """One kind of training.

    References are written `module:name`, and a module that starts with a dot is one of this package. They are resolved
    by [`Stage.load`] when they are needed, because most stages import libraries that others do without.
    """

    name: str
    """As in the field `stage` of a recipe."""
    run: str
    """Function `(recipe, arguments, resume_from) -> figures` that trains and saves."""
    config: str = _EVOTOK_CONFIG
    """Config class that `model.config` of a recipe holds fields of."""
    arguments: str = ".training.train:plain_arguments"
    """Function `(recipe, fields) -> TrainingArguments`."""
    plan: str | None = _PLAN_MULTIMODAL
    """Function that `evotok plan` counts parameters, memory and operations by; None for a training of minutes."""
    trainable: tuple[str, ...] = ()
    """Parts of `EvoTokForConditionalGeneration` that learn unless `model.trainable` names others."""
    tasks: Mapping[str, float] = field(default_factory=dict)
    """Share of the rows by task, `understanding` and `generation`, where the data do not state it."""
    of_images: bool = False
    """Whether rows are images without texts."""
    compares_answers: bool = False
    """Whether a row has two answers, which a frozen reference model reads, too."""
    following: str = ""
    """What is usually done with the result, with `{folder}` in place of it."""

    def load(self, name: str) -> Any:
        """Imports what the field `name` refers to."""
        module, _, attribute = getattr(self, name).partition(":")
        package = __package__.removesuffix(".training") if module.startswith(".") else None
        return getattr(import_module(module, package), attribute)


_ALL = (
    Stage(
        "vision",
        run=".training.backbones.vision:train_vision",
        config="transformers:SiglipVisionConfig",
        plan=None,
        of_images=True,
        following="train the stage tokenizer with model.encoder_checkpoint={folder}",
    ),
    Stage(
        "language",
        run=".training.backbones.language:train_language",
        config="transformers:Qwen2Config",
        plan=None,
        following="train the stage pretrain with model.language_model_checkpoint={folder}",
    ),
    Stage(
        "tokenizer",
        run=".training.tokenizer.stage:train_tokenizer",
        config=".modeling_evotok.configuration_evotok:EvoTokVQConfig",
        arguments=".training.tokenizer.stage:tokenizer_arguments",
        plan=".training.planning.plan:plan_tokenizer",
        of_images=True,
        following="evotok eval reconstruction {folder}",
    ),
    Stage(
        "pretrain",
        run=_MULTIMODAL,
        trainable=_PROJECTOR,
        tasks={"understanding": 1.0},
        following="train the stage sft with model.checkpoint={folder}",
    ),
    Stage(
        "sft",
        run=_MULTIMODAL,
        trainable=_PROJECTOR + _LANGUAGE_MODEL,
        tasks={"understanding": 1.0},
        following="evotok chat {folder}",
    ),
    Stage(
        "gen",
        run=_MULTIMODAL,
        trainable=_DEPTH_DECODER + _LANGUAGE_MODEL,
        tasks={"generation": 1.0},
        following=_EXPORT,
    ),
    Stage(
        "unified",
        run=_MULTIMODAL,
        trainable=_PROJECTOR + _DEPTH_DECODER + _LANGUAGE_MODEL,
        tasks={"understanding": 0.5, "generation": 0.5},
        following=_EXPORT,
    ),
    Stage(
        "dpo",
        run=".training.multimodal.preferences:train_preference",
        arguments=".training.multimodal.preferences:preference_arguments",
        trainable=_PROJECTOR + _LANGUAGE_MODEL,
        tasks={"understanding": 1.0},
        compares_answers=True,
        following=_EXPORT,
    ),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _ALL}
