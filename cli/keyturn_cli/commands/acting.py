"""What all commands that sign a statement have in common: their options, and the way from a statement to its place."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from keyturn_cli.commands.read import JsonOption, TokenFileOption, TokenOption

VerifierMaybe = Annotated[
    str | None, typer.Option("--verifier", metavar="URL", envvar="KEYTURN_VERIFIER", help="the verifier's address")
]
RootOption = Annotated[
    str | None, typer.Option("--root", metavar="sha256:…", help="the hash of any root version, got out of band")
]
BundleOption = Annotated[
    Path | None, typer.Option("--bundle", metavar="FILE", help="a permit bundle; default: the verifier is asked")
]
OpeningsOption = Annotated[
    Path | None, typer.Option("--openings", metavar="FILE", help="what the commitments were made from")
]
KeyMaybe = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="a key of keyturn key new, an SSH key, or its .pub with an agent"),
]
OutMaybe = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="write it to a new file; default: to the verifier")
]
PersonOption = Annotated[
    str | None, typer.Option("--person", metavar="PARTY/NAME", help="in whose name; default: whose --key it is")
]


@dataclass(frozen=True, slots=True)
class Acting:
    """The options of every command that makes a statement."""

    verifier: VerifierMaybe = None
    token: TokenOption = None
    token_file: TokenFileOption = None
    root: RootOption = None
    bundle: BundleOption = None
    openings: OpeningsOption = None
    key: KeyMaybe = None
    person: PersonOption = None
    unsigned: Annotated[bool, typer.Option("--unsigned", help="with --out: sign it later, with keyturn sign")] = False
    out: OutMaybe = None
    expect: Annotated[
        str | None, typer.Option("--expect", metavar="HASH", help="of the run; asks for the beginning of it otherwise")
    ] = None
    json: JsonOption = False


def acting(command: Callable[..., int]) -> Callable[..., int]:
    """A command with the options of :class:`Acting`, which it gets as its first argument, behind its own."""
    hints = get_type_hints(command, include_extras=True)
    common = get_type_hints(Acting, include_extras=True)
    own = list(inspect.signature(command).parameters.values())[1:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default.default, annotation=common[name])
        for name, default in inspect.signature(Acting).parameters.items()
    ]
    kept = [parameter.replace(annotation=hints[parameter.name]) for parameter in own]

    @wraps(command)
    def run(**given: Any) -> int:
        return command(Acting(**{name: given.pop(name) for name in common}), **given)

    run.__signature__ = inspect.Signature([*kept, *shared], return_annotation=int)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in (*kept, *shared)} | {"return": int}
    return run
