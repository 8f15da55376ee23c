"""GenEval (Ghosh et al., 2023): its prompts, and its rules for right images, over the things detected in an image.

The rules are functions of boxes, scores and names, with the thresholds of the benchmark's own script; the networks are
in `detectors.py`.

A record is a line of the benchmark's `evaluation_metadata.jsonl`: `tag` (the task), `prompt`, `include` and, for
counting, `exclude`: clauses with a `class`, a `count` and possibly a `color` or a `position` (relation, index of the
other clause).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.errors import reason
from ...data.sequences import pick_evenly


TASKS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
"""Task -> prompts of it."""
PAPER = {"single_object": 0.99, "two_object": 0.91, "counting": 0.44, "colors": 0.87, "position": 0.69}
PAPER |= {"color_attr": 0.62, "overall": 0.75}
"""The paper's Table 3, with prompts rewritten by GPT-4o."""
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")

CONFIDENCE = 0.3
"""Smallest score of a detected object."""
COUNTING_CONFIDENCE = 0.9
"""Smallest score where objects are counted, since the detector finds some of them twice."""
MOST = 16
"""Largest number of objects of a class, those with the highest scores."""
APART = 0.1
"""Smallest distance of two centres in a direction, as a share of both sizes."""


@dataclass(frozen=True)
class DetectedObject:
    """Object detected in an image."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    """Left, top, right, bottom, in pixels."""
    mask: np.ndarray | None = None
    """(H, W) bool."""


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of a mask (H, W) that is not empty; right and bottom are exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Reads the benchmark's prompts.

    Raises:
        ValueError: no such file, a line of another format, or another number of prompts of a task than the benchmark's.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file: give GenEval's evaluation_metadata.jsonl.")
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            _check_record(record)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: no prompt of GenEval ({reason(error)}): copy the file again."
            ) from None
        records.append(record)
    for task, wanted in TASKS.items():
        there = sum(record["tag"] == task for record in records)
        if there != wanted:
            raise ValueError(f"{path}: {there} prompts of {task}, GenEval has {wanted}: copy the file again.")
    return records


def _check_record(record: dict[str, Any]) -> None:
    """Raises an error of any type for a record that `judge` cannot use."""
    if record["tag"] not in TASKS or not isinstance(record["prompt"], str) or not record["include"]:
        raise ValueError("tag, prompt or include")
    for index, clause in enumerate([*record["include"], *record.get("exclude", [])]):
        if not isinstance(clause["class"], str) or type(clause["count"]) is not int or clause["count"] < 1:
            raise ValueError("class or count")
        if clause.get("color", COLORS[0]) not in COLORS:
            raise ValueError("color")
        relation, target = clause.get("position", (RELATIONS[0], 0))
        if relation not in RELATIONS or ("position" in clause and target not in range(index)):
            raise ValueError("position")


def pick_records(records: Sequence[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """Picks `limit` records of each task evenly; all records, in their order, for None."""
    if limit is None:
        return list(records)
    tasks = dict.fromkeys(record["tag"] for record in records)
    return [record for task in tasks for record in pick_evenly([one for one in records if one["tag"] == task], limit)]


def select(things: Sequence[DetectedObject], least: float = 0.0) -> dict[str, list[DetectedObject]]:
    """Groups things with a score above `least` by label: the `MOST` of the highest scores, in descending order."""
    found: dict[str, list[DetectedObject]] = {}
    for thing in sorted(things, key=lambda thing: -thing.score):
        if thing.score > least and len(found.setdefault(thing.label, [])) < MOST:
            found[thing.label].append(thing)
    return found


def relations(thing: DetectedObject, other: DetectedObject) -> set[str]:
    """Returns the relations of a thing to another, of `RELATIONS`: two on a diagonal, none where they overlap much.

    In a direction, the offset of the centres less `APART` of both sizes must be more than half of their distance.
    """
    boxes = np.array([thing.box, other.box], dtype=float).reshape(2, 2, 2)  # thing, corner, x and y
    offset = boxes[0].mean(0) - boxes[1].mean(0)
    sizes = np.abs(boxes[:, 1] - boxes[:, 0]).sum(0)
    clear = np.maximum(np.abs(offset) - APART * sizes, 0) * np.sign(offset)
    if np.abs(clear).max() < 1e-3:
        return set()
    dx, dy = clear / np.linalg.norm(offset)
    holds = (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5)
    return {relation for relation, true in zip(RELATIONS, holds, strict=True) if true}


ColorsOf = Callable[[Sequence[DetectedObject]], list[str]]


def judge(record: dict[str, Any], found: dict[str, list[DetectedObject]], colors_of: ColorsOf) -> list[str]:
    """Returns what is wrong with an image, in words; nothing for a right one.

    All clauses of `include` must hold, and none of `exclude`. Of each class only the `count` things with the highest
    scores are checked; more than `count` are right unless excluded.

    Args:
        found: from `select`.
        colors_of: returns the colours of things of one class.
    """
    faults, groups = [], []
    for clause in record["include"]:
        things = found.get(clause["class"], [])[: clause["count"]]
        fault = _fault(clause, things, groups, colors_of)
        groups.append(None if fault else things)
        faults += [fault] if fault else []
    for clause in record.get("exclude", []):
        count = len(found.get(clause["class"], []))
        if count >= clause["count"]:
            faults.append(f"{clause['class']}: {count}, not fewer than {clause['count']}")
    return faults


def _fault(clause: dict[str, Any], things: list[DetectedObject], groups: list, colors_of: ColorsOf) -> str:
    """Returns what a clause lacks, or ""; `groups` are the things of the clauses before it, None where they failed."""
    label, count = clause["class"], clause["count"]
    if len(things) < count:
        return f"{label}: {len(things)} of {count}"
    if "color" in clause:
        colors = colors_of(things)
        if colors.count(clause["color"]) < count:
            return f"{label}: {', '.join(colors)}, not {clause['color']}"
    if "position" in clause:
        relation, target = clause["position"]
        if groups[target] is None:
            return f"{label}: nothing to be {relation}"
        for thing in things:
            for other in groups[target]:
                if relation not in relations(thing, other):
                    return f"{label}: not {relation} {other.label}"
    return ""


def task_shares(tags: Sequence[str], right: Sequence[bool]) -> dict[str, float]:
    """Computes the share of right images of each task, and `overall`, the mean of the tasks.

    Args:
        tags, right: task of each image, and whether it is right.
    """
    tasks = dict.fromkeys(tags)
    shares = {task: float(np.mean([ok for tag, ok in zip(tags, right, strict=True) if tag == task])) for task in tasks}
    return {"overall": float(np.mean(list(shares.values())))} | shares
