"""Recipes: a YAML file per stage, checked against the dataclasses below, with overrides `section.key=value`.

stage: tokenizer            # a name of `training/stages.py`
gpus: 16                    # that batch and steps are meant for
max_minutes: 3              # after which the stage ends, for machines that are rented by the minute
model: {...}                # fields of the model's config, or `checkpoint:` of the stage before
data: {...}                 # DataArguments
loss: {...}                 # TokenizerLossArguments (tokenizer stage)
preference: {...}           # PreferenceArguments (dpo stage)
optimizer: {...}            # OptimizerArguments
training: {...}             # transformers.TrainingArguments
processor: {...}            # arguments of EvoTokProcessor, where one is built
lora: {...}                 # fields of PEFT's LoraConfig; without them no adapters
"""

import reprlib
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..data.arguments import DataArguments, SourceArguments, build_sources
from ..data.yaml_files import PLAIN, build_section, check_types, override, read_tree, refuse_unknown
from .recipe_checks import check_module_names, check_options, check_ranges
from .stages import STAGES


if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass
class ModelArguments:
    """The model and what training starts from."""

    checkpoint: str | None = None
    """Folder or hub id that training starts from: the stage before."""
    vq_checkpoint: str | None = None
    """Trained image tokenizer, where a multimodal model is built from its parts."""
    encoder_checkpoint: str | None = None
    """SigLIP2 checkpoint that the tokenizer's encoder starts from."""
    language_model_checkpoint: str | None = None
    """Causal language model, with its text tokenizer, that a multimodal model is built on."""
    text_tokenizer_size: int | None = None
    """Number of tokens of the byte-level BPE that is trained on the world's texts (language stage)."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields that differ from the default: of `SiglipVisionConfig` (vision stage), `Qwen2Config` (language stage),
    `EvoTokVQConfig` (tokenizer stage) or `EvoTokConfig`."""
    variant: str | None = None
    """Another arrangement of the tokenizer, for ablations: `reversed`, `layers` or `branches`."""
    attn_implementation: str | None = None
    """Attention of language model and depth decoder: `sdpa` by default, `flash_attention_2` where it is installed;
    `eager` is the fastest for short rows on a CPU."""
    trainable: list[str] = field(default_factory=list)
    """Names of the parts that are trained; the rest is frozen. The stage's own default when empty."""


@dataclass
class TokenizerLossArguments:
    """Terms of Eq. 5 to 7 and their weights."""

    reconstruction: float = 1.0
    perceptual: float = 1.0
    adversarial: float = 0.5
    semantic: float = 1.0
    commitment: float = 1.0
    adversarial_start_step: int = 20000
    """First step that trains the discriminator and weights its loss."""
    adversarial_adaptive: bool = False
    """Multiply `adversarial` by the ratio of the gradients of the other pixel losses and of the adversarial one at the
    pixel decoder's last layer, as VQGAN does; the weight is fixed otherwise."""
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    discriminator_learning_rate: float = 1e-4
    """Its peak: schedule and warm-up are those of `training`, counted from `adversarial_start_step`."""
    semantic_folds: int = 1
    """Also compare the features in this many slices of their channels; 1 is the paper's plain cosine."""
    teacher: str = "siglip"
    """`siglip` (the frozen encoder checkpoint) or `efficientnet` (EfficientNet-Lite0, extra `mini`)."""
    teacher_share: float = 1.0
    """Share of each batch that the teacher and the perceptual network evaluate: they may cost more than the model."""
    perceptual_network: str = "lpips"
    """`lpips` or `efficientnet`."""


@dataclass
class PreferenceArguments:
    """Preference optimization: fields of TRL's `DPOConfig`, under its names (dpo stage)."""

    beta: float = 0.1
    """Weight of the divergence from the model that training starts from."""
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid"])
    """`sigmoid` is DPO; also `ipo`, `hinge`, `bco_pair`, `sft` ..., and several of them at once."""
    loss_weights: list[float | int] | None = None
    """Weights of several loss types; all are equal when left out."""


