"""docs/tamper.md has a row for every operator that there is, and for no other."""

import re

import pytest

from tests.faults.tamper import archive
from tests.faults.tamper.bundle import FORGERIES
from tests.support.paths import REPO

OPERATORS = [
    *((f"bundle, {f.by}", f.name) for f in FORGERIES),
    *(("bundle as a file, anyone", f.name) for f in (*archive.forgery, *archive.folders)),
]


def rows() -> list[list[str]]:
    """The cells of the page's table."""
    table = (REPO / "docs" / "tamper.md").read_text().partition("<!-- table -->\n")[2].partition("<!-- /table -->")[0]
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()[2:]]
    return [[cell.strip().replace("\\|", "|") for cell in line] for line in lines]


def test_every_operator_has_a_row_and_every_row_an_operator() -> None:
    assert {(row[0], row[1]) for row in rows()} == set(OPERATORS), "run make faults: it writes the page"


@pytest.mark.parametrize("row", [row for row in rows() if row[2].startswith("not found")], ids=lambda row: row[1])
def test_what_is_not_found_is_explained_above_the_table(row: list[str]) -> None:
    assert row[3].startswith("exit 0")
