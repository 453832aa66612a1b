"""The examples of the page on the API run against a real verifier."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from keyturn_verifier.auth import RIGHTS, Right
from tests.support.optional import require_program
from tests.support.paths import REPO
from tests.support.verifier import Verifier

PAGE = (REPO / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)


def test_every_curl_example_runs(tmp_path: Path) -> None:
    for program in ("sh", "curl", "tar", "sed"):
        require_program(program)
    assert len(BLOCKS) == 5
    with Verifier(tmp_path) as verifier:
        node = verifier.enrolled(chips=3, usage=3)
        place = {"V": verifier.client.url, "TOKEN": verifier.reader_token(), "NODE": node.name.node_id}
        for block in BLOCKS:
            done = subprocess.run(
                ["sh", "-e", "-c", block],
                cwd=tmp_path,
                env={**os.environ, **place, "no_proxy": "127.0.0.1"},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, (block, done.stderr)
            assert done.stdout


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ("read:", Right.READ),
        ("see", Right.SWITCH),
        ("take", Right.BUNDLE),
        ("close", Right.REVIEW),
        ("read `/m", Right.METRICS),
    ],
)
def test_the_table_of_rights_is_that_of_the_code(row: str, right: Right) -> None:
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {row}"))
    cells = [cell.strip() == "yes" for cell in line.strip("|").split("|")[1:]]
    roles = ("operator", "auditor", "admin", "approver")
    assert cells == [right in RIGHTS[role] for role in roles]  # type: ignore[index]
