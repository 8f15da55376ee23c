"""Rows of the benchmark of training: shipped recipes with their data, batches and steps changed.

`full` trains EvoTok-mini from the embedded weights. `paper` trains the paper's model with random weights on one GPU,
and `tiny` does the same at widths of a test.
"""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...eval.benchmarks.meters import Setting
from .materials import SHAPES, build_model


ROOT = Path(__file__).resolve().parents[2]
_RECIPES, _ASSETS = ROOT / "configs", ROOT / "assets"
_LARGE_GPU = 120e9  # bytes: batches for 140 GB, otherwise for 80 GB


class Case(NamedTuple):
    """One row.

    Args:
        recipe: file of the shipped recipe.
        overrides: changes to it.
        batch: rows of a step at `tiny` or `full`, or at `paper` on a GPU of 80 and of 140 GB.
        data: what is trained on: `world`, `images`, `conversations` or `codes`.
    """

    name: str
    recipe: str
    batch: tuple[int, ...]
    data: str = "world"
    overrides: tuple[str, ...] = ()


_PLAIN = ("gpus=1", "training.deepspeed=null", "training.gradient_accumulation_steps=1")
_CHECKPOINTED = (*_PLAIN, "training.gradient_checkpointing=true")
_SAVED = (*_PLAIN, "training.gradient_checkpointing=false")
_COMPILED = "training.torch_compile=true"
# LPIPS has weights of its own, which are not at hand; the discriminator is trained, as in most steps of the recipe.
_TOKENIZER = (
    "gpus=1", "data.validation_path=null", "training.eval_strategy=no", "loss.perceptual=0.0",
    "loss.adversarial_start_step=0",
)  # fmt: skip
_OFFLOADED = (
    "gpus=1", "training.deepspeed=configs/deepspeed/zero2-offload.json", "training.gradient_accumulation_steps=1",
)  # fmt: skip
_SFT, _GEN = "paper/low-memory/sft.yaml", "paper/low-memory/gen.yaml"
_PAPER = (
    Case("tokenizer", "paper/tokenizer.yaml", (32, 64), "images", _TOKENIZER),
    Case("tokenizer_compiled", "paper/tokenizer.yaml", (32, 64), "images", (*_TOKENIZER, _COMPILED)),
    Case("pretrain_checkpointing", "paper/pretrain.yaml", (16, 32), "conversations", _CHECKPOINTED),
    Case("sft_lora", _SFT, (8, 16), "conversations", _SAVED),
    Case("sft_lora_compiled", _SFT, (8, 16), "conversations", (*_SAVED, _COMPILED)),
    Case("sft_lora_checkpointing", _SFT, (16, 32), "conversations", _CHECKPOINTED),
    Case("gen_lora", _GEN, (2, 16), "images", _SAVED),
    Case("gen_lora_codes", _GEN, (2, 16), "codes", _SAVED),
    Case("gen_lora_codes_compiled", _GEN, (2, 16), "codes", (*_SAVED, _COMPILED)),
    Case("gen_lora_codes_checkpointing", _GEN, (16, 32), "codes", _CHECKPOINTED),
    Case("sft_offload_checkpointing", "paper/sft.yaml", (16, 32), "conversations", _OFFLOADED),
)
_EMBEDDED = ("model.vq_checkpoint=null", "model.language_model_checkpoint=null")
_MINI = (
    Case("tokenizer", "mini/tokenizer.yaml", (16,), "world", ("training.eval_strategy=no",)),
    Case("pretrain", "mini/pretrain.yaml", (16,), "world", _EMBEDDED),
    Case("sft", "mini/sft.yaml", (16,)),
    Case("gen", "mini/gen.yaml", (16,)),
    Case("gen_images", "mini/gen.yaml", (16,), "images"),
    Case("gen_codes", "mini/gen.yaml", (16,), "codes"),
)
CASES: dict[str, tuple[Case, ...]] = {
    "paper": _PAPER,
    "full": _MINI,
    "tiny": tuple(case._replace(batch=(2,)) for case in _PAPER),
}


def recipe_path(case: Case) -> Path:
    """Returns the path of the shipped recipe."""
    return _RECIPES / case.recipe


