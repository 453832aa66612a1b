"""``keyturn explain``: what a code means, and what to do about it."""

import difflib
from typing import Annotated

import typer

from keyturn_cli import explanations
from keyturn_cli.commands.read import JsonOption
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.output import print_json, results

_NEAR = 0.8
"""A typing error. Less alike are words that mean something else, which would mislead."""
CodeArgument = Annotated[str, typer.Argument(metavar="CODE", help="such as requester, busy or gap; all: every one")]


def explain(code: CodeArgument, json: JsonOption = False) -> int:
    """Say what a code means, and what to do about it."""
    wanted = explanations.codes() if code == "all" else [code]
    found = [one for name in wanted for one in explanations.explain(name)]
    if not found:
        near = difflib.get_close_matches(code, explanations.codes(), 3, _NEAR)
        hint = f"did you mean {' or '.join(near)}?" if near else "keyturn explain all lists every code"
        raise CliError(f"there is no code {code}", exit=Exit.USAGE, hint=hint)
    if json:
        items = [{"code": one.code, "kind": one.kind, "means": one.means, "do": one.do} for one in found]
        print_json({"items": items})
        return Exit.FINE
    for one in found:
        results().print(f"{one.code} ({one.kind})", style="bold")
        results().print(f"    {one.means}\n    {one.do}", soft_wrap=True)
    return Exit.FINE
