"""Plans a recipe on the meta device: parameters, memory, operations, days and bytes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ...data.sources import SOURCES
from ...modeling_evotok.configuration_evotok import EvoTokVQConfig
from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ..deepspeed_setup import read_engine, tokenizer_engine
from ..multimodal.stages import PARTS, freeze_all_but, trainable_parts
from ..recipes import Recipe, read_recipe
from ..stages import STAGES
from ..tokenizer.stage import restart_warning
from .configs import find_config, tokenizer_fields
from .gpus import GPUS_A_NODE, Gpu
from .memory import Memory, Sharding, checkpoint_bytes, communication, estimate
from .profile import (
    ATTENTION,
    BatchShape,
    Profile,
    count_flops,
    encoding_flops,
    profile_step,
    run_multimodal,
    run_tokenizer,
    search_flops,
)


# Average tokens of a row, beside its images, and how many of them are targets.
TEXT_TOKENS = {"understanding": (160, 100), "generation": (60, 2)}
_TOKENIZER = "image tokenizer"
_TOKENIZER_PARTS = {
    "encoder": "vision_tower",
    "to_latent": "to_latent",
    "codebooks": "quantizer",
    "pixel_decoder": "pixel_decoder",
    "semantic_decoder": "semantic_decoder",
}


class ModelPlan(NamedTuple):
    """Plan of a model that a stage trains, independent of the GPUs."""

    parts: dict[str, tuple[int, int]]
    """Parameters of each part, and how many of them are trained."""
    profiles: dict[bool, Profile]
    """Without and with activation checkpointing."""
    flops_a_row: float
    tokens_a_row: float
    hidden_size: int
    vq_config: EvoTokVQConfig
    zero_stages: tuple[int | None, ...] = (0, 1, 2, 3)
    """Stages of ZeRO that can train the model, None for none."""
    autocast: bool = False
    """Whether weights stay in fp32 under DeepSpeed."""
    rounded: int = 0
    """Parameters that are kept in half precision without an engine, beside adapters."""
    warning: str | None = None
    """What would prevent learning."""


@dataclass
class Plan:
    """Plan of a recipe on a number of GPUs of a kind; bytes unless stated otherwise.

    `memory` is by (checkpointing, ZeRO stage or None), on one GPU; `batch` is the number of rows of a step on all
    GPUs, `recipe_batch` that on as many as the recipe is written for, without overrides; `steps` is None where the
    recipe counts epochs; `bucket` is the number of elements that DeepSpeed reduces at once.
    """

    recipe: Recipe
    model: ModelPlan
    gpu: Gpu
    gpus: int
    mfu: float
    stage: int | None
    offload: bool
    bucket: int
    checkpointing: bool
    batch: int
    recipe_batch: int
    steps: int | None
    memory: dict[tuple[bool, int | None], Memory] = field(default_factory=dict)

    def __post_init__(self):
        counts, sources = self.model.parts.values(), self.recipe.data.sources
        self.parameters, self.trainable = (sum(numbers) for numbers in zip(*counts, strict=True))
        self.ema_bytes = 4.0 * self.parameters if self.recipe.optimizer.average_decay else 0.0
        sources = [SOURCES[source.source] for source in sources if source.source in SOURCES]
        self.dataset_bytes = sum(source.num_bytes for source in sources)
        codes = self.model.vq_config.num_positions * self.model.vq_config.num_pixel_codebooks
        self.code_bytes = 2 * codes * sum(source.num_rows for source in sources if source.task == "generation")
        for checkpointing in (False, True):
            for stage in dict.fromkeys((self.stage, *self.model.zero_stages)):  # that of the recipe comes first
                self.memory[checkpointing, stage] = self.memory_on(self.gpus, stage, checkpointing)

    def _outside(self, stage: int | None) -> int:
        """Returns the parameters outside of DeepSpeed: those of a frozen image tokenizer."""
        return self.model.parts.get(_TOKENIZER, (0, 0))[0] if stage is not None else 0

    def _sharding(self, gpus: int, stage: int | None) -> Sharding:
        return Sharding(
            parameters=self.parameters - self._outside(stage),
            trainable=self.trainable,
            width=2 if _is_half(self.recipe) else 4,
            stage=stage,
            processes=gpus,
            bucket=self.bucket or self.model.hidden_size**2,  # the Trainer's choice
            offload=self.offload,
            autocast=self.model.autocast,
        )

    def memory_on(self, gpus: int, stage: int | None, checkpointing: bool) -> Memory:
        """Returns the memory on one of a number of GPUs."""
        sharding = self._sharding(gpus, stage)
        memory = estimate(sharding, self.model.profiles[checkpointing])
        outside = 4.0 * self._outside(stage)
        if stage is None:  # they are neither in fp32 nor copied
            outside -= 4.0 * self.model.rounded
        if STAGES[self.recipe.stage].compares_answers and not self.recipe.lora:  # the reference, which shares it
            tokenizer, _ = self.model.parts[_TOKENIZER]
            width = 4 if stage is None else sharding.width
            outside += width * (self.parameters - tokenizer) / (gpus if stage == 3 else 1)
        return memory._replace(weights=memory.weights + outside + self.ema_bytes)

    def seconds_a_step(self, gpus: int, stage: int | None) -> tuple[float, float]:
        """Returns seconds of computing, at the MFU of the plan, and of sending, for one step on a number of GPUs."""
        computing = self.batch / self.gpus * self.model.flops_a_row / (self.gpu.flops * self.mfu)
        bandwidth = self.gpu.node_bandwidth if gpus <= GPUS_A_NODE else self.gpu.network_bandwidth
        rounds = self.recipe.training.get("gradient_accumulation_steps", 1) if stage in (2, 3) else 1
        return computing, self.sent_a_step(gpus, stage) * rounds / bandwidth

    def sent_a_step(self, gpus: int, stage: int | None) -> float:
        """Returns the bytes that each of a number of GPUs sends for one batch of its own."""
        sharding = self._sharding(gpus, stage)
        # The reference of preferences is evaluated as well: another model, or this one without its adapters.
        forwards = 2 if STAGES[self.recipe.stage].compares_answers else 1
        return communication(sharding.parameters, self.trainable, stage or 0, gpus, sharding.kept_width, forwards)

    @property
    def checkpoint_bytes(self) -> float:
        """Returns the bytes of one checkpoint, with the EMA of the weights."""
        sharding = self._sharding(self.gpus, self.stage)
        return checkpoint_bytes(sharding, self._outside(self.stage), adapters=bool(self.recipe.lora)) + self.ema_bytes

    def days(self, gpus: int) -> float | None:
        """Returns days for the rows of the recipe: computing and sending overlap, the longer one counts."""
        if self.steps is None:
            return None
        return self.steps * self.gpus / gpus * max(self.seconds_a_step(gpus, self.stage)) / 86400


def make_plan(
    path: str | Path,
    overrides: list[str],
    gpus: int | None,
    gpu: Gpu,
    mfu: float,
    measured: BatchShape | None = None,
) -> Plan:
    """Plans a recipe.

    Args:
        gpus: number of GPUs; that of the recipe when None.
        measured: as in [`plan_multimodal`], of a multimodal stage.

    Raises:
        ValueError: as [`read_recipe`]; a stage that is not planned; a checkpoint to start from that is neither there
            nor written by a recipe beside it.
    """
    recipe, as_written = read_recipe(path, overrides), read_recipe(path)
    stage, training, gpus = STAGES[recipe.stage], recipe.training, gpus or recipe.gpus
    if stage.plan is None:
        raise ValueError(f"{path}: the stage {recipe.stage} takes minutes: plan another stage.")
    zero_stage, offload, bucket = None, False, 0
    if training.get("deepspeed"):
        zero = read_engine(training["deepspeed"])["zero_optimization"]
        zero_stage, offload = zero["stage"], "offload_optimizer" in zero
        bucket = zero.get("reduce_bucket_size", 500_000_000)
    batch = training.get("per_device_train_batch_size", 8)
    return Plan(
        recipe,
        stage.load("plan")(recipe, Path(path), batch, gpus, **({} if measured is None else {"measured": measured})),
        gpu,
        gpus,
        mfu,
        stage=zero_stage,
        offload=offload,
        bucket=0 if bucket == "auto" else int(bucket),
        checkpointing=bool(training.get("gradient_checkpointing")),
        batch=_rows_a_step(recipe, gpus),
        recipe_batch=_rows_a_step(as_written, as_written.gpus),
        steps=training["max_steps"] if training.get("max_steps", -1) > 0 else None,
    )


def _rows_a_step(recipe: Recipe, gpus: int) -> int:
    training = recipe.training
    return training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1) * gpus


def _is_half(recipe: Recipe) -> bool:
    return bool(recipe.training.get("bf16") or recipe.training.get("fp16"))


def _count(module: nn.Module) -> tuple[int, int]:
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def plan_tokenizer(recipe: Recipe, path: Path, batch: int, gpus: int) -> ModelPlan:
    """Plans the tokenizer stage.

    Args:
        path: of the recipe, beside which the recipes of other stages are.
        batch: images of one GPU in a forward pass.
        gpus: that the codebooks count their uses on.
    """
    if recipe.training.get("deepspeed"):
        tokenizer_engine(recipe.training)  # refuses what training would refuse
    with torch.device("meta"):
        model = EvoTokVQModel(EvoTokVQConfig(**tokenizer_fields(recipe, path)))
    model.set_attn_implementation(ATTENTION)
    # The teacher, an encoder of its own, encodes its share of the images as well.
    teacher = recipe.loss.teacher_share if recipe.loss.semantic else 0.0
    return ModelPlan(
        parts={name: _count(model.get_submodule(part)) for name, part in _TOKENIZER_PARTS.items()},
        profiles={on: profile_step(model, lambda _: run_tokenizer(model, batch), on) for on in (False, True)},
        flops_a_row=(
            count_flops(model, lambda _: run_tokenizer(model, 1))
            + search_flops(model.config)
            + teacher * encoding_flops(model, with_search=False)
        ),
        tokens_a_row=model.config.num_positions,
        hidden_size=model.config.hidden_size,
        vq_config=model.config,
        zero_stages=(None, 1, 2),
        autocast=True,
        warning=restart_warning(model.config, batch * gpus),
    )


def plan_multimodal(recipe: Recipe, path: Path, batch: int, gpus: int, measured: BatchShape | None = None) -> ModelPlan:
    """Plans a multimodal stage.

    Args:
        path: of the recipe, beside which the recipes of other stages are.
        batch: rows of one GPU in a forward pass.
        gpus: not used: a row's plan does not depend on their number.
        measured: a batch whose operations and tokens are counted, in place of average rows of each task.
    """
    config, rounded = find_config(recipe, path), 0
    with torch.device("meta"):
        model = inner = EvoTokForConditionalGeneration(config)
        freeze_all_but(inner, trainable_parts(recipe))
        counted = {_TOKENIZER: inner.model.vq_model} | {
            name.replace("_", " "): inner.get_submodule(part) for name, part in PARTS.items()
        }
        if recipe.lora:
            from ..multimodal.lora import add_adapters, frozen_matrices

            model = add_adapters(inner, recipe.lora, trainable_parts(recipe))
            if recipe.training.get("bf16") and not STAGES[recipe.stage].compares_answers:
                rounded = sum(p.numel() for module in frozen_matrices(model) for p in module.parameters())
    parts = _count_parts(model, counted, bool(recipe.lora))
    if _is_half(recipe):
        model.to(torch.bfloat16)
    vq_model = inner.model.vq_model
    for part in (inner.model.language_model, inner.depth_decoder, vq_model):
        part.set_attn_implementation(ATTENTION)
    model.train()

    positions, shares = config.vq_config.num_positions, task_shares(recipe)
    answers = 2 if STAGES[recipe.stage].compares_answers else 1  # of a row
    flops_a_row = tokens_a_row = 0.0
    shapes = [(share, _average_row(task, positions)) for task, share in shares.items()]
    encoding = 0.0 if _from_codes(recipe) else encoding_flops(vq_model.float())
    for share, rows in shapes if measured is None else [(1 / measured.batch, measured)]:
        flops = count_flops(model, lambda _, rows=rows: run_multimodal(inner, rows))
        if answers == 2:  # the reference evaluates both answers, too
            flops += count_flops(model, lambda _, rows=rows: run_multimodal(inner, rows), backward=False)
        flops_a_row += share * answers * flops
        tokens_a_row += share * answers * rows.batch * rows.length
        flops_a_row += share * answers * (rows.input_images + rows.generated_images) * encoding

    # Memory is for the largest batch: every row of the maximum length, all its text as targets. It is an upper bound
    # for preferences, since TRL computes the scores by tiles of the vocabulary.
    length, batch = max(recipe.data.max_length, positions + 2), answers * batch
    largest = [
        BatchShape(batch, length, length - positions if task == "understanding" else 2, inputs, batch - inputs)
        for task, inputs in (("understanding", batch), ("generation", 0))
        if task in shares
    ]
    profiles = {}
    for on in (False, True):
        peaks = [profile_step(model, lambda _, rows=rows: run_multimodal(inner, rows), on) for rows in largest]
        profiles[on] = Profile(max(peak.released for peak in peaks), max(peak.held for peak in peaks))
    width = config.text_config.hidden_size
    return ModelPlan(parts, profiles, flops_a_row, tokens_a_row, width, config.vq_config, rounded=rounded)


def _average_row(task: str, positions: int) -> BatchShape:
    """Returns one row of average length of a task, `understanding` or `generation`."""
    text, labels = TEXT_TOKENS[task]
    return BatchShape(1, positions + text, labels, int(task == "understanding"), int(task == "generation"))


def _count_parts(model: nn.Module, counted: dict[str, nn.Module], lora: bool) -> dict[str, tuple[int, int]]:
    """Counts parameters by part; each once, where weights are tied; adapters, and PEFT's trained copies, apart."""
    parts, seen = {}, set()
    for name, module in counted.items():
        own = [p for n, p in module.named_parameters() if id(p) not in seen and "lora_" not in n]
        seen |= {id(p) for p in own}
        parts[name] = sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)
    if lora:
        rest = [p for p in model.parameters() if id(p) not in seen]
        parts["adapters and copies"] = sum(p.numel() for p in rest), sum(p.numel() for p in rest if p.requires_grad)
    return parts


def task_shares(recipe: Recipe) -> dict[str, float]:
    """Returns the shares of the rows by task, `understanding` and `generation`."""
    if recipe.data.name != "mixture":
        return dict(STAGES[recipe.stage].tasks)
    weights: dict[str, float] = {}
    for entry in recipe.data.sources:
        source = SOURCES.get(entry.source)
        task = "understanding" if source and source.task == "understanding" else "generation"
        weight = entry.weight or (source.weight if source else 1.0)
        weights[task] = weights.get(task, 0.0) + weight
    total = sum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


def _from_codes(recipe: Recipe) -> bool:
    return recipe.data.name == "mixture" and all(source.source == "codes" for source in recipe.data.sources)
