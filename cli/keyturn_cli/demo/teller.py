"""How the demo tells its story: numbered by time, each step held against what it must show."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from keyturn_cli.errors import CliError, Exit


@dataclass(frozen=True, slots=True)
class Teller:
    """Prints to ``out``; the clock begins with it."""

    out: Console
    began_s: float = field(default_factory=time.monotonic)

    def step(self, title: str) -> None:
        """A headline, with the time that has passed."""
        passed = f"{time.monotonic() - self.began_s:5.1f} s"
        self.out.print()
        self.out.print(Text.assemble((f"{passed}  ", "dim"), (title, "bold cyan")), soft_wrap=True)

    def say(self, text: str) -> None:
        """What was seen, under its headline."""
        self.out.print(Padding(Text(text), (0, 0, 0, 9), expand=False))

    def command(self, *words: object) -> None:
        """A command as a person would type it."""
        self.out.print(Padding(Text("$ " + " ".join(map(str, words)), style="bold"), (0, 0, 0, 9), expand=False))


def expect(true: bool, expected: str, got: str) -> None:
    """That a step showed what it says.

    :raises CliError: it didn't.
    """
    if not true:
        raise CliError(f"the demo didn't show what it should (expected {expected}, got {got})", exit=Exit.REJECTED)


def shown(path: Path) -> str:
    """A path as a person would type it from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
