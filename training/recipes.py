"""Recipes: a YAML file per stage, checked against the dataclasses below, changed by `section.key=value` words.

stage: tokenizer            # vision | language | tokenizer | pretrain | sft | gen | unified | dpo
gpus: 16                    # that batch and steps are meant for
max_minutes: 3              # after which the stage ends, for machines that are lent by the minute
model: {...}                # fields of the model's config, or `checkpoint:` of the stage before
data: {...}                 # DataArguments
loss: {...}                 # TokenizerLossArguments (tokenizer stage)
preference: {...}           # PreferenceArguments (dpo stage)
optimizer: {...}            # OptimizerArguments
training: {...}             # transformers.TrainingArguments
"""

import reprlib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.arguments import DataArguments, SourceArguments, build_sources
from ..data.yaml_files import PLAIN, build_section, check_types, override, read_tree, refuse_unknown
from .multimodal.module_names import check_names
from .recipe_ranges import check_ranges
from .stages import STAGES
from .trainer_options import check_options


if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass
class ModelArguments:
    """What is trained."""

    checkpoint: str | None = None
    """Folder or hub id that training starts from: the stage before."""
    vq_checkpoint: str | None = None
    """Trained image tokenizer, where a multimodal model is built from its parts."""
    encoder_checkpoint: str | None = None
    """SigLIP2 checkpoint that the tokenizer's encoder starts from."""
    language_model_checkpoint: str | None = None
    """Causal language model, with its text tokenizer, that a multimodal model is built on."""
    text_tokenizer_size: int | None = None
    """Tokens of the byte-level BPE that is trained on the world's texts (language stage)."""
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
    """The discriminator learns, and is listened to, from this step on."""
    adversarial_adaptive: bool = False
    """Multiply `adversarial` by the ratio of the gradients that the other pixel losses and the adversarial one leave at
    the pixel decoder's last layer, as VQGAN does; the weight is fixed otherwise."""
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    discriminator_learning_rate: float = 1e-4
    """Its peak: schedule and warm-up are those of `training`, counted from `adversarial_start_step`."""
    semantic_folds: int = 1
    """Also compare the features in this many slices of their channels; 1 is the paper's plain cosine."""
    teacher: str = "siglip"
    """`siglip` (the frozen encoder checkpoint) or `efficientnet` (EfficientNet-Lite0, extra `mini`)."""
    teacher_share: float = 1.0
    """Share of each batch that the teacher looks at: it may cost more than the model."""
    perceptual_network: str = "lpips"
    """`lpips` or `efficientnet`."""


@dataclass
class PreferenceArguments:
    """How the better of two answers is learnt: fields of TRL's `DPOConfig`, under its names (dpo stage)."""

    beta: float = 0.1
    """How dear it is to move away from the model that training starts from."""
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid"])
    """`sigmoid` is DPO; also `ipo`, `hinge`, `bco_pair`, `sft` ..., and several of them at once."""
    loss_weights: list[float | int] | None = None
    """Of several; all count the same when left out."""


@dataclass
class OptimizerArguments:
    """How weights move; what both optimizers share (learning rate, betas, decay) is in `training`."""

    name: str = "trainer"
    """`trainer`: what `training.optim` says, AdamW by default. `muon`: Muon for matrices, AdamW for the rest; without
    DeepSpeed."""
    matrix_learning_rate: float = 0.02
    """Muon's step, on the same schedule as `training.learning_rate`."""
    encoder_scale: float = 1.0
    """Factor on the learning rates of the tokenizer's vision tower, whose weights are trained already (tokenizer stage,
    `muon`)."""
    average_decay: float = 0.0
    """Share that a moving average of all weights keeps of itself at each step: 0.9999 for long runs, 0.999 for some
    thousand steps, 0 for no average. Validation and the finished model are of the average (tokenizer stage)."""


