"""GenAI-Bench (Li et al., 2024) and VQAScore (Lin et al., 2024): prompts, skills, and the model that scores images.

The files are the benchmark's `genai_image.json` (id -> `prompt`) and `genai_skills.json` (skill -> ids as numbers).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


SIZES = (527, 1600)
"""Numbers of prompts of the benchmark: those of the VQAScore paper, and all."""
HEADLINES = ("basic", "advanced")
PAPER = {"basic": 0.87, "advanced": 0.66}
"""The paper's Table 3."""
QUESTION = "Does this figure show '{}'? Please answer yes or no."
AGREEING_ANSWERS = ("Yes", "yes")
"""Words whose probability is the score: the first one that is a token of the scorer."""


def read_prompts(path: str | Path) -> dict[str, str]:
    """Reads the benchmark's prompts: id -> prompt.

    Raises:
        ValueError: no such file, another format, or another number of prompts than the benchmark's.
    """
    prompts = {}
    for name, entry in _read(path, "genai_image.json").items():
        text = entry.get("prompt") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not name.isalnum():
            raise ValueError(f"{path}: {name[:20]!r} has no prompt: copy the file again.")
        prompts[name] = text
    if len(prompts) not in SIZES:
        sizes = " or ".join(map(str, SIZES))
        raise ValueError(f"{path}: {len(prompts)} prompts, GenAI-Bench has {sizes}: copy the file again.")
    return prompts


def read_skills(path: str | Path, prompts: dict[str, str]) -> dict[str, list[str]]:
    """Reads the benchmark's skills, `basic` and `advanced` among them: skill -> ids of the prompts that need it.

    Raises:
        ValueError: no such file, another format, or ids that are not those of the prompts.
    """
    skills, of_number = {}, {int(name): name for name in prompts if name.isdigit()}
    for skill, numbers in _read(path, "genai_skills.json").items():
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise ValueError(f"{path}: {skill[:40]!r} is no list of numbers: copy the file again.")
        strange = next((number for number in numbers if number not in of_number), None)
        if strange is not None:
            raise ValueError(
                f"{path}: {skill!r} has prompt {strange}, which is not in `prompts`: give files of one size."
            )
        skills[skill] = [of_number[number] for number in numbers]
    for skill in HEADLINES:
        if not skills.get(skill):
            raise ValueError(f"{path}: no prompts of skill {skill!r}: give GenAI-Bench's genai_skills.json.")
    return skills


def _read(path: str | Path, name: str) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file: give GenAI-Bench's {name}.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: damaged: copy GenAI-Bench's {name} again.")
    return content


def mean_scores(scores: Mapping[str, Sequence[float]], skills: dict[str, list[str]]) -> dict[str, float]:
    """Computes the mean over each skill's prompts of the mean over their images; `all` is of every prompt with a skill.

    Args:
        scores: id -> scores of its images. A skill without a prompt among them is left out.
    """
    of_prompt = {name: fmean(values) for name, values in scores.items()}
    groups = skills | {"all": list(dict.fromkeys(name for names in skills.values() for name in names))}
    there = {skill: [of_prompt[name] for name in names if name in of_prompt] for skill, names in groups.items()}
    return {skill: fmean(values) for skill, values in there.items() if values}


def answer_tokens(tokenizer) -> list[int]:
    """Returns the tokens of an agreeing answer: alone and after a space, since chat templates differ.

    Raises:
        ValueError: the tokenizer has none.
    """
    for answer in AGREEING_ANSWERS:
        spelled = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (answer, f" {answer}")]
        tokens = sorted({ids[0] for ids in spelled if len(ids) == 1})
        if tokens:
            return tokens
    raise ValueError("its tokenizer has no token for Yes")


class VQAScorer:
    """Scorer of images: the probability of the answer Yes to `QUESTION`, by an image-text-to-text model.

    Args:
        checkpoint: folder of the model and its processor. Without a chat template the prompt is the question alone.
    """

    def __init__(self, checkpoint: str, device: torch.device):
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.processor.tokenizer.padding_side = "left"
        self.answer = answer_tokens(self.processor.tokenizer)
        dtype = "float32" if device.type == "cpu" else "auto"
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype, use_safetensors=True)
        self.model.to(device).eval()  # pyright: ignore[reportArgumentType]  # `wraps` loses self

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """Returns a score in 0 .. 1 for each image and the text that it should show."""
        inputs = self._inputs(images, [QUESTION.format(text) for text in texts])
        inputs = inputs.to(self.model.device, self.model.dtype)  # the dtype is for pixels alone
        output = self.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return output.logits[0].float().softmax(-1)[:, self.answer].sum(-1).tolist()

    def _inputs(self, images: Sequence[Image.Image], questions: Sequence[str]):
        if self.processor.chat_template is None:
            return self.processor(images=list(images), text=list(questions), padding=True, return_tensors="pt")
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image, question in zip(images, questions, strict=True)
        ]
        return self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
