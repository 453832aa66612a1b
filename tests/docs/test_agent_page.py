"""docs/agent.md against the agent: every command, every reason, every check, and nothing else."""

import argparse
import re
from pathlib import Path

import keyturn_agent
from keyturn_agent import procs
from keyturn_agent.cli import _parser
from tests.support.paths import REPO

PAGE = (REPO / "docs" / "agent.md").read_text()
PACKAGE = Path(keyturn_agent.__path__[0])


def rows(heading: str) -> set[str]:
    """The words in code spans of the first column of the last table below a heading."""
    text = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = text.strip().split("\n\n")
    lines = next(part for part in reversed(table) if part.startswith("|")).splitlines()[2:]
    return {word for line in lines for word in re.findall(r"`([a-z_-]+)`", line.split("|")[1])}


def test_every_command_is_described() -> None:
    (actions,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert rows("Commands") == set(actions.choices)


def test_every_flag_that_is_named_exists() -> None:
    sources = "".join(path.read_text() for path in PACKAGE.glob("cli*.py"))
    for flag in set(re.findall(r"(--[a-z]+(?:-[a-z]+)*)", PAGE)) - {"--pid"}:
        assert f'"{flag}"' in sources, flag


def test_every_reason_is_explained() -> None:
    reasons = {procs.GONE, procs.HIDDEN, procs.OTHER_NAMESPACE, procs.NO_OWNER, procs.NOT_LISTED}
    assert rows("Whose work it was") == reasons


def test_every_check_is_explained() -> None:
    sources = "".join(path.read_text() for path in PACKAGE.glob("doctor*.py"))
    assert rows("Doctor") == set(re.findall(r'name="([a-z]+)"', sources))
