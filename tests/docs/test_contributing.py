"""What CONTRIBUTING.md says of CI is what ``.ci/run`` does."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.optional import require_program


def required(repo: Path, shared: Path) -> str:
    """What ``.ci/run`` would require, by the lines of it that say so."""
    lines = (repo / ".ci" / "run").read_text().split("\n")
    start = next(at for at, line in enumerate(lines) if line.startswith("parts="))
    end = next(at for at, line in enumerate(lines) if line.startswith("export KEYTURN_REQUIRE="))
    script = "\n".join(["set -uo pipefail", *lines[start : end + 1], 'printf %s "$KEYTURN_REQUIRE"'])
    environment = {name: value for name, value in os.environ.items() if name != "KEYTURN_REQUIRE"}
    command = [require_program("bash"), "-c", script]
    environment |= {"KEYTURN_SHARED": str(shared)}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.mark.parametrize("there", [True, False])
def test_ci_requires_what_is_said(repo: Path, tmp_path: Path, there: bool) -> None:
    said = re.search(r"sets it to\n`([a-z,-]+)`, and `shared` where", (repo / "CONTRIBUTING.md").read_text())
    assert said is not None
    shared = tmp_path if there else tmp_path / "none"
    assert required(repo, shared) == said[1] + (",shared" if there else "")
