"""GenAI-Bench (Li et al., 2024): its prompts with the skills that they need, and the means over those.

The files are the benchmark's `genai_image.json` (id -> `prompt`) and `genai_skills.json` (skill -> ids as numbers).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any


SIZES = (527, 1600)
"""Prompts of the benchmark: those of the VQAScore paper, and all."""
HEADLINES = ("basic", "advanced")
PAPER = {"basic": 0.87, "advanced": 0.66}
"""The paper's Table 3."""


def read_prompts(path: str | Path) -> dict[str, str]:
    """Id -> prompt.

    Raises:
        ValueError: no such file, another form, or not the benchmark's number of prompts.
    """
    entries = _read(path, "genai_image.json")
    prompts = {}
    for name, entry in entries.items():
        text = entry.get("prompt") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not name.isalnum():
            raise ValueError(f"{path}: {name[:20]!r} has no prompt: copy the file again.")
        prompts[name] = text
    if len(prompts) not in SIZES:
        sizes = " or ".join(map(str, SIZES))
        raise ValueError(f"{path}: {len(prompts)} prompts, GenAI-Bench has {sizes}: copy the file again.")
    return prompts


def read_skills(path: str | Path, prompts: dict[str, str]) -> dict[str, list[str]]:
    """Skill -> ids of the prompts that need it, `basic` and `advanced` among the skills.

    Raises:
        ValueError: no such file, another form, or ids that are not those of the prompts.
    """
    skills, of_number = {}, {int(name): name for name in prompts if name.isdigit()}
    for skill, numbers in _read(path, "genai_skills.json").items():
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise ValueError(f"{path}: {skill[:40]!r} is no list of numbers: copy the file again.")
        strange = next((number for number in numbers if number not in of_number), None)
        if strange is not None:
            raise ValueError(
                f"{path}: {skill!r} has prompt {strange}, which `prompts` has not: give files of one size."
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


def pick_evenly(prompts: dict[str, str], limit: int | None) -> dict[str, str]:
    """`limit` prompts from all over the list; all of them for None."""
    names = list(prompts)
    count = min(limit or len(names), len(names))
    return {name: prompts[name] for name in (names[i * len(names) // count] for i in range(count))}


def means(scores: dict[str, Sequence[float]], skills: dict[str, list[str]]) -> dict[str, float]:
    """Skill -> mean over its prompts of the mean over their pictures, and `all`, over every prompt with a skill.

    Args:
        scores: id -> scores of its pictures. Skills without a prompt among them are left out.
    """
    of_prompt = {name: fmean(values) for name, values in scores.items()}
    groups = skills | {"all": list(dict.fromkeys(name for names in skills.values() for name in names))}
    there = {skill: [of_prompt[name] for name in names if name in of_prompt] for skill, names in groups.items()}
    return {skill: fmean(values) for skill, values in there.items() if values}
