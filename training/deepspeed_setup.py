"""DeepSpeed: its configuration files, its process group, and how a run resumes under it."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.optim import Optimizer
from transformers import TrainingArguments
from transformers.integrations import set_hf_deepspeed_config, unset_hf_deepspeed_config


def read_engine(path: str) -> dict[str, Any]:
    """Reads a DeepSpeed configuration. Recipes name the shipped ones relative to the folder of the repository.

    Raises:
        ValueError: no such file, or no DeepSpeed configuration in it.
    """
    file = Path(path) if Path(path).is_file() else Path(__file__).resolve().parents[1] / path
    try:
        engine = json.loads(file.read_text(encoding="utf-8"))
        engine["zero_optimization"]["stage"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: no DeepSpeed configuration with a zero_optimization stage ({error}).") from None
    return engine


def tokenizer_engine(training: dict[str, Any]) -> dict[str, Any]:
    """Returns training arguments whose engine keeps the weights of the image tokenizer unsharded and in fp32.

    An engine in bf16 would cast the codebooks, which changes codes, and accumulate their EMA in 8 bits. Half precision
    is therefore that of autocast, as without an engine, and gradients are accumulated in fp32.

    Raises:
        ValueError: ZeRO-3; fp16, whose loss would not be scaled; or as [`read_engine`].
    """
    engine = read_engine(training["deepspeed"])
    if engine["zero_optimization"]["stage"] == 3:
        raise ValueError(
            f"training.deepspeed: {training['deepspeed']} is ZeRO-3, which shards weights, but the EMA of the "
            "codebooks needs them unsharded: give configs/deepspeed/zero2.json, or leave it out for torchrun's DDP."
        )
    if training.get("fp16"):
        raise ValueError("training.fp16: the tokenizer stage under DeepSpeed computes in fp32 or bf16: give bf16.")
    engine |= {"fp16": {"enabled": False}, "bf16": {"enabled": False}}
    if training.get("bf16"):
        # No module is named whose gradients might be sent in less than fp32.
        engine["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return training | {"deepspeed": engine, "bf16": False}


def start_process_group() -> None:
    """Starts the process group on a machine without an accelerator.

    DeepSpeed needs it there before TrainingArguments exist: otherwise every process would be a group of one.
    """
    try:
        from deepspeed import ops
    except ImportError:
        raise ImportError("training.deepspeed: install the engine: pip install 'evotok[deepspeed]'.") from None

    # Otherwise every process tries the compiler on all operators of DeepSpeed, of which training builds none.
    ops.__compatible_ops__ = {}
    name_single_process()
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")


def name_single_process() -> None:
    """Sets what DeepSpeed reads of a process group in the environment, for one process without torchrun; what is set
    already stays."""
    defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def unsharded_weights(arguments: TrainingArguments) -> Iterator[None]:
    """Builds models inside with all their weights, in their own precision, in every process; the engine shards them
    when training starts.

    Under ZeRO-3 Transformers would shard a model while it is built, in half precision: its parts could not be loaded
    one by one, and the image tokenizer would be rounded.
    """
    config = getattr(arguments, "hf_deepspeed_config", None)
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)


def check_engine(arguments: TrainingArguments, checkpoint: str) -> None:
    """Raises ValueError for a checkpoint that was written under another engine than that of this run.

    The state of the optimizer would be left out, or DeepSpeed would not find its own.
    """
    folder = Path(checkpoint)
    if arguments.fsdp or (folder / "latest_universal").is_file():
        return
    sharded = any(folder.glob("*/zero_pp_rank_*model_states.pt"))
    before = "ZeRO-3" if sharded else "DeepSpeed without ZeRO-3" if (folder / "latest").is_file() else "no engine"
    now = "no engine"
    if arguments.deepspeed:
        now = "ZeRO-3" if arguments.hf_deepspeed_config.is_zero3() else "DeepSpeed without ZeRO-3"
    if before != now:
        raise ValueError(
            f"{folder}: written under {before}, but this run is under {now}: restore the former training.deepspeed, "
            "or give another training.output_dir, or --restart."
        )


def prepare_engine(arguments: TrainingArguments, checkpoint: str) -> None:
    """Configures DeepSpeed to read a checkpoint: as it was written, or, after `ds_to_universal`, on any number of
    processes.

    Raises:
        ValueError: written by another number of processes, and not made universal yet.
    """
    folder = Path(checkpoint)
    if (folder / "latest_universal").is_file():
        arguments.hf_deepspeed_config.config.setdefault("checkpoint", {})["load_universal"] = True
        return
    ranks = len(list(folder.glob("rng_state_*.pth"))) or 1
    if ranks != arguments.world_size:
        tag = (folder / "latest").read_text().strip() if (folder / "latest").is_file() else "global_stepN"
        raise ValueError(
            f"{folder}: written by {ranks} processes, this run has {arguments.world_size}: python -m "
            f"deepspeed.checkpoint.ds_to_universal --inject_missing_state --input_folder {folder / tag} "
            f"--output_folder {folder / tag}_universal, then start again."
        )


def restore_param_groups(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    """Restores the settings of every parameter group after ZeRO-3 has read a universal checkpoint.

    DeepSpeed gives all groups the settings of the first one, weight decay among them, and one common tensor to count
    steps in, which would then grow by as many as there are groups.

    Args:
        groups: settings of every group, in their order.
    """
    for state in optimizer.state.values():
        state["step"] = torch.as_tensor(state["step"]).clone()
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)
