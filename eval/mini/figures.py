"""Figures of the suite `mini`: their targets, and parts of a measurement that are kept when it is cut off."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ...data.atomic_files import atomic_file
from ...data.world.prompts import TASKS
from ..suite import Evaluation


TARGETS = {  # figure -> at least this is aimed at
    "psnr_new_style_depth4": 24.0,
    "semantic_gain_4_16": 0.04,
    "probe_gain_4_16": 0.08,
    "probe_share_16": 0.96,
    "qa_name_new_style": 0.85,
    "qa_color": 0.95,
    "qa_yes_no": 0.88,
    "qa_count": 0.93,
    "qa_position": 0.90,
    "geneval_overall": 0.90,
    "geneval_overall_held": 0.85,
    "geneval_detector": 0.98,
    "geneval_ceiling": 0.95,
    "t2i_top5_train_cfg7.5": 0.90,
}
LEAST_TASK = 0.75
"""No task of `geneval_<task>` should be below it, of seen or held-out pairs."""


@dataclass
class Part:
    """Figures that are measured together, and rows of tables."""

    figures: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


class Parts:
    """Keeps parts in a folder of the results until all are measured.

    Args:
        evaluation: the suite under way; parts of other weights, options or files are dropped.
    """

    def __init__(self, evaluation: Evaluation):
        self.workers, self.folder = evaluation.workers, evaluation.folder / "parts"
        settings = {"options": vars(evaluation.options), "files": evaluation.files}
        self.settings = json.loads(json.dumps(settings | {"checkpoint_sha256": evaluation.checkpoint_sha256}))

    def get(self, name: str, measure: Callable[[], Part]) -> Part:
        """A part, from its file or measured by all processes together.

        Args:
            name: of the file, without suffix.
            measure: gives the same on every process.
        """
        kept = self.workers.once(lambda: self._read(name))
        if kept is not None:
            return Part(**kept)
        part = measure()
        if self.workers.is_main:
            with atomic_file(self.folder / f"{name}.json") as path:
                path.write_text(json.dumps({"settings": self.settings, "part": asdict(part)}), encoding="utf-8")
        return part

    def drop(self) -> None:
        """Removes the folder: the results hold everything now."""
        if self.workers.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            return found["part"] if found["settings"] == self.settings else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def with_targets(figures: dict[str, float]) -> dict[str, float]:
    """Figures, each with its target behind it where it has one."""
    beside: dict[str, float] = {}
    for name, value in figures.items():
        beside[name] = value
        task = name.removeprefix("geneval_").removesuffix("_held")
        if name in TARGETS:
            beside[f"{name}_target"] = TARGETS[name]
        elif name.startswith("geneval_") and task in TASKS:
            beside[f"{name}_target"] = LEAST_TASK
    return beside
