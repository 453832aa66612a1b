"""``keyturn key | sign | replace | statement``: what people say, signed offline through files."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from keyturn_cli.client import Client
from keyturn_cli.commands.acting import Acting, BundleOption, OpeningsOption, RootOption, VerifierMaybe
from keyturn_cli.commands.audit import read_anchor
from keyturn_cli.commands.preview import fields, preview
from keyturn_cli.commands.read import (
    JsonOption,
    LimitOption,
    TokenFileOption,
    TokenOption,
    VerifierOption,
    read_token,
)
from keyturn_cli.commands.signed import (
    check_way,
    confirm,
    deliver,
    print_taken,
    show_screen,
    signed,
    source,
    write_statement,
)
from keyturn_cli.commands.typed import ReasonOption
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.moments import node_of
from keyturn_cli.output import clean, note, print_json, results
from keyturn_cli.permits import read_openings
from keyturn_cli.seen import Memory
from keyturn_cli.sent import send as give
from keyturn_cli.signing import read_key
from keyturn_cli.statement_files import read_statement, unsigned
from keyturn_cli.units import moment
from keyturn_protocol import api, api_read
from keyturn_protocol.api_switch import openings_path
from keyturn_protocol.bundle import operator_keys
from keyturn_protocol.dsse import verify
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.openings import format_openings
from keyturn_protocol.runs import Amend, Request
from keyturn_protocol.statements import Replacement, Statement

KeyOption = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="a key of keyturn key new, an SSH key, or its .pub with an agent")
]
StatementArgument = Annotated[Path, typer.Argument(metavar="FILE", help="a statement, signed or not")]
ExpectOption = Annotated[
    str | None, typer.Option("--expect", metavar="HASH", help="sign only what has this hash; asks for it otherwise")
]


def replace(
    old: Annotated[str, typer.Argument(metavar="OLD", help="the node that the host was")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="the node that it is, as keyturn-agent enroll prints it")],
    deployment: Annotated[str, typer.Option("--deployment", metavar="NAME", help="such as keyturn.example.org")],
    reason: ReasonOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="a file that isn't there yet")],
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="sign with it; without: keyturn sign does, later")
    ] = None,
    root: RootOption = None,
    bundle: BundleOption = None,
    verifier: VerifierMaybe = None,
    json: JsonOption = False,
) -> int:
    """Say that a host was set up again: node NEW goes on where node OLD ended.

    Where there is a root (--root), it is said under the one in force, as a bundle or the verifier shows it.
    """
    nodes = {"old": node_of("OLD", old), "new": node_of("NEW", new)}
    under = None
    if root is not None:
        with source(Acting(root=root, bundle=bundle, verifier=verifier)) as where:
            under = where.view(None).standing.hash
    now_us = time.time_ns() // 1_000
    said = Replacement(v=1, deployment=deployment, root=under, time_us=now_us, reason=reason, **nodes)
    envelope = unsigned(said)
    write_statement(out, envelope if key is None else read_key(key).sign(envelope), json)
    return Exit.FINE


def sign(
    file: StatementArgument,
    key: KeyOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="a file that isn't there yet")],
    expect: ExpectOption = None,
    bundle: BundleOption = None,
    openings: OpeningsOption = None,
    root: RootOption = None,
    verifier: VerifierMaybe = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """Show what a statement says and does, and sign it. Works without a network: carry the files.

    What is said under a root is read by a bundle (--bundle, or the verifier's) under the root that is pinned (--root).
    A root, policy or replacement that others have signed already gets one signature more.
    """
    given = Acting(
        verifier=verifier, token=token, token_file=token_file, root=root, bundle=bundle, openings=openings,
        key=key, out=out, expect=expect, json=json,
    )  # fmt: skip
    check_way(given)
    envelope, said = read_statement(file)
    signer = read_key(key)
    with source(given) as where:
        show_screen(preview(where, envelope, said, signer.public, time.time_ns() // 1_000), json)
        confirm(envelope.hash.hex(), expect, "its hash")
        return deliver(where, signed(signer, envelope))


def show(
    file: StatementArgument,
    trust: Annotated[
        Path | None, typer.Option("--trust", metavar="FILE", help="check its signatures against these operators")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Show what a statement says, and who signed it."""
    envelope, said = read_statement(file)
    names: dict[str, str] = {}
    if trust is not None:
        operators = read_anchor(trust).operators or ()
        keys = operator_keys(operators)
        try:
            if not envelope.signatures:
                raise CliError("nobody signed it", exit=Exit.REJECTED)
            verify(envelope, keys)
        except ProtocolError as error:
            raise CliError(str(error), exit=Exit.REJECTED) from None
        names = {key_id: one.name for key_id, one in zip(keys, operators, strict=True)}
    if json:
        signers = sorted(envelope.signatures)
        shown = {"kind": envelope.kind, "sha256": envelope.hash.hex(), "says": said, "checked": trust is not None}
        print_json(shown | {"signers": signers})
        return Exit.FINE
    fields(envelope, said, time.time_ns() // 1_000).print(results())
    for key_id in envelope.signatures:
        results().print(f"signed    {key_id}  {clean(names.get(key_id, '(not checked)'))}", soft_wrap=True)
    return Exit.FINE


def send(
    file: StatementArgument,
    verifier: VerifierOption,
    openings: Annotated[
        Path | None, typer.Option("--openings", metavar="FILE", help="of a request or amendment: for those who decide")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Give a signed statement to a verifier. It needs no token: the signatures decide."""
    envelope, said = read_statement(file)
    if not envelope.signatures:
        raise CliError(f"{file}: nobody signed it", exit=Exit.USAGE, hint="keyturn sign")
    opened = None if openings is None else _opened(said, file, openings)
    with Client(verifier, None) as client:
        item = give(client, Memory(os.environ).sent, envelope)
        if opened is not None:
            client.give(openings_path(said.run if isinstance(said, Amend) else item.sha256), opened)
    print_taken(item, json)
    return Exit.FINE


def _opened(said: Statement, file: Path, openings: Path) -> bytes:
    if not isinstance(said, (Request, Amend)):
        raise CliError(f"--openings: {file} is neither a request nor an amendment", exit=Exit.USAGE)
    return format_openings(read_openings(openings, said.spec))


def listed(
    verifier: VerifierOption,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> int:
    """List the statements that a verifier has."""
    with Client(verifier, read_token(token, token_file)) as client:
        items = list(client.items(api.STATEMENTS, api_read.StatementItem, limit))
    if json:
        print_json({"items": items})
        return Exit.FINE
    for item in items:
        results().print(f"{item.index:>8}  {moment(item.time_us)}  {clean(item.kind)}  {item.sha256}", soft_wrap=True)
    if not items:
        note("there are no statements")
    return Exit.FINE
