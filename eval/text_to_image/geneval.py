"""GenEval (Ghosh et al., 2023): its prompts, and its rules of what a right picture is, over the things found in it.

No network here: the rules are functions of boxes, scores and names. Whoever detects, `judge` decides as the benchmark's
own script does, with the thresholds that the script has.

A record is a line of the benchmark's `evaluation_metadata.jsonl`: `tag` (the task), `prompt`, `include` and, for
counting, `exclude`: clauses with a `class`, a `count` and perhaps a `color` or a `position` (relation, index of the
clause that it relates to).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


TASKS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
"""Task -> prompts of it."""
PAPER = {"single_object": 0.99, "two_object": 0.91, "counting": 0.44, "colors": 0.87, "position": 0.69}
PAPER |= {"color_attr": 0.62, "overall": 0.75}
"""The paper's Table 3, with prompts rewritten by GPT-4o."""
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")

CONFIDENCE = 0.3
"""A thing counts above this score,"""
COUNTING_CONFIDENCE = 0.9
"""and where things are counted, above this one, since the detector sees the same thing twice."""
MOST = 16
"""Things of a class, the surest ones."""
APART = 0.1
"""A centre is beside another only by more than this share of both sizes."""


@dataclass(frozen=True)
class Thing:
    """Something found in a picture."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    """Left, top, right, bottom, in pixels."""
    mask: np.ndarray | None = None
    """(H, W) bool."""


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a mask (H, W) that is not empty; the last two just outside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The benchmark's prompts.

    Raises:
        ValueError: no such file, a line of another form, or not the benchmark's number of prompts of a task.
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
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"{path}, line {number}: no prompt of GenEval ({reason}): copy the file again.") from None
        records.append(record)
    for task, wanted in TASKS.items():
        there = sum(record["tag"] == task for record in records)
        if there != wanted:
            raise ValueError(f"{path}: {there} prompts of {task}, GenEval has {wanted}: copy the file again.")
    return records


def _check_record(record: dict[str, Any]) -> None:
    """Raises an error of any type for what `judge` could not work with."""
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


def pick(records: Sequence[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """`limit` records of each task, from all over the list; all of them for None."""
    if limit is None:
        return list(records)
    chosen = []
    for task in dict.fromkeys(record["tag"] for record in records):
        own = [record for record in records if record["tag"] == task]
        count = min(limit, len(own))
        chosen += [own[i * len(own) // count] for i in range(count)]
    return chosen


def select(things: Sequence[Thing], least: float = 0.0) -> dict[str, list[Thing]]:
    """Label -> the things with a score above `least`, the `MOST` surest ones, the surest first."""
    found: dict[str, list[Thing]] = {}
    for thing in sorted(things, key=lambda thing: -thing.score):
        if thing.score > least and len(found.setdefault(thing.label, [])) < MOST:
            found[thing.label].append(thing)
    return found


def relations(thing: Thing, other: Thing) -> set[str]:
    """Where a thing is, seen from another: some of `RELATIONS`, two for a clear diagonal, none for one on the other.

    The offset of the centres, less `APART` of both sizes in each direction, must be more than half of the distance.
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


ColorsOf = Callable[[Sequence[Thing]], list[str]]


def judge(record: dict[str, Any], found: dict[str, list[Thing]], colors_of: ColorsOf) -> list[str]:
    """What is wrong with a picture, in words; nothing for a right one.

    All clauses of `include` must hold, and none of `exclude`. Of each class only the `count` surest things are looked
    at; more than `count` are fine unless excluded.

    Args:
        found: as `select` gives it.
        colors_of: the colours of things of one class.
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


def _fault(clause: dict[str, Any], things: list[Thing], groups: list, colors_of: ColorsOf) -> str:
    """What a clause misses, or ""; `groups` are the things of the clauses before it, None where they failed."""
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


def scores(tags: Sequence[str], right: Sequence[bool]) -> dict[str, float]:
    """`overall`, the mean of the tasks, and the share of right pictures of each task.

    Args:
        tags, right: task of each picture, and whether it is right.
    """
    tasks = dict.fromkeys(tags)
    shares = {task: float(np.mean([ok for tag, ok in zip(tags, right, strict=True) if tag == task])) for task in tasks}
    return {"overall": float(np.mean(list(shares.values())))} | shares