@dataclass
class OptimizerArguments:
    """The optimizer; what both share (learning rate, betas, decay) is in `training`."""

    name: str = "trainer"
    """`trainer`: that of `training.optim`, AdamW by default. `muon`: Muon for matrices, AdamW for the rest; without
    DeepSpeed."""
    matrix_learning_rate: float = 0.02
    """Learning rate of Muon, on the same schedule as `training.learning_rate`."""
    encoder_scale: float = 1.0
    """Factor on the learning rates of the tokenizer's vision tower, whose weights are trained already (tokenizer stage,
    `muon`)."""
    average_decay: float = 0.0
    """Decay of an EMA of all weights at each step: 0.9999 for long runs, 0.999 for some thousand steps, 0 for no EMA.
    Validation and the finished model use the EMA (tokenizer stage)."""


@dataclass
class Recipe:
    """One stage of training, as read from its YAML file."""

    stage: str
    gpus: int = 1
    """Number of processes that batch, steps and learning rate are meant for. Any number can train; `evotok plan` starts
    from this one, and reports how another changes a step."""
    max_minutes: float | int | None = None
    """Training ends with a checkpoint after so many minutes, the learning rate at its end, or before by
    `training.max_steps`. On one process."""
    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    loss: TokenizerLossArguments = field(default_factory=TokenizerLossArguments)
    preference: PreferenceArguments = field(default_factory=PreferenceArguments)
    optimizer: OptimizerArguments = field(default_factory=OptimizerArguments)
    training: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)


def read_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe, merges it over its `base:` files, applies overrides, and refuses every unknown key.

    Args:
        path: YAML file.
        overrides: such as `training.max_steps=10`; the value is read as YAML.

    Raises:
        ValueError: no such file, not YAML, unknown key or stage, or a value that has no effect or is out of range.
    """
    tree = read_tree(Path(path))
    for word in overrides:
        override(tree, word)
    refuse_unknown(tree, (f.name for f in fields(Recipe)), str(path))
    if tree.get("stage") not in list(STAGES):  # perhaps no word
        raise ValueError(f"{path}: stage {reprlib.repr(tree.get('stage'))} is not one of {', '.join(STAGES)}.")
    data = tree.get("data")
    if isinstance(data, dict) and "sources" in data:
        tree["data"] = data | {"sources": build_sources(data["sources"], str(path))}
    for section in fields(Recipe):
        if is_dataclass(section.default_factory):
            values = tree.get(section.name, {})
            tree[section.name] = build_section(section.default_factory, values, f"{path}: {section.name}")
    data = cast(DataArguments, tree["data"])
    if data.name == "folder" and "folder" in STAGES[tree["stage"]].data and not data.sources:  # a mixture of one
        tree["data"] = replace(data, name="mixture", sources=[SourceArguments("image-folder", data.path)])
    recipe = build_section(Recipe, tree, str(path))
    _check_recipe(recipe, str(path))
    return recipe


def _check_recipe(recipe: Recipe, where: str) -> None:
    from transformers import TrainingArguments

    stage, decay = STAGES[recipe.stage], recipe.optimizer.average_decay
    if recipe.gpus < 1:
        raise ValueError(f"{where}: gpus {recipe.gpus} is not at least 1: give the number that the batch is meant for.")
    if recipe.max_minutes is not None and not recipe.max_minutes > 0:
        raise ValueError(f"{where}: max_minutes {recipe.max_minutes} is not above 0: give minutes, or leave it out.")
    if bool(recipe.data.sources) != (recipe.data.name == "mixture"):
        raise ValueError(f"{where}: data.name mixture and data.sources go together: give both or neither.")
    if not 0 <= decay < 1:
        raise ValueError(f"{where}: optimizer.average_decay {decay} is not in [0, 1): give 0.9999, or 0 for no EMA.")
    for other in STAGES.values():
        for section, _, name in (key.partition(".") for key in other.own_keys if key not in stage.own_keys):
            if getattr(getattr(recipe, section), name):
                raise ValueError(
                    f"{where}: {section}.{name} is for the stage {other.name}, this is {stage.name}: remove it."
                )
    refuse_unknown(recipe.model.config, (f.name for f in fields(stage.load("config"))), f"{where}: model.config")
    refuse_unknown(recipe.training, (f.name for f in fields(TrainingArguments)), f"{where}: training")
    plain = {f.name: f.type for f in fields(TrainingArguments) if f.type in (*PLAIN, bool | None)}
    check_types(recipe.training, plain, f"{where}: training")
    check_ranges(asdict(recipe), where)
    check_module_names(recipe.lora, f"{where}: lora")
    check_options(recipe, where)


def num_rows(arguments: "TrainingArguments") -> int:
    """Returns the number of rows that all processes together read from endless data in `max_steps` steps."""
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return arguments.max_steps * batch
