"""What was done, what had to happen and what happened: the rows behind docs/faults.md and docs/tamper.md.

A test calls `record` once it has checked a case, so that a row is something that was seen and held. With
`KEYTURN_FAULTS_ROWS` set the rows go to that file, one JSON object a line (workers of pytest-xdist append to the same
one); `python -m tests.faults.table FILE` puts them between the markers of the pages. `make faults` does both.
"""

import argparse
import json
import os
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

from tests.support.paths import REPO

Page = Literal["faults", "tamper"]
"""`faults`: things that break; `tamper`: people who lie. Each has its page in docs/."""

LONG = os.environ.get("KEYTURN_FAULTS") == "long"
"""True under `make faults`: every case. Otherwise tests take a sample that fits into `make test`."""


class Row(NamedTuple):
    """One case. Cases that differ in nothing named here are counted together."""

    page: str
    part: str
    """Who it happens to: agent, verifier (SQLite), verifier (PostgreSQL), network, bundle …"""
    what: str
    """The fault or the operator: `EIO at fdatasync`, `segment dropped` …"""
    expected: str
    """What must hold after it."""
    seen: str
    """What was seen: the finding's code, the exit status, `same head, nothing lost` …"""


def record(page: Page, part: str, what: str, *, expected: str, seen: str) -> None:
    """Write down a case that was run and held; does nothing unless `KEYTURN_FAULTS_ROWS` names a file."""
    target = os.environ.get("KEYTURN_FAULTS_ROWS")
    if target:
        line = json.dumps(Row(page, part, what, expected, seen)._asdict(), sort_keys=True) + "\n"
        with Path(target).open("ab") as file:
            file.write(line.encode())  # one write, in append mode: lines of several workers don't mix


def record_all(page: Page, part: str, what: str, *, expected: str, seen: list[str]) -> None:
    """:func:`record` for every variant of one case, in one row: the two things that were seen most often."""
    often = [text for text, _ in Counter(seen).most_common()]
    words = "; or ".join(sorted(often[:2])) + (f"; and {len(often) - 2} more" if len(often) > 2 else "")
    for _ in seen:
        record(page, part, what, expected=expected, seen=words)


def render(rows: list[Row]) -> str:
    """The rows as a Markdown table, with the number of cases behind each."""
    lines = ["| Where | What was done | What must hold | What was seen | Cases |", "|---|---|---|---|---:|"]
    for row, cases in sorted(Counter(rows).items()):
        cells = [cell.replace("|", "\\|") for cell in (row.part, row.what, row.expected, row.seen)]
        lines.append(f"| {' | '.join(cells)} | {cases} |")
    return "\n".join(lines)


def write(page: str, rows: list[Row], docs: Path) -> None:
    """Put the table between the markers of `docs/<page>.md`; the words around it stay."""
    path = docs / f"{page}.md"
    before, begin, rest = path.read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- /table -->")
    if not begin or not end:
        raise SystemExit(f"keyturn: error: {path} must hold <!-- table --> and <!-- /table --> on lines of their own")
    path.write_text(f"{before}{begin}{render(rows)}\n{end}{after}")


def main() -> None:
    """Write the pages from a file of rows; a page without a row is left alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    rows = [Row(**json.loads(line)) for line in parser.parse_args().rows.read_text().splitlines()]
    for page in sorted({row.page for row in rows}):
        write(page, [row for row in rows if row.page == page], REPO / "docs")


if __name__ == "__main__":
    main()
