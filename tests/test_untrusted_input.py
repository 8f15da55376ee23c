"""Untrusted input: every case of the catalogue, and the table of its kinds."""

import pytest
from untrusted.case import AccessMonitor, run_case
from untrusted.table import GROUPS, TABLE, render_table


MONITOR = AccessMonitor()
CASES = {
    ": ".join(filter(None, (group.entry.replace("`", ""), kind.name, case.given))): (group, kind, case)
    for group in GROUPS
    for kind in group.kinds
    for case in kind.cases
}


@pytest.mark.parametrize("name", CASES)
def test_case_meets_its_requirements(name, workspace):
    run_case(*CASES[name], workspace, MONITOR)


def test_names_of_cases_are_unique():
    assert len(CASES) == sum(len(kind.cases) for group in GROUPS for kind in group.kinds) >= 200


def test_table_equals_the_catalogue():
    assert TABLE.read_text(encoding="utf-8") == render_table(), "run: python tests/untrusted/table.py"
