"""Commands that are also a group: ``keyturn findings`` lists them, ``keyturn findings close`` closes some."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

FIRST = "show"
"""The name of a group's own command, which nobody needs to type."""


class _Group(TyperGroup):
    """A group whose arguments belong to its own command unless they begin with another one's name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else [FIRST, *args])


def group(name: str, first: Callable[..., int], help: str, **others: Callable[..., int]) -> typer.Typer:
    """A group: ``first`` without a name of its own, the others by theirs."""
    made = typer.Typer(name=name, cls=_Group, help=help, rich_markup_mode=None)
    text = f"Also: {', '.join(f'keyturn {name} {other}' for other in others)}."
    made.command(FIRST, epilog=text)(first)
    for other, run in others.items():
        made.command(other)(run)
    return made
