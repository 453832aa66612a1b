"""Every command line in README and in the guides is one that the programs know."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from keyturn_cli.main import app
from tests.support.documents import code_of, markdown_files, name_of
from tests.support.optional import require
from tests.support.paths import REPO

START_SWITCH = REPO / "docs" / "start-switch.md"
PROGRAMS = ("keyturn-agent", "keyturn-gate", "keyturn-verifier", "keyturn")


def command_lines(path: Path) -> list[tuple[str, str]]:
    """(program, subcommand) of each line of code that begins with a program, with or without a prompt."""
    found = re.findall(
        r"^(?:\$ )?(?:sudo )?(?:\.venv/bin/)?(keyturn(?:-agent|-gate|-verifier)?) ([a-z][a-z-]*)\b",
        code_of(path.read_text()),
        flags=re.MULTILINE,
    )
    return sorted(set(found))


@cache
def help_of(program: str) -> str:
    script = Path(sys.executable).parent / program
    require("scripts", script.exists(), f"{program} is not installed beside {sys.executable}")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


DOCUMENTS = [path for path in markdown_files() if path.parent in (REPO, REPO / "docs")]
NAMED = [(path, program, command) for path in DOCUMENTS for program, command in command_lines(path)]


@pytest.mark.parametrize(
    ("path", "program", "command"),
    NAMED,
    ids=[f"{name_of(p)}:{program} {command}" for p, program, command in NAMED],
)
def test_commands_named_in_documents_exist(path: Path, program: str, command: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(command)}(?![\w-])", help_of(program)), (
        f"{name_of(path)} names `{program} {command}`; {program} --help doesn't"
    )


def without_json(command: Any, name: str = "") -> list[str]:
    """The commands of ``keyturn`` that have no ``--json``."""
    if (inner := getattr(command, "commands", None)) is not None:
        return [found for word, one in inner.items() for found in without_json(one, f"{name} {word}".strip())]
    return [] if any("--json" in one.opts for one in command.params) else [name]


def test_every_command_but_those_that_the_page_names_takes_json() -> None:
    (named,) = re.findall(r"All commands but `(\w+)`, which prints bytes, take `--json`", START_SWITCH.read_text())
    assert without_json(typer.main.get_command(app)) == [named]


@pytest.mark.parametrize("program", PROGRAMS)
def test_readme_shows_every_program(program: str) -> None:
    assert program in {named for named, _ in command_lines(REPO / "README.md")}
