"""docs/tamper.md has a row for every operator that there is, and for no other."""

import re

import pytest
from sqlmodel import SQLModel

from keyturn_verifier.check import UNCHECKED
from tests.faults.tamper import archive, database, host, switch
from tests.faults.tamper.bundle import FORGERIES
from tests.support.paths import REPO

OPERATORS = [
    *((f"bundle, {f.by}", f.name) for f in FORGERIES),
    *(("bundle as a file, anyone", f.name) for f in (*archive.forgery, *archive.folders)),
    *((f"start switch, {f.by}", f.name) for f in switch.forgery),
    *(("verifier (SQLite), SQL", edit.name) for edit in database.operators()),
    *(("host, root", edit.name) for edit in (*host.ROOT, *host.WAITING)),
]


ON_SERVER = {("verifier (PostgreSQL), SQL", edit.name) for edit in database.operators()}
"""The same on the other database."""


def rows() -> list[list[str]]:
    """The cells of the page's table."""
    table = (REPO / "docs" / "tamper.md").read_text().partition("<!-- table -->\n")[2].partition("<!-- /table -->")[0]
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()[2:]]
    return [[cell.strip().replace("\\|", "|") for cell in line] for line in lines]


def test_every_operator_has_a_row_and_every_row_an_operator() -> None:
    assert {(row[0], row[1]) for row in rows()} == ON_SERVER | set(OPERATORS), "run make faults: it writes the page"


@pytest.mark.parametrize("row", [row for row in rows() if row[2].startswith("not found")], ids=lambda row: row[1])
def test_what_is_not_found_says_what_was_seen_instead(row: list[str]) -> None:
    assert row[3].startswith("exit 0") or "audit: pass" in row[3]


def test_every_column_that_nobody_checks_is_one() -> None:
    """The list of what is no evidence has no name that isn't there any more."""
    known = {*SQLModel.metadata.tables, "alembic_version"}
    known |= {f"{name}.{column.name}" for name, table in SQLModel.metadata.tables.items() for column in table.columns}
    assert UNCHECKED.keys() <= known
