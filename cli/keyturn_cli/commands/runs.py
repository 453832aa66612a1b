"""``keyturn show | diff | verify-bundle``: one run, as a verified bundle says, and what the verifier adds to it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from keyturn_cli import render_run, render_signing
from keyturn_cli.commands.acting import (
    Acting,
    BundleOption,
    OpeningsOption,
    RootOption,
    VerifierMaybe,
)
from keyturn_cli.commands.read import JsonOption, TokenFileOption, TokenOption
from keyturn_cli.commands.signed import Source, source
from keyturn_cli.commands.verbs import RunArgument
from keyturn_cli.errors import Exit
from keyturn_cli.lines import Lines
from keyturn_cli.output import note, print_json, results
from keyturn_cli.permits import from_file
from keyturn_cli.run_json import to_json
from keyturn_cli.seen import Memory


def show(
    run: RunArgument = None,
    verifier: VerifierMaybe = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    bundle: BundleOption = None,
    root: RootOption = None,
    openings: OpeningsOption = None,
    json: JsonOption = False,
) -> int:
    """Show a run in one screen: who signed, who is missing, what is charged and left, the time to stop."""
    given = Acting(
        verifier=verifier, token=token, token_file=token_file, bundle=bundle, root=root, openings=openings, json=json
    )
    with source(given) as where:
        view = where.run_view(run)
        opened, served = where.openings(view), where.served(view)
    if json:
        print_json(to_json(view, opened, served))
        return Exit.FINE
    render_run.screen(view, opened, served).print(results())
    view.keep(where.memory)
    return Exit.FINE


def diff(
    run: RunArgument = None,
    verifier: VerifierMaybe = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    bundle: BundleOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> int:
    """Show what changed about a run since it was last seen on this machine."""
    given = Acting(verifier=verifier, token=token, token_file=token_file, bundle=bundle, root=root, json=json)
    with source(given) as where:
        view = where.run_view(run)
    if json:
        items = [
            {"index": one.index, "time_us": one.time_us, "sha256": one.hash, "says": one.statement}
            for one in view.unseen
        ]
        print_json({"first": view.first_time, "items": items})
        return Exit.FINE
    lines = Lines()
    render_signing.changed(lines, view)
    lines.print(results())
    view.keep(where.memory)
    return Exit.FINE


def verify_bundle(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a permit bundle")],
    root: RootOption = None,
    openings: OpeningsOption = None,
    json: JsonOption = False,
) -> int:
    """Verify a permit bundle offline under a pinned root, and show what it proves."""
    given = Acting(bundle=file, root=root, openings=openings, json=json)
    memory = Memory(os.environ)
    view = from_file(file, root, memory)
    opened = None if view.opened.run is None else Source(given, None, memory).openings(view)
    if json:
        print_json(to_json(view, opened, None))
    else:
        render_run.screen(view, opened, None).print(results())
        note(f"{file}: verified, up to leaf {view.bundle.index}; what came later isn't in it")
    return Exit.FINE
