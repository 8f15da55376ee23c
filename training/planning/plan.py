"""Reads a recipe and says what it will take, on the meta device."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, Qwen2Config, SiglipVisionConfig

from ...data.sources import SOURCES
from ...modeling_evotok.configuration_evotok import EvoTokConfig, EvoTokVQConfig
from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ..backbones.language import VOCAB_SIZE, padded_rows
from ..deepspeed_configs import in_full_precision, read_engine
from ..multimodal.stages import PARTS, add_lora, freeze_all_but, trainable_parts
from ..recipes import Recipe, read_recipe
from ..stages import STAGES
from ..tokenizer.codebook_restarts import restart_warning
from .gpus import GPUS_A_NODE, Gpu
from .memory import Engine, Memory, checkpoint_bytes, communication, estimate
from .profile import ATTENTION, Profile, Rows, count_flops, encoding_flops, profile_step, run_multimodal, run_tokenizer


# What rows hold on average, beside their images: tokens, and how many of them are learned.
TEXT_TOKENS = {"understanding": (160, 100), "generation": (60, 2)}
_TOKENIZER_PARTS = {
    "encoder": "vision_tower",
    "to_latent": "to_latent",
    "codebooks": "quantizer",
    "pixel_decoder": "pixel_decoder",
    "semantic_decoder": "semantic_decoder",
}


@dataclass
class Plan:
    """What a recipe takes on so many GPUs of a kind.

    Bytes unless said otherwise. `memory` is by (checkpointing, ZeRO stage or None for none), on one GPU; `batch` is the
    samples of a step on all GPUs, `recipe_batch` those on as many as the recipe is written for, without changes to it.
    """

    recipe: Recipe
    gpu: Gpu
    gpus: int
    mfu: float
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Parameters of each part, and how many of them learn."""
    stage: int | None = None
    checkpointing: bool = False
    offload: bool = False
    memory: dict[tuple[bool, int | None], Memory] = field(default_factory=dict)
    batch: int = 0
    recipe_batch: int = 0
    steps: int | None = None
    flops_a_sample: float = 0.0
    tokens_a_sample: float = 0.0
    dataset_bytes: int = 0
    code_bytes: int = 0
    warning: str | None = None
    """What would keep it from learning."""
    _engine: dict[str, Any] = field(default_factory=dict)
    _profiles: dict[bool, Profile] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Of all parts."""
        return sum(count for count, _ in self.parts.values())

    @property
    def average_bytes(self) -> float:
        """The moving average of the weights, in fp32, where the recipe keeps one."""
        return 4.0 * self.parameters if self.recipe.optimizer.average_decay else 0.0

    @property
    def trainable(self) -> int:
        """Of all parts, those that learn."""
        return sum(count for _, count in self.parts.values())

    def _outside(self, stage: int | None) -> int:
        """Parameters that no engine sees: those of a frozen tokenizer."""
        return self.parts.get("image tokenizer", (0, 0))[0] if stage is not None else 0

    def _engine_on(self, gpus: int, stage: int | None) -> Engine:
        inside = self.parameters - self._outside(stage)
        return Engine(**self._engine | {"parameters": inside, "stage": stage, "processes": gpus})

    def memory_on(self, gpus: int, stage: int | None, checkpointing: bool) -> Memory:
        """Memory on one of so many GPUs."""
        engine = self._engine_on(gpus, stage)
        memory = estimate(engine, self._profiles[checkpointing])
        outside = 4.0 * self._outside(stage)
        if (
            STAGES[self.recipe.stage].compares_answers and not self.recipe.lora
        ):  # the model as it was, with the same tokenizer
            tokenizer, _ = self.parts["image tokenizer"]
            width = 4 if stage is None else engine.width
            outside += width * (self.parameters - tokenizer) / (gpus if stage == 3 else 1)
        return memory._replace(weights=memory.weights + outside + self.average_bytes)

    def seconds_a_step(self, gpus: int, stage: int | None) -> tuple[float, float]:
        """Seconds of computing, at the stated MFU, and of sending, for one step on so many GPUs."""
        computing = self.batch / self.gpus * self.flops_a_sample / (self.gpu.flops * self.mfu)
        bandwidth = self.gpu.node_bandwidth if gpus <= GPUS_A_NODE else self.gpu.network_bandwidth
        sent = self.sent_a_step(gpus, stage)
        rounds = self.recipe.training.get("gradient_accumulation_steps", 1) if stage in (2, 3) else 1
        return computing, sent * rounds / bandwidth

    def sent_a_step(self, gpus: int, stage: int | None) -> float:
        """Bytes that each of so many GPUs sends, for one batch of its own."""
        engine = self._engine_on(gpus, stage)
        # What preferences are compared with reads them as well: another model, or this one without its adapters.
        forwards = 2 if STAGES[self.recipe.stage].compares_answers else 1
        return communication(engine.parameters, engine.trainable, stage or 0, gpus, engine.kept_width, forwards)

    @property
    def checkpoint_bytes(self) -> float:
        """Of one checkpoint, with the average of the weights."""
        engine = self._engine_on(self.gpus, self.stage)
        saved = checkpoint_bytes(engine, self._outside(self.stage), adapters=bool(self.recipe.lora))
        return saved + self.average_bytes

    def days(self, gpus: int) -> float | None:
        """Days for the samples of the recipe: sending goes on while computing does, the longer one counts."""
        if self.steps is None:
            return None
        return self.steps * self.gpus / gpus * max(self.seconds_a_step(gpus, self.stage)) / 86400


def make_plan(path: str | Path, overrides: list[str], gpus: int | None, gpu: Gpu, mfu: float) -> Plan:
    """Plan a recipe.

    Args:
        gpus: how many; as many as the recipe is written for when None.

    Raises:
        ValueError: as [`read_recipe`]; a checkpoint to start from that is neither there nor made by a recipe beside it.
    """
    recipe, as_written = read_recipe(path, overrides), read_recipe(path)
    if STAGES[recipe.stage].plan is None:
        raise ValueError(f"{path}: the stage {recipe.stage} takes minutes: plan another stage.")
    training, gpus = recipe.training, gpus or recipe.gpus
    plan = Plan(recipe, gpu, gpus, mfu)
    plan.stage, plan.offload, bucket = _zero(training.get("deepspeed"))
    plan.checkpointing = bool(training.get("gradient_checkpointing"))
    micro = training.get("per_device_train_batch_size", 8)
    plan.batch = _samples_a_step(recipe, gpus)
    plan.recipe_batch = _samples_a_step(as_written, as_written.gpus)
    plan.steps = training["max_steps"] if training.get("max_steps", -1) > 0 else None
    half = bool(training.get("bf16") or training.get("fp16"))
    tokenizer = recipe.stage == "tokenizer"
    if tokenizer and plan.stage is not None:
        in_full_precision(training)  # refuses what training would
    model = STAGES[recipe.stage].load("plan")(plan, Path(path), micro, half)
    if tokenizer:
        plan.warning = restart_warning(model.config, micro * gpus)
    hidden = (model.config if tokenizer else model.config.text_config).hidden_size
    plan._engine = {
        "trainable": plan.trainable,
        "width": 2 if half else 4,
        "bucket": bucket or hidden * hidden,  # the Trainer's choice
        "offload": plan.offload,
        "autocast": tokenizer,
    }
    # As the recipe says, and every stage of ZeRO that it may have.
    stages = dict.fromkeys((plan.stage, *((None, 1, 2) if tokenizer else (0, 1, 2, 3))))
    for checkpointing in (False, True):
        for stage in stages:
            plan.memory[checkpointing, stage] = plan.memory_on(gpus, stage, checkpointing)
    _plan_data(plan, model.config)
    return plan


def _samples_a_step(recipe: Recipe, gpus: int) -> int:
    training = recipe.training
    return training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1) * gpus


def _zero(path: str | None) -> tuple[int | None, bool, int]:
    """Stage, offload and bucket of a DeepSpeed file, 0 for `auto`."""
    if not path:
        return None, False, 0
    zero = read_engine(path)["zero_optimization"]
    bucket = zero.get("reduce_bucket_size", 500_000_000)
    return zero["stage"], "offload_optimizer" in zero, 0 if bucket == "auto" else int(bucket)


def _count(module: nn.Module) -> tuple[int, int]:
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def plan_tokenizer(plan: Plan, path: Path, micro: int, half: bool) -> nn.Module:
    """Counts parameters, memory and operations of the tokenizer stage into `plan`; its weights stay in fp32.

    Returns:
        The model on the meta device.
    """
    recipe = plan.recipe
    with torch.device("meta"):
        model = EvoTokVQModel(EvoTokVQConfig(**tokenizer_fields(recipe, path)))
    model.set_attn_implementation(ATTENTION)
    plan.parts = {name: _count(model.get_submodule(part)) for name, part in _TOKENIZER_PARTS.items()}
    for checkpointing in (False, True):
        plan._profiles[checkpointing] = profile_step(model, lambda m: run_tokenizer(m, micro), checkpointing)
    # The teacher, an encoder of its own, looks at every picture as well.
    teacher = recipe.loss.teacher_share if recipe.loss.semantic else 0.0
    one = count_flops(model, lambda m: run_tokenizer(m, 1))
    plan.flops_a_sample = one + encoding_flops(model) * (1 + teacher)
    plan.tokens_a_sample = model.config.num_positions
    return model


def plan_multimodal(plan: Plan, path: Path, micro: int, half: bool) -> nn.Module:
    """Counts parameters, memory and operations of a multimodal stage into `plan`.

    Args:
        micro: rows of one batch on one GPU.
        half: whether weights are in bfloat16.

    Returns:
        The model on the meta device, without adapters.
    """
    recipe = plan.recipe
    config = find_config(recipe, path)
    with torch.device("meta"):
        model = EvoTokForConditionalGeneration(config)
        freeze_all_but(model, trainable_parts(recipe))
        counted = {"image tokenizer": model.model.vq_model} | {
            name.replace("_", " "): model.get_submodule(part) for name, part in PARTS.items()
        }
        if recipe.lora:
            model = add_lora(model, recipe)
    plan.parts = _count_parts(model, counted, bool(recipe.lora))
    inner = model.get_base_model() if recipe.lora else model
    if half:
        model.to(torch.bfloat16)
    vq_model = inner.model.vq_model
    for part in (inner.model.language_model, inner.depth_decoder, vq_model):
        part.set_attn_implementation(ATTENTION)
    model.train()
    positions = config.vq_config.num_positions
    kinds = _kinds(recipe)
    answers = 2 if STAGES[recipe.stage].compares_answers else 1  # rows of a sample
    for kind, share in kinds.items():
        text, labels = TEXT_TOKENS[kind]
        rows = Rows(1, positions + text, labels, int(kind == "understanding"), int(kind == "generation"))
        flops = count_flops(model, lambda _, rows=rows: run_multimodal(inner, rows))
        if answers == 2:  # the reference reads both answers, too
            flops += count_flops(model, lambda _, rows=rows: run_multimodal(inner, rows), backward=False)
        plan.flops_a_sample += share * answers * flops
        plan.tokens_a_sample += share * answers * rows.length
    if not _from_codes(recipe):
        vq_model.float()
        plan.flops_a_sample += answers * encoding_flops(vq_model)
    # Memory is for the worst batch: every row as long as it may be, all of its text learned. It is an upper bound for
    # preferences, since TRL scores texts by tiles of the vocabulary.
    length = max(recipe.data.max_length, positions + 2)
    batch = answers * micro
    worst = [
        Rows(batch, length, length - positions if kind == "understanding" else 2, given, batch - given)
        for kind, given in (("understanding", batch), ("generation", 0))
        if kind in kinds
    ]
    for checkpointing in (False, True):
        profiles = [
            profile_step(model, lambda _, rows=rows: run_multimodal(inner, rows), checkpointing) for rows in worst
        ]
        plan._profiles[checkpointing] = Profile(max(p.released for p in profiles), max(p.held for p in profiles))
    return inner


def _count_parts(model: nn.Module, counted: dict[str, nn.Module], lora: bool) -> dict[str, tuple[int, int]]:
    """Parameters by part; each once, where weights are tied; adapters, and the copies PEFT trains, by themselves."""
    parts, seen = {}, set()
    for name, module in counted.items():
        own = [p for n, p in module.named_parameters() if id(p) not in seen and "lora_" not in n]
        seen |= {id(p) for p in own}
        parts[name] = sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)
    if lora:
        rest = [p for p in model.parameters() if id(p) not in seen]
        parts["adapters and copies"] = sum(p.numel() for p in rest), sum(p.numel() for p in rest if p.requires_grad)
    return parts


def find_config(recipe: Recipe, path: Path) -> EvoTokConfig:
    """The multimodal config that a recipe trains: of the checkpoint it starts from, or, while that is not made yet, of
    the recipe that will make it.

    Raises:
        ValueError: neither is there.
    """
    checkpoint = recipe.model.checkpoint
    if checkpoint and (Path(checkpoint) / "config.json").is_file():
        return AutoConfig.from_pretrained(checkpoint)
    if checkpoint:
        source = _must_be_made(checkpoint, path)
        return find_config(read_recipe(source), source)
    fields = json.loads(json.dumps(recipe.model.config))
    language_model = _pretrained_fields(recipe.model.language_model_checkpoint, path)
    if language_model:
        fields["text_config"] = language_model | fields.get("text_config", {})
        if fields["text_config"]["vocab_size"] < EvoTokConfig.image_token_id:  # those of Qwen2.5 are not among them
            fields |= {
                "image_token_id": 2, "image_generation_token_id": 3, "vision_start_token_id": 4,
                "vision_end_token_id": 5,
            }  # fmt: skip
    if "vq_config" not in fields:
        fields["vq_config"] = _vq_fields(recipe.model.vq_checkpoint, path)
    return EvoTokConfig(**fields)


def tokenizer_fields(recipe: Recipe, path: Path) -> dict[str, Any]:
    """Fields of the tokenizer's config: those of a recipe, and of the encoder that it starts from without a layer."""
    encoder = _pretrained_fields(recipe.model.encoder_checkpoint, path)
    if not encoder:
        return recipe.model.config
    encoder |= {"num_hidden_layers": encoder["num_hidden_layers"] - 1, "vision_use_head": False}
    return {"encoder_config": encoder, "semantic_feature_dim": encoder["hidden_size"]} | recipe.model.config


