"""The whole catalogue, and docs/bad_inputs.md, which is written from it.

python tests/strangers/table.py
"""

import sys
from pathlib import Path


TESTS = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from strangers import (  # noqa: E402
    checkpoints,
    codes,
    commands,
    conversations,
    crowds,
    evaluations,
    images,
    page,
    recipes,
    records,
    releases,
    sources,
    trainings,
)
from strangers.case import Case, Group  # noqa: E402


TABLE = TESTS.parent / "docs" / "bad_inputs.md"
GROUPS: list[Group] = [
    group
    for module in (
        images,
        conversations,
        codes,
        recipes,
        trainings,
        records,
        sources,
        checkpoints,
        releases,
        commands,
        evaluations,
        page,
        crowds,
    )
    for group in module.GROUPS
]
INTRODUCTION = """\
# What bad inputs get

{bad} bad inputs, and {good} odd ones that are good, by the door that they come in at. Each is a test: it ends within a
time limit, leaves files and folders as they were, reads and writes nothing outside its own folder, runs nobody's code,
and a refusal is one line that names the input, the limit and the mend: an exception in Python, exit code 2 on the
command line, a note on the page, never a traceback; only what its forms would never send gets a bare status from the
page. `…` stands for what another library says, or for what changes from run to run.

Written by `python tests/strangers/table.py` from the catalogue in `tests/strangers/`; `make fuzz` makes up more."""


def render_table() -> str:
    """The text of docs/bad_inputs.md."""
    cases = [case for group in GROUPS for case in group.cases]
    good = sum(case.good is not None for case in cases)
    lines = [INTRODUCTION.format(bad=len(cases) - good, good=good)]
    for group in GROUPS:
        lines += [
            "",
            f"## {group.title}",
            "",
            f"Through {group.entry}.",
            "",
            "| given | | what it gets |",
            "|---|---|---|",
        ]
        lines += [_row(group, case) for case in group.cases]
    return "\n".join(lines) + "\n"


def _row(group: Group, case: Case) -> str:
    outcome, gets = ("good", case.gets) if case.good is not None else (group.refusal, _as_code(case.gets))
    return f"| {_in_cell(case.given)} | {outcome} | {_in_cell(gets)} |"


def _as_code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(render_table(), encoding="utf-8")
