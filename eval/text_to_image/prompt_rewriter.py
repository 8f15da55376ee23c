"""Prompts of a benchmark: the options that say where they are, and a chat model that rewrites them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from ...data.processes import Workers
from ..suite import Evaluation
from .images import DrawingOptions


INSTRUCTION = (
    "Rewrite the prompt below for a model that draws pictures from text. Keep every thing that it names, with its "
    "number, its color and its place, and say how they look and where each of them is. Add no other things. Write one "
    "plain sentence of at most 50 words, and nothing else.\n\nPrompt: {}"
)
LONGEST = 128
"""Tokens of a rewritten prompt."""


@dataclass
class BenchmarkOptions(DrawingOptions):
    """What a suite can be told that draws the prompts of a benchmark."""

    prompts: str | None = None
    """The benchmark's file of prompts."""
    limit: int | None = None
    """Prompts of each task or in all, for a first impression; all of them by default."""
    rewriter: str | None = None
    """Folder of a chat model that rewrites the prompts; both are drawn then."""

    def __post_init__(self):
        super().__post_init__()
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1.")


def check_model(folder: str | None, option: str, such_as: str) -> PreTrainedConfig:
    """Config of a checkpoint in the folder that an option names.

    Raises:
        ValueError: no config or no weights there, or files of them that are damaged or missing.
    """
    mend = f"give the folder of a checkpoint: {option}=DIR, such as {such_as}."
    if not folder:
        raise ValueError(f"{option}: none given: {mend}")
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ValueError(f"{option}={folder}: no config.json there: {mend}")
    if not any(path.glob("*.safetensors")):
        raise ValueError(f"{option}={folder}: no weights (*.safetensors) there: {mend}")
    index = path / "model.safetensors.index.json"
    with _reading(option, folder):
        config = AutoConfig.from_pretrained(folder)
        shards = json.loads(index.read_bytes())["weight_map"].values() if index.is_file() else ()
        for file in sorted({*path.glob("*.safetensors"), *(path / shard for shard in shards)}):
            with safe_open(file, framework="pt"):
                pass  # the head is read, and the length of the rest compared with it
    return config


def read_processor(cls: Any, folder: str, option: str) -> Any:
    """Tokenizer or processor of a checkpoint, by an Auto class.

    Raises:
        ValueError: it is damaged, or not there.
    """
    with _reading(option, folder):
        return cls.from_pretrained(folder)


@contextmanager
def _reading(option: str, folder: str) -> Iterator[None]:
    """Turns every fault of an untrusted file into a ValueError of one line."""
    try:
        yield
    except Exception as error:  # nearly every type there is
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(f"{option}={folder}: cannot be read ({reason}): copy the checkpoint again.") from error


def check_rewriter(folder: str | None) -> None:
    """Raises ValueError for a rewriter that cannot be one: no checkpoint, or not made for chats."""
    if folder is None:
        return
    check_model(folder, "rewriter", "Qwen/Qwen2.5-7B-Instruct")
    if read_processor(AutoTokenizer, folder, "rewriter").chat_template is None:
        raise ValueError(f"rewriter={folder}: its tokenizer has no chat template: give a chat model.")


def wordings(evaluation: Evaluation, prompts: Sequence[str]) -> dict[str, list[str]]:
    """Prompts as they are, under "", and where there is a rewriter as it says them, under "_rewritten"."""
    options, path = evaluation.options, evaluation.folder / "rewritten.jsonl"
    both = {"": list(prompts)}
    if options.rewriter is not None:
        version = evaluation.files["rewriter"]
        both["_rewritten"] = rewritten(prompts, options.rewriter, version, path, evaluation.workers, options.batch_size)
    return both


def rewritten(
    prompts: Sequence[str], checkpoint: str, version: str, path: Path, workers: Workers, batch_size: int
) -> list[str]:
    """Prompts as a chat model rewrites them, greedily, one for each; all processes together.

    Args:
        checkpoint: folder of a causal language model with a chat template.
        version: fingerprint of that folder.
        path: file that keeps them, lines of `prompt`, `rewritten` and `rewriter`, the version: what it has of these
            prompts and this rewriter is not asked again.
    """
    if path.is_file():
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if [(line["prompt"], line["rewriter"]) for line in lines] == [(prompt, version) for prompt in prompts]:
            return [line["rewritten"] for line in lines]
    rewriter = Rewriter(checkpoint, workers.state.device)
    batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    texts = [text for batch in workers.map(rewriter, batches, "rewriting") for text in batch]
    workers.wait()  # until all have looked for the file
    if workers.is_main:
        pairs = zip(prompts, texts, strict=True)
        lines = [json.dumps({"prompt": prompt, "rewritten": text, "rewriter": version}) for prompt, text in pairs]
        part = path.with_name(f".{path.name}.part")
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        part.replace(path)
    return texts


class Rewriter:
    """A chat model that rewrites prompts by `INSTRUCTION`; a prompt to which it says nothing stays as it is."""

    def __init__(self, checkpoint: str, device: torch.device):
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        dtype = "float32" if device.type == "cpu" else "auto"
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, use_safetensors=True)
        self.model.to(device).eval()

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """One line for each prompt."""
        chats = [[{"role": "user", "content": INSTRUCTION.format(prompt)}] for prompt in prompts]
        inputs = self.tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            enable_thinking=False,  # for templates that know it; the others pay no heed
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        tokens = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=LONGEST, pad_token_id=self.tokenizer.pad_token_id
        )
        texts = self.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [" ".join(text.split()) or prompt for text, prompt in zip(texts, prompts, strict=True)]