def _pretrained_fields(checkpoint: str | None, path: Path) -> dict[str, Any]:
    """Fields of a pretrained part's config: of its folder, or of the recipe that will make it; none for what lies on
    the Hub, which is planned as the paper's own parts, the defaults."""
    if checkpoint is None:
        return {}
    if (Path(checkpoint) / "config.json").is_file():
        return AutoConfig.from_pretrained(checkpoint).to_dict()
    source = _recipe_of(checkpoint, path)
    if source is None:
        return {}
    recipe = read_recipe(source)
    if recipe.stage == "vision":
        return SiglipVisionConfig(**recipe.model.config).to_dict()
    ids = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    rows = padded_rows(recipe.model.text_tokenizer_size or VOCAB_SIZE)
    return Qwen2Config(**recipe.model.config | ids, vocab_size=rows).to_dict()


def _vq_fields(checkpoint: str | None, path: Path) -> dict[str, Any]:
    if checkpoint and (Path(checkpoint) / "config.json").is_file():
        return EvoTokVQConfig.from_pretrained(checkpoint).to_dict()
    while checkpoint:
        source = _must_be_made(checkpoint, path)
        recipe = read_recipe(source)
        if recipe.model.config or not recipe.model.checkpoint:
            return tokenizer_fields(recipe, source)
        checkpoint = recipe.model.checkpoint
    return {}


