"""Files of results beside a checkpoint, which its model card is rendered from.

`results.json` is that of the suite `mini`, `understanding.json` that of the suite `understanding`.
"""

from pathlib import Path
from typing import Any

from evotok.eval.results import load_results


MINI, HARNESS = "mini", "understanding"
FILES = {MINI: "results.json", HARNESS: "understanding.json"}
COMMANDS = {
    MINI: "evotok eval mini CHECKPOINT",
    HARNESS: "evotok eval understanding CHECKPOINT --config configs/eval/understanding-world.yaml",
}


def read_suite(path: Path, suite: str) -> dict[str, Any]:
    """Reads finished results of a suite.

    Raises:
        ValueError: no such file, or a file with other content.
    """
    again = f"run `{COMMANDS[suite]}`, then `python -m evotok.cards.mini CHECKPOINT RESULTS`"
    try:
        found = load_results(path) or {}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file: {again}.") from None
    is_finished = found.get("suite") == suite and found["finished"] is True
    if not (is_finished and found.get("checkpoint_sha256") and found["figures"]):
        raise ValueError(f"{path}: no finished results of `{COMMANDS[suite]}`: delete it, or {again}.")
    return found


def read_suites(folder: Path, checkpoint_sha256: str) -> dict[str, dict[str, Any]]:
    """Reads the results beside a checkpoint, those of its weights: suite -> results.

    Raises:
        ValueError: a file that holds something else than finished results of its suite.
    """
    found = {suite: read_suite(folder / name, suite) for suite, name in FILES.items() if (folder / name).is_file()}
    return {suite: results for suite, results in found.items() if results["checkpoint_sha256"] == checkpoint_sha256}


def outdated_results(folder: Path, checkpoint_sha256: str) -> list[str]:
    """Returns a line for each file with results of other weights, which the card leaves out."""
    known = read_suites(folder, checkpoint_sha256)
    return [
        f"{folder / name}: of other weights, and not in the card: run `{COMMANDS[suite]}` again."
        for suite, name in FILES.items()
        if suite not in known and (folder / name).is_file()
    ]
