"""DeepSpeed configurations: where they lie, and what the tokenizer stage makes of one."""

import json
from pathlib import Path
from typing import Any


def read_engine(path: str) -> dict[str, Any]:
    """A DeepSpeed file. Recipes name the shipped ones as seen from the folder of the repository.

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


def in_full_precision(training: dict[str, Any]) -> dict[str, Any]:
    """Training arguments of the tokenizer stage, under an engine that leaves its weights whole and fp32.

    An engine in bf16 would cast the codebooks, by which codes change, and have their moving averages add up in 8 bits;
    so half precision is autocast's there, as it is without an engine, and gradients are summed up in fp32.

    Raises:
        ValueError: ZeRO-3, or fp16, for which no one would scale the loss; or as [`read_engine`].
    """
    engine = read_engine(training["deepspeed"])
    if engine["zero_optimization"]["stage"] == 3:
        raise ValueError(
            f"training.deepspeed: {training['deepspeed']} is ZeRO-3, which shards weights, but codebooks learn by "
            "moving averages, whole: give configs/deepspeed/zero2.json, or leave it out for torchrun's DDP."
        )
    if training.get("fp16"):
        raise ValueError("training.fp16: the tokenizer stage under DeepSpeed computes in fp32 or bf16: give bf16.")
    engine |= {"fp16": {"enabled": False}, "bf16": {"enabled": False}}
    if training.get("bf16"):
        # No module is named whose gradients might be sent in less than fp32.
        engine["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return training | {"deepspeed": engine, "bf16": False}