def _must_be_made(checkpoint: str, path: Path) -> Path:
    source = _recipe_of(checkpoint, path)
    if source is None:
        raise ValueError(f"{path}: model.checkpoint {checkpoint!r} is not there, and no recipe beside it makes it.")
    return source


def _recipe_of(checkpoint: str, path: Path) -> Path | None:
    """The recipe beside `path`, or in the folder above, whose output is this checkpoint."""
    for folder in (path.parent, path.parent.parent):
        for other in sorted(folder.glob("*.yaml")):
            try:
                recipe = read_recipe(other)
            except ValueError:
                continue  # not a recipe, or a broken one that is somebody else's to mend
            if recipe.training.get("output_dir") == checkpoint:
                return other
    return None


def _kinds(recipe: Recipe) -> dict[str, float]:
    """Shares of the samples that are understood and that are drawn."""
    if recipe.data.name != "mixture":
        return dict(STAGES[recipe.stage].tasks)
    weights: dict[str, float] = {}
    for source in recipe.data.sources:
        adapter = SOURCES.get(source.source)
        kind = "understanding" if adapter and adapter.task == "understanding" else "generation"
        weight = source.weight or (adapter.weight if adapter else 1.0)
        weights[kind] = weights.get(kind, 0.0) + weight
    total = sum(weights.values())
    return {kind: weight / total for kind, weight in weights.items()}


def _from_codes(recipe: Recipe) -> bool:
    return recipe.data.name == "mixture" and all(source.source == "codes" for source in recipe.data.sources)


def _plan_data(plan: Plan, config) -> None:
    sources = [SOURCES[source.source] for source in plan.recipe.data.sources if source.source in SOURCES]
    plan.dataset_bytes = sum(source.num_bytes for source in sources)
    vq = getattr(config, "vq_config", config)
    drawn = sum(source.num_rows for source in sources if source.task == "generation")
    plan.code_bytes = drawn * vq.num_positions * vq.num_pixel_codebooks * 2
