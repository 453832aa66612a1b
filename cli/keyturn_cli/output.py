"""Results go to stdout, talk to stderr. Nothing that others wrote reaches a terminal with control characters."""

import sys
from functools import cache
from typing import Final

from rich.console import Console
from rich.text import Text

from keyturn_protocol.canonical import encode

FILE_WIDTH: Final = 200
"""Columns where there is no terminal to fit into."""


@cache
def results() -> Console:
    """Where results go."""
    width = None if sys.stdout.isatty() else FILE_WIDTH
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


@cache
def talk() -> Console:
    """Where everything else goes."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_json(value: object) -> None:
    """One canonical JSON value and a newline, and nothing else on stdout."""
    sys.stdout.buffer.write(encode(value) + b"\n")
    sys.stdout.flush()


def clean(text: str, limit: int = 400) -> str:
    """Text that others wrote, on one line and without control characters, cut at ``limit``."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:limit])
    return shown if len(text) <= limit else shown + "…"


def named(text: str, limit: int = 400) -> str:
    """A name that others chose. What isn't ASCII is spelled out behind it: two that look alike don't read alike.

    ``Köln`` is ``Köln [K\\xf6ln]``, and Latin letters with a Cyrillic one among them show it.
    """
    shown = clean(text, limit)
    return shown if shown.isascii() else f"{shown} [{shown.encode('unicode_escape').decode('ascii')}]"


def complain(message: str, hint: str | None = None) -> None:
    """``keyturn: error: …`` and, below it, what to try."""
    talk().print(Text.assemble(("keyturn: error: ", "bold red"), clean(message, 2_000)))
    if hint is not None:
        talk().print(Text.assemble(("keyturn: hint: ", "bold"), clean(hint, 2_000)))


def note(message: str) -> None:
    """A line of talk."""
    talk().print(f"keyturn: {clean(message, 2_000)}")
