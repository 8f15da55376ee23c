"""What strangers give: every case of the catalogue, and the table that tells of it."""

import pytest
from strangers.case import Watch, run_case
from strangers.table import GROUPS, TABLE, render_table


WATCH = Watch()
CASES = [pytest.param(group, case, id=f"{group.title}: {case.given}") for group in GROUPS for case in group.cases]


@pytest.mark.parametrize(("group", "case"), CASES)
def test_case(group, case, place):
    run_case(group, case, place, WATCH)


def test_there_are_enough_bad_inputs():
    bad = [(group.title, case.given) for group in GROUPS for case in group.cases if case.good is None]
    assert len(bad) == len(set(bad)) >= 200


def test_the_table_is_the_one_that_the_catalogue_gives():
    assert TABLE.read_text(encoding="utf-8") == render_table(), "run: python tests/strangers/table.py"
