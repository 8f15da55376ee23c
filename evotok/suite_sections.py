"""Sections of the model card that are results of `evotok eval`: they lie beside the checkpoint.

`unseen.json` and `understanding.json` are the `results.json` that the suite of this name wrote for the same weights.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


QUESTIONS = {
    "qa_name_new_pair": "name, of things known from other styles",
    "qa_group_new_concept": "group, of things never seen",
    "qa_color": "color",
    "qa_yes_no": "yes or no",
    "qa_count": "how many, 1 to 4",
    "qa_position": "where, relative to another",
}
UNSEEN = {  # table -> column of `evotok eval unseen` -> heading
    "reconstruction": {
        "pictures": "pictures",
        "n": "n",
        "psnr": "PSNR, dB",
        "ssim": "SSIM",
        "semantic_cosine": "semantic cosine",
        "baseline": "cosine of average features",
    },
    "answers": {
        "pictures": "pictures",
        "question": "question",
        "n": "n",
        "right": "accuracy",
        "commonest answer": "commonest answer",
    },
}
COMMANDS = {
    "unseen": "evotok eval unseen CHECKPOINT",
    "understanding": "evotok eval understanding CHECKPOINT --config configs/eval/understanding-emoji.yaml",
}


def read_suites(folder: Path, checkpoint_sha256: str) -> dict[str, dict[str, Any]]:
    """Suite -> its results, those of these weights.

    Raises:
        ValueError: a file holds something else than finished results of its suite.
    """
    found = {name: _read(folder / f"{name}.json", name) for name in COMMANDS if (folder / f"{name}.json").is_file()}
    return {name: results for name, results in found.items() if results["checkpoint_sha256"] == checkpoint_sha256}


def left_out(folder: Path, checkpoint_sha256: str) -> list[str]:
    """A line for each file of other weights, which is not in the card."""
    known = read_suites(folder, checkpoint_sha256)
    return [
        f"{folder / f'{name}.json'}: of other weights, and not in the card: run `{command}` and copy its "
        "results.json there."
        for name, command in COMMANDS.items()
        if name not in known and (folder / f"{name}.json").is_file()
    ]


def _read(path: Path, suite: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = {
            "unseen": lambda: found["tables"].keys() == UNSEEN.keys(),
            "understanding": lambda: QUESTIONS.keys() <= found["figures"].keys() and found["versions"]["lmms-eval"],
        }
        if (found["suite"], found["finished"]) == (suite, True) and whole[suite]() and found["checkpoint_sha256"]:
            return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{path}: no finished results of `{COMMANDS[suite]}`: delete it, or copy its results.json anew.")


def by_the_harness(suites: dict[str, dict[str, Any]]) -> str:
    """Questions, as lmms-eval scores the answers; nothing if it was not asked."""
    if "understanding" not in suites:
        return ""
    found = suites["understanding"]
    figures, version = found["figures"], found["versions"]["lmms-eval"]
    rows = [[said, f"{figures[f'{name}_n']:,}", f"{figures[name]:.3f}"] for name, said in QUESTIONS.items()]
    return f"""\
### The official QA score, through lmms-eval

{table(("question", "n", "exact match"), rows)}

The same questions, asked and scored by [lmms-eval](https://github.com/EvolvingLMMs-Lab/lmms-eval) {version}, to which
EvoTok is a plugin: `{COMMANDS["understanding"]}`."""


def never_seen(suites: dict[str, dict[str, Any]]) -> str:
    """Pictures of other kinds; nothing if they were not looked at."""
    if "unseen" not in suites:
        return ""
    unseen = suites["unseen"]
    shown = [
        table(tuple(columns.values()), [[_cell(row[name]) for name in columns] for row in unseen["tables"][name_of]])
        for name_of, columns in UNSEEN.items()
    ]
    notes = "\n\n".join(unseen["notes"])
    return f"""\
### What it never saw

{shown[0]}

{shown[1]}

{notes} The photographs come with scikit-image and scikit-learn, the stamps with Tux Paint. Measured by
`evotok eval unseen`, version {unseen["versions"]["evotok"]}."""


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
