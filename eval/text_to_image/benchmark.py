"""Options of the suites of text-to-image benchmarks, and checks of the checkpoints that judge the images."""

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig

from ...data.errors import explain_errors
from ..suite import require_at_least
from .images import GenerationOptions


@dataclass
class BenchmarkOptions(GenerationOptions):
    """Options of a suite that generates the prompts of a benchmark."""

    prompts: str | None = None
    """The benchmark's file of prompts."""
    limit: int | None = None
    """Number of prompts of each task or in all, for an estimate; all by default."""
    rewriter: str | None = None
    """Folder of a chat model that rewrites the prompts; images are generated from both wordings then."""

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 1, "limit")


def check_model(folder: str | None, option: str, such_as: str) -> PreTrainedConfig:
    """Reads the config of the checkpoint in a folder, and checks its weights.

    Args:
        option: that names the folder, for messages.
        such_as: checkpoint that would do, for messages.

    Raises:
        ValueError: no config or no weights there, or damaged files.
    """
    correction = f"give the folder of a checkpoint: {option}=DIR, such as {such_as}."
    if not folder:
        raise ValueError(f"{option}: none given: {correction}")
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ValueError(f"{option}={folder}: no config.json there: {correction}")
    if not any(path.glob("*.safetensors")):
        raise ValueError(f"{option}={folder}: no weights (*.safetensors) there: {correction}")
    index = path / "model.safetensors.index.json"
    with _reading(option, folder):
        config = AutoConfig.from_pretrained(folder)
        shards = json.loads(index.read_bytes())["weight_map"].values() if index.is_file() else ()
        for file in sorted({*path.glob("*.safetensors"), *(path / shard for shard in shards)}):
            with safe_open(file, framework="pt"):
                pass  # compares the length of the file with its header
    return config


def read_processor(cls: Any, folder: str, option: str) -> Any:
    """Loads the tokenizer or processor of a checkpoint by an Auto class.

    Raises:
        ValueError: it is damaged, or missing.
    """
    with _reading(option, folder):
        return cls.from_pretrained(folder)


def _reading(option: str, folder: str) -> AbstractContextManager[None]:
    """Returns a context of reading a checkpoint, whose errors become ValueErrors of one line."""
    return explain_errors(f"{option}={folder}", "cannot be read", ": copy the checkpoint again.")