def overrides(case: Case, workspace: Path, setting: Setting, steps: int) -> list[str]:
    """Returns all changes to the shipped recipe.

    Args:
        workspace: folder of the materials and of the run.
        steps: of the run.
    """
    large = setting.device == "cuda" and torch.cuda.get_device_properties().total_memory > _LARGE_GPU
    training: dict[str, Any] = {
        "output_dir": str(workspace / "runs" / case.name),
        "max_steps": steps,
        "per_device_train_batch_size": case.batch[-1 if large else 0],
        "logging_steps": 5,  # more often than in long runs, so that it is part of the steps measured
        "save_strategy": "no",
        "disable_tqdm": True,
        "bf16": setting.dtype == torch.bfloat16,
        "use_cpu": setting.device == "cpu",
    }
    changes: dict[str, Any] = {}
    if setting.size == "tiny":  # a trial of the rows, without worker processes and without a compiler of C++
        training["dataloader_num_workers"] = 0
        if _COMPILED in case.overrides:
            training["torch_compile_backend"] = "eager"
        if case.name.startswith("tokenizer"):
            changes["loss.discriminator_channels"] = 8
    changes |= {f"training.{name}": value for name, value in training.items()}
    changes |= _model(case, workspace, setting.size) | _data(case, workspace, setting.size)
    return [*case.overrides, *(f"{key}={json.dumps(value)}" for key, value in changes.items())]


def _model(case: Case, workspace: Path, size: str) -> dict[str, Any]:
    if case.name.startswith("tokenizer"):
        if size == "full":
            return {"model.encoder_checkpoint": str(_ASSETS / "vision-mini")}
        return {"model.config": SHAPES[size].vq}
    checkpoint = _ASSETS / "evotok-mini" if size == "full" else workspace / "model"
    return {"model.checkpoint": str(checkpoint)} | dict.fromkeys(
        ("model.vq_checkpoint", "model.language_model_checkpoint")
    )


def _data(case: Case, workspace: Path, size: str) -> dict[str, Any]:
    if case.data == "world":
        return {}
    # Memory is planned for the longest row, and these are all of about one length.
    changes: dict[str, Any] = {} if size == "full" else {"data.max_length": {"paper": 448, "tiny": 128}[size]}
    if case.data == "conversations":
        return changes | {
            "data.name": "llava", "data.path": str(workspace / "conversations.json"), "data.sources": [],
            "data.image_folder": str(workspace / "images"),
        }  # fmt: skip
    source = {"source": "image-folder", "path": str(workspace / "images")}
    if case.data == "codes":
        source = {"source": "codes", "path": str(codes_folder(case, workspace))}
    changes |= {"data.name": "mixture", "data.sources": [source]}
    return changes | ({"training.train_sampling_strategy": "random"} if size == "full" else {})


def codes_folder(case: Case, workspace: Path) -> Path:
    """Returns the folder of a row's code shard."""
    return workspace / "codes" / case.name


def missing(case: Case, setting: Setting, workspace: Path) -> str | None:
    """Returns what this machine lacks for a row, or None."""
    needs_compiler = _COMPILED in case.overrides and setting.size != "tiny" and setting.device == "cpu"
    if needs_compiler and shutil.which("g++") is None:
        return "torch.compile needs g++ for code on CPUs"
    if case.overrides != _OFFLOADED:
        return None
    if setting.device == "cpu":
        return "optimizer states are offloaded from a GPU"
    if find_spec("deepspeed") is None:
        return "offloading needs DeepSpeed: pip install 'evotok[deepspeed]'"
    if find_spec("ninja") is None or shutil.which("nvcc") is None:
        return "DeepSpeed compiles its AdamW for CPUs with ninja and CUDA's compiler, which are not here"
    # Moments and weights in float32, gradients in bfloat16 and once more in float32 while they are accumulated.
    parameters = sum(p.numel() for p in build_model(workspace / "model", "meta").parameters())
    required, memory = 18 * parameters, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < required:
        return f"offloading needs {required / 1e9:.0f} GB of memory of the machine, which has {memory / 1e9:.0f}"
    return None
