"""Rewriting of a benchmark's prompts by a chat model, as in the paper's Table 3."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...data.processes import Workers
from ..results import write_json_lines
from ..sequences import map_batches
from ..suite import Evaluation
from .benchmark import check_model, read_processor


INSTRUCTION = (
    "Rewrite the prompt below for a model that draws pictures from text. Keep every thing that it names, with its "
    "number, its color and its place, and say how they look and where each of them is. Add no other things. Write one "
    "plain sentence of at most 50 words, and nothing else.\n\nPrompt: {}"
)
MAX_NEW_TOKENS = 128


def check_rewriter(folder: str | None) -> None:
    """Raises ValueError for a rewriter that is missing, damaged, or has no chat template."""
    if folder is None:
        return
    check_model(folder, "rewriter", "Qwen/Qwen2.5-7B-Instruct")
    if read_processor(AutoTokenizer, folder, "rewriter").chat_template is None:
        raise ValueError(f"rewriter={folder}: its tokenizer has no chat template: give a chat model.")


def prompt_wordings(evaluation: Evaluation, prompts: Sequence[str]) -> dict[str, list[str]]:
    """Returns suffix of figures -> prompts: "" as they are and, with the option `rewriter`, "_rewritten"."""
    options, wordings = evaluation.options, {"": list(prompts)}
    if options.rewriter is not None:
        fingerprint, path = evaluation.files["rewriter"], evaluation.folder / "rewritten.jsonl"
        wordings["_rewritten"] = rewrite_prompts(
            prompts, options.rewriter, fingerprint, path, evaluation.workers, options.batch_size
        )
    return wordings


def rewrite_prompts(
    prompts: Sequence[str], checkpoint: str, fingerprint: str, path: Path, workers: Workers, batch_size: int
) -> list[str]:
    """Rewrites prompts with a chat model, greedily; all processes call it together.

    Args:
        checkpoint: folder of a causal language model with a chat template.
        fingerprint: of that folder.
        path: file that keeps the result, with lines of `prompt`, `rewritten` and `rewriter` (the fingerprint); where
            it has these prompts by this rewriter, the model is not loaded.
    """
    if path.is_file():
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if [(line["prompt"], line["rewriter"]) for line in lines] == [(prompt, fingerprint) for prompt in prompts]:
            return [line["rewritten"] for line in lines]
    texts = map_batches(workers, Rewriter(checkpoint, workers.state.device), prompts, batch_size, "rewriting")
    workers.wait()  # every process has looked for the file before it is written
    if workers.is_main:
        pairs = zip(prompts, texts, strict=True)
        write_json_lines(
            path, ({"prompt": prompt, "rewritten": text, "rewriter": fingerprint} for prompt, text in pairs)
        )
    return texts


class Rewriter:
    """Chat model that rewrites prompts by `INSTRUCTION`; where its answer is empty, the prompt is kept."""

    def __init__(self, checkpoint: str, device: torch.device):
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        dtype = "float32" if device.type == "cpu" else "auto"
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, use_safetensors=True)
        self.model.to(device).eval()  # pyright: ignore[reportArgumentType]  # `wraps` loses self

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Returns one line for each prompt."""
        chats = [[{"role": "user", "content": INSTRUCTION.format(prompt)}] for prompt in prompts]
        inputs = self.tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            enable_thinking=False,  # templates without this variable ignore it
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        tokens = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=self.tokenizer.pad_token_id
        )
        texts = self.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [" ".join(text.split()) or prompt for text, prompt in zip(texts, prompts, strict=True)]
