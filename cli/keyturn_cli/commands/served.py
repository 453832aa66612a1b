"""``keyturn checkpoint | leases | lease | statement get``: what a verifier has signed or was given, byte for byte."""

from pathlib import Path
from typing import Annotated

import typer

from keyturn_cli.client import Client
from keyturn_cli.commands.acting import Acting, RootOption
from keyturn_cli.commands.audit import TrustOption, read_trust
from keyturn_cli.commands.read import (
    JsonOption,
    LimitOption,
    TokenFileOption,
    TokenOption,
    VerifierOption,
    read_token,
)
from keyturn_cli.commands.signed import Source, source
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.layout import Rows
from keyturn_cli.moments import digest_of
from keyturn_cli.output import named, note, print_json, results
from keyturn_cli.permits import run_hash
from keyturn_cli.statement_files import write_new
from keyturn_cli.switch_text import short
from keyturn_cli.units import moment, scientific
from keyturn_protocol import api, api_switch
from keyturn_protocol.api_switch import LeaseItem
from keyturn_protocol.bundle import check_trust
from keyturn_protocol.checkpoint import Checkpoint, open_checkpoint
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.keys import VerifierKey, parse_vkey
from keyturn_protocol.lease import Lease, SignedLease, open_lease, parse_lease
from keyturn_protocol.limits import ENVELOPE_BYTES, NOTE_BYTES
from keyturn_protocol.statements import parse_statement

OutMaybe = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="a file that isn't there yet; default: stdout")
]
HashArgument = Annotated[str, typer.Argument(metavar="HASH", help="64 hex digits, as listed")]


def checkpoint(
    verifier: VerifierOption,
    out: OutMaybe = None,
    trust: TrustOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> int:
    """Get the newest head of the verifier's log, verified by its pinned key: kept, it holds later audits to it.

    The key is that of --trust, else the one that the root in force names under the pinned --root.
    """
    with source(Acting(verifier=verifier, root=root, json=json)) as where:
        key = _log_key(where, trust)
        client = where.verifier()
        data = client.content(f"{api.LOG}/checkpoint", NOTE_BYTES)
    try:
        head: Checkpoint = open_checkpoint(data, key)
    except ProtocolError as error:
        raise CliError(f"{client.base}: not a head by the pinned log key: {error}", exit=Exit.REJECTED) from None
    shown = {"origin": head.origin, "size": head.size, "root": head.root.hex(), "note": data.decode()}
    done = f"verified, {head.size:,} leaves of {head.origin}; keyturn audit BUNDLE --checkpoint {out or 'FILE'}"
    return _put(data, out, json, shown, done)


def _log_key(where: Source, trust: Path | None) -> VerifierKey:
    if trust is not None:
        return check_trust(read_trust(trust))[0]
    return parse_vkey(where.view(None).standing.root.services.log_vkey)


def leases(
    verifier: VerifierOption,
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="only of this run: its hash, or how it begins")
    ] = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> int:
    """List leases in the order in which they were issued, and what their nodes have said since."""
    with Client(verifier, read_token(token, token_file)) as client:
        query = {} if run is None else {"run": run_hash(client, run)}
        items = list(client.items(api_switch.LEASES, LeaseItem, limit, **query))
    if json:
        print_json({"items": items})
    elif items:
        results().print(_table(items))
    else:
        note("there are no leases")
    return Exit.FINE


def _table(items: list[LeaseItem]) -> Rows:
    made = Rows("LEASE", "OF", "NODE", "CHIPS", "UP TO", "CHARGED", "ENDS", "HEARD OF", "OPEN", folds=["OF"])
    for one in items:
        of = short(one.run) if one.run is not None else named(one.lineage or one.organisation or one.kind)
        flop = (scientific(tflop * 10**12, "up") for tflop in (one.upto_tflop, one.charged_tflop))
        ends, heard = moment(one.expires_us), moment(one.heard_us)
        made.add(one.sha256, of, one.node_id, f"{one.chips:,}", *flop, ends, heard, "yes" if one.open else "no")
    return made


def lease(
    verifier: VerifierOption,
    digest: HashArgument,
    out: OutMaybe = None,
    root: RootOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """Get one lease, a signed note; where a root is pinned, verified by the lease key of the root that it names."""
    wanted = digest_of("HASH", digest)
    given = Acting(verifier=verifier, root=root, token=token, token_file=token_file, json=json)
    with source(given) as where:
        client = where.verifier()
        data = client.content(f"{api_switch.LEASES}/{wanted}", NOTE_BYTES)
        try:
            found = parse_lease(data)
            _check_hash(client, "lease", wanted, found.hash.hex())
            said = found.lease if root is None else _verified(where, found)
        except ProtocolError as error:
            raise CliError(f"{client.base}: lease {wanted}: {error}", exit=Exit.REJECTED) from None
    checked = "not verified: no --root" if root is None else "verified"
    shown = {"sha256": wanted, "says": said, "checked": root is not None, "note": data.decode()}
    return _put(data, out, json, shown, f"lease {wanted}, {checked}")


def _verified(where: Source, found: SignedLease) -> Lease:
    """The lease, signed by the key of the root that it names, which has to be under the one that is pinned."""
    standings = {standing.hash: standing for _, standing in where.view(None).opened.authority.roots}
    standing = standings.get(found.lease.root)
    if standing is None:
        why = f"lease {found.hash.hex()}: under no root of this deployment (got {found.lease.root})"
        raise CliError(why, exit=Exit.REJECTED)
    return open_lease(found.to_bytes(), parse_vkey(standing.root.services.lease_vkey))


def statement(
    verifier: VerifierOption,
    digest: HashArgument,
    out: OutMaybe = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """Get one statement in its envelope; what it says and who signed it is shown by keyturn statement FILE."""
    wanted = digest_of("HASH", digest)
    with Client(verifier, read_token(token, token_file)) as client:
        data = client.content(f"{api.STATEMENTS}/{wanted}", ENVELOPE_BYTES)
    try:
        envelope, said = parse_statement(data)
    except ProtocolError as error:
        raise CliError(f"{client.base}: statement {wanted}: {error}", exit=Exit.REJECTED) from None
    _check_hash(client, "statement", wanted, envelope.hash.hex())
    shown = {"kind": envelope.kind, "sha256": wanted, "says": said, "signers": sorted(envelope.signatures)}
    done = f"{envelope.kind} {wanted}; keyturn statement {out} shows it"
    return _put(data, out, json, shown | {"envelope": data.decode()}, done)


def _check_hash(client: Client, what: str, wanted: str, got: str) -> None:
    if got != wanted:
        raise CliError(f"{client.base}: another {what} (expected {wanted}, got {got})", exit=Exit.REJECTED)


def _put(data: bytes, out: Path | None, json: bool, shown: dict[str, object], done: str) -> int:
    """The bytes as they are, into a file or to stdout; with ``json``, what they are."""
    if out is not None:
        write_new(out, data)
        note(f"{out}: {done}")
    if json:
        print_json(shown | {"out": None if out is None else str(out)})
    elif out is None:
        typer.echo(data, nl=False)
    return Exit.FINE
