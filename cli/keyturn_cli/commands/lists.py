"""``keyturn list | inbox | allowance | bundle``: runs, those that wait for me, what needs nobody, bundles to carry."""

import os
from pathlib import Path
from typing import Annotated

import typer

from keyturn_cli import switch_text
from keyturn_cli.client import Client
from keyturn_cli.commands import remote
from keyturn_cli.commands.acting import Acting, KeyMaybe, RootOption
from keyturn_cli.commands.read import (
    JsonOption,
    LimitOption,
    TokenFileOption,
    TokenOption,
    VerifierOption,
    read_token,
)
from keyturn_cli.commands.signed import source, whose
from keyturn_cli.commands.typed import text
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.inbox import Waiting, waiting
from keyturn_cli.layout import Rows
from keyturn_cli.output import named, note, print_json, results
from keyturn_cli.permits import from_verifier, run_hash, served_openings
from keyturn_cli.seen import Memory
from keyturn_cli.signing import read_key
from keyturn_cli.statement_files import write_new
from keyturn_cli.switch_text import short
from keyturn_cli.units import moment, scientific, span
from keyturn_protocol import api_switch
from keyturn_protocol.api_switch import AllowanceItem, RunItem
from keyturn_protocol.lifecycle import State
from keyturn_protocol.openings import format_openings

AUTHORITY = "authority"
"""In place of a run: roots and policies alone."""


def list_(
    verifier: VerifierOption,
    state: Annotated[State | None, typer.Option("--state", help="only those")] = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> int:
    """List runs, the oldest first."""
    with Client(verifier, read_token(token, token_file)) as client:
        query = {} if state is None else {"state": str(state)}
        items = list(client.items(api_switch.RUNS, RunItem, limit, **query))
    if json:
        print_json({"items": items})
    elif items:
        results().print(_table(items))
    else:
        note("there are no runs")
    return Exit.FINE


def _table(items: list[RunItem]) -> Rows:
    made = Rows("RUN", "STATE", "LABEL", "ASKED BY", "TIER", "BUDGET", "CHARGED", "CHIPS", "UNTIL", folds=["LABEL"])
    for one in items:
        until = one.stop_at_us or one.decide_by_us or one.start_by_us
        made.add(
            short(one.run),
            one.state,
            named(one.label),
            named(one.requester),
            named(one.tier),
            scientific(one.budget_tflop * 10**12, "up"),
            scientific(one.charged_tflop * 10**12, "up"),
            f"{one.chips:,}",
            "–" if until is None else moment(until),
        )
    return made


def inbox(
    verifier: VerifierOption,
    key: KeyMaybe = None,
    root: RootOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """List what waits for the person of a key: requests and proposals that aren't decided yet, by their deadline."""
    if key is None:
        raise CliError("--key: missing: whose inbox?", exit=Exit.USAGE, hint="or key = … in the settings")
    signer = read_key(key)
    given = Acting(verifier=verifier, token=token, token_file=token_file, root=root, json=json)
    with source(given) as where:
        person = whose(None, where.view(None).standing, signer)
        client = where.verifier()
        found: list[Waiting] = []
        for item in client.items(api_switch.RUNS, RunItem):
            if item.state is State.PENDING or item.proposals:
                found += waiting(where.view(item.run), person)
    found.sort(key=lambda one: one.until_us)
    if json:
        print_json({"person": person, "items": [one.to_json() for one in found]})
    elif found:
        results().print(_waiting(found))
    else:
        note(f"nothing waits for {person}")
    return Exit.FINE


def _waiting(found: list[Waiting]) -> Rows:
    made = Rows("RUN", "WHAT", "LABEL", "ASKED BY", "UNTIL", "MISSING", "YOU FILL", folds=["LABEL", "MISSING"])
    for one in found:
        what = one.kind if one.kind == "request" else f"{one.kind} --on {one.subject[:12]}"
        cells = (named(one.label), one.asker, moment(one.until_us), one.missing, one.fills)
        made.add(short(one.run), what, *cells)
    return made


def allowance(
    verifier: VerifierOption,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> int:
    """Show what may run without a permit now: of each organisation, each lineage, each host's tests of the hardware."""
    with Client(verifier, read_token(token, token_file)) as client:
        items = list(client.items(api_switch.ALLOWANCE, AllowanceItem, limit))
    if json:
        print_json({"items": items})
    elif items:
        results().print(_allowances(items))
        note("FLOP, of which a lease takes both of its organisation's and of its lineage's")
    else:
        note("there is no policy yet, and so no allowance")
    return Exit.FINE


def _allowances(items: list[AllowanceItem]) -> Rows:
    made = Rows("OF", "NAME", "IN", "LIMIT", "USED", "ON LEASES", "FREE", folds=["NAME"])
    for one in items:
        taken = (scientific(tflop * 10**12, "up") for tflop in (one.limit_tflop, one.used_tflop, one.outstanding_tflop))
        of = "diagnostics" if one.by == "node" else one.by
        made.add(of, named(one.name), span(one.window_s), *taken, scientific(one.free_tflop * 10**12, "down"))
    return made


def bundle(
    verifier: VerifierOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="a file that isn't there yet")],
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="its permit bundle; authority: roots and policies alone")
    ] = None,
    root: RootOption = None,
    trust: Annotated[
        Path | None, typer.Option("--trust", metavar="FILE", help="of evidence: check whose bundle it is")
    ] = None,
    case: Annotated[
        str | None, typer.Option("--case", callback=text, help="of evidence: a note for the manifest")
    ] = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """Take a run's permit bundle, verified, to sign by it offline; without RUN, all evidence, to audit.

    Openings that the verifier has are written beside a permit bundle.
    """
    if run is None:
        return remote.bundle(verifier, out, trust, case, token, token_file, json)
    memory = Memory(os.environ)
    with Client(verifier, read_token(token, token_file)) as client:
        view = from_verifier(client, None if run == AUTHORITY else run_hash(client, run), root, memory)
        asked = run != AUTHORITY and client.has_token
        openings = served_openings(client, view.run.hash, view.run.spec) if asked else None
    write_new(out, view.bundle.to_bytes())
    beside = out.with_name(f"{out.stem}.openings.json")
    if openings is not None:
        write_new(beside, format_openings(openings))
    if json:
        shown = {"out": str(out), "index": view.bundle.index, "run": view.bundle.run}
        print_json(shown | {"openings": None if openings is None else str(beside)})
        return Exit.FINE
    note(f"{out}: verified, up to leaf {view.bundle.index}")
    if openings is not None:
        note(f"{beside}: openings of {switch_text.either(openings.parts, 'and')}")
    return Exit.FINE
