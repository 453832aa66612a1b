"""docs/gate.md against the gate: every command, driver and event, and nothing else."""

import argparse
import re
from pathlib import Path

import keyturn_gate
from keyturn_gate.cli import _parser
from tests.support.paths import REPO

PAGE = (REPO / "docs" / "gate.md").read_text()
SOURCES = "".join(path.read_text() for path in Path(keyturn_gate.__path__[0]).glob("*.py"))


def rows(heading: str) -> set[str]:
    """The words in code spans of the first column of the table below a heading."""
    text = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return {word for line in lines for word in re.findall(r"`([a-z_-]+)`", line.split("|")[1])}


def test_every_command_is_described() -> None:
    (actions,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert rows("Commands") == set(actions.choices)


def test_every_driver_says_who_gets_around_it() -> None:
    (actions,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    (driver,) = (a for a in actions.choices["serve"]._actions if a.dest == "driver")
    assert rows("Drivers") == set(driver.choices or ())


def test_every_event_is_explained() -> None:
    noted = set(re.findall(r'\.note\(\s*"([a-z_]+)"', SOURCES)) | set(re.findall(r'_say\([^,]+, "([a-z_]+)"', SOURCES))
    assert rows("What it says") == noted


def test_every_flag_that_is_named_exists() -> None:
    for flag in set(re.findall(r"(--[a-z]+(?:-[a-z]+)*)", PAGE)) - {"--now"}:
        assert f'"{flag}"' in SOURCES, flag
