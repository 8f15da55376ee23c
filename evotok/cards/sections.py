"""Results of `evotok eval` that lie beside a checkpoint: the `results.json` of suites, and what its card takes of them.

`results.json` is that of the suite `mini`, `understanding.json` that of the suite `understanding`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evotok.data.world.evaluation import QUESTION_SETS


MINI, HARNESS = "mini", "understanding"
FILES = {MINI: "results.json", HARNESS: "understanding.json"}
COMMANDS = {
    MINI: "evotok eval mini CHECKPOINT",
    HARNESS: "evotok eval understanding CHECKPOINT --config configs/eval/understanding-world.yaml",
}


def read_suite(path: Path, suite: str) -> dict[str, Any]:
    """Finished results of a suite.

    Raises:
        ValueError: no such file, or it holds something else.
    """
    again = f"run `{COMMANDS[suite]}`, then `python -m evotok.cards.mini CHECKPOINT RESULTS`"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if (found["suite"], found["finished"]) == (suite, True) and found["checkpoint_sha256"] and found["figures"]:
            return found
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file: {again}.") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{path}: no finished results of `{COMMANDS[suite]}`: delete it, or {again}.")


def read_suites(folder: Path, checkpoint_sha256: str) -> dict[str, dict[str, Any]]:
    """Suite -> its results beside a checkpoint, those of these weights.

    Raises:
        ValueError: a file holds something else than finished results of its suite.
    """
    found = {suite: read_suite(folder / name, suite) for suite, name in FILES.items() if (folder / name).is_file()}
    return {suite: results for suite, results in found.items() if results["checkpoint_sha256"] == checkpoint_sha256}


def left_out(folder: Path, checkpoint_sha256: str) -> list[str]:
    """A line for each file of other weights, which is not in the card."""
    known = read_suites(folder, checkpoint_sha256)
    return [
        f"{folder / name}: of other weights, and not in the card: run `{COMMANDS[suite]}` again."
        for suite, name in FILES.items()
        if suite not in known and (folder / name).is_file()
    ]


def by_the_harness(suites: dict[str, dict[str, Any]]) -> str:
    """The section of the questions as lmms-eval scores the answers; empty without its results."""
    if HARNESS not in suites:
        return ""
    found = suites[HARNESS]
    figures, version = found["figures"], found["versions"]["lmms-eval"]
    rows = [
        [asked.asks, f"{figures[f'{name}_n']:,}", f"{figures[name]:.3f}"]
        for name, asked in QUESTION_SETS.items()
        if name in figures
    ]
    return f"""\
### The same questions through lmms-eval

{table(("question", "n", "exact match"), rows)}

Asked and scored by [lmms-eval](https://github.com/EvolvingLMMs-Lab/lmms-eval) {version}, to which EvoTok is a plugin:
`{COMMANDS[HARNESS]}`."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