@dataclass
class Recipe:
    """One stage of training, as read from its YAML file."""

    stage: str
    gpus: int = 1
    """Processes that batch, steps and learning rate are meant for. Any number trains; `evotok plan` takes this one, and
    says what another makes of a step."""
    max_minutes: float | int | None = None
    """Training ends with a save after so many minutes, the learning rate at its end; `training.max_steps` may end it
    before. On one process."""
    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    loss: TokenizerLossArguments = field(default_factory=TokenizerLossArguments)
    preference: PreferenceArguments = field(default_factory=PreferenceArguments)
    optimizer: OptimizerArguments = field(default_factory=OptimizerArguments)
    training: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)


def read_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, follow its `base:` files, apply overrides, and refuse every key that is not known.

    Args:
        path: YAML file.
        overrides: words like `training.max_steps=10`; the value is read as YAML.

    Raises:
        ValueError: no such file, not YAML, unknown key or stage; the message names file, key and mend.
    """
    from transformers import TrainingArguments

    tree = read_tree(Path(path))
    for word in overrides:
        override(tree, word)
    refuse_unknown(tree, (f.name for f in fields(Recipe)), str(path))
    if tree.get("stage") not in STAGES:
        raise ValueError(f"{path}: stage {reprlib.repr(tree.get('stage'))} is not one of {', '.join(STAGES)}.")
    sections = {
        "model": ModelArguments,
        "data": DataArguments,
        "loss": TokenizerLossArguments,
        "preference": PreferenceArguments,
        "optimizer": OptimizerArguments,
    }
    data = tree.get("data")
    if isinstance(data, dict) and "sources" in data:
        tree["data"] = data | {"sources": build_sources(data["sources"], str(path))}
    for name, cls in sections.items():
        tree[name] = build_section(cls, tree.get(name, {}), f"{path}: {name}")
    data = tree["data"]
    if tree["stage"] == "tokenizer" and data.name == "folder" and not data.sources:  # a mixture of one
        tree["data"] = replace(data, name="mixture", sources=[SourceArguments("image-folder", data.path)])
    if bool(tree["data"].sources) != (tree["data"].name == "mixture"):
        raise ValueError(f"{path}: data.name mixture and data.sources go together: give both or neither.")
    decay, validation = tree["optimizer"].average_decay, tree["data"].validation_path
    if not 0 <= decay < 1:
        raise ValueError(f"{path}: optimizer.average_decay {decay} is not in [0, 1): give 0.9999, or 0 for no average.")
    if tree["stage"] != "tokenizer" and (decay or validation):
        key = "optimizer.average_decay" if decay else "data.validation_path"
        raise ValueError(f"{path}: {key} is for the tokenizer stage, this is {tree['stage']}: remove it.")
    config = STAGES[tree["stage"]].load("config")
    refuse_unknown(tree["model"].config, (f.name for f in fields(config)), f"{path}: model.config")
    recipe = build_section(Recipe, tree, str(path))
    if recipe.gpus < 1:
        raise ValueError(f"{path}: gpus {recipe.gpus} is not at least 1: give the number that the batch is meant for.")
    if recipe.max_minutes is not None and not recipe.max_minutes > 0:
        raise ValueError(f"{path}: max_minutes {recipe.max_minutes} is not above 0: give minutes, or leave it out.")
    refuse_unknown(recipe.training, (f.name for f in fields(TrainingArguments)), f"{path}: training")
    plain = {f.name: f.type for f in fields(TrainingArguments) if f.type in (*PLAIN, bool | None)}
    check_types(recipe.training, plain, f"{path}: training")
    check_ranges(asdict(recipe), str(path))
    check_names(recipe.lora, f"{path}: lora")
    check_options(recipe, str(path))
    return recipe


def num_samples(arguments: "TrainingArguments") -> int:
    """Samples of an endless data set that all processes together take in `max_steps` steps.

    Raises:
        ValueError: no number of steps.
    """
    if arguments.max_steps < 1:
        raise ValueError(f"training.max_steps {arguments.max_steps}: set it, the embedded world has no end.")
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return arguments.max_steps * batch
