"""``keyturn key | sign | replace | statement``: what people say, signed offline through files."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from keyturn_cli.client import Client
from keyturn_cli.commands.audit import read_anchor
from keyturn_cli.commands.read import (
    JsonOption,
    LimitOption,
    TokenFileOption,
    TokenOption,
    VerifierOption,
    read_token,
)
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import read_capped
from keyturn_cli.output import clean, note, print_json, results
from keyturn_cli.signing import SigningKey, make_key, read_key
from keyturn_cli.units import moment
from keyturn_protocol import api, api_read
from keyturn_protocol.bundle import operator_keys
from keyturn_protocol.canonical import parse
from keyturn_protocol.dsse import Envelope, verify
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import ENVELOPE_BYTES
from keyturn_protocol.public_keys import PublicKey
from keyturn_protocol.statements import (
    KINDS,
    Replacement,
    Statement,
    format_statement,
    kind_of,
    parse_payload,
    parse_statement,
)

KeyOption = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="a key of keyturn key new, an SSH key, or its .pub with an agent")
]
StatementArgument = Annotated[Path, typer.Argument(metavar="FILE", help="a statement, signed or not")]
ExpectOption = Annotated[
    str | None, typer.Option("--expect", metavar="HASH", help="sign only what has this hash; asks for it otherwise")
]


def key_new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a file that isn't there yet")], json: JsonOption = False
) -> int:
    """Make an Ed25519 key in a file, and print its public text."""
    return _print_key(make_key(file), json)


def key_show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a key, or an SSH .pub file")], json: JsonOption = False
) -> int:
    """Print the public text of a key, as an operator's or a root's list takes it."""
    return _print_key(read_key(file).public, json)


def _print_key(key: PublicKey, json: bool) -> int:
    if json:
        print_json({"id": key.id, "key": str(key)})
    else:
        typer.echo(str(key))
    return Exit.FINE


def replace(
    old: Annotated[str, typer.Argument(metavar="OLD", help="the node that the host was")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="the node that it is, as keyturn-agent enroll prints it")],
    deployment: Annotated[str, typer.Option("--deployment", metavar="NAME", help="such as keyturn.example.org")],
    reason: Annotated[str, typer.Option("--reason", help="for whoever reads it later")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="a file that isn't there yet")],
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="sign with it; without: keyturn sign does, later")
    ] = None,
) -> int:
    """Say that a host was set up again: node NEW goes on where node OLD ended."""
    payload = format_statement_of(old, new, deployment, reason)
    if key is None:
        _write(out, payload)
        note(f"{out}: not signed yet; keyturn sign {out} --key FILE --out STATEMENT does that")
        return Exit.FINE
    envelope = read_key(key).sign(Envelope("replacement", payload, {}))
    _write(out, envelope.to_bytes())
    note(f"{out}: signed, hash {envelope.hash.hex()}")
    return Exit.FINE


def format_statement_of(old: str, new: str, deployment: str, reason: str) -> bytes:
    """The payload of a replacement that is made now."""
    now_us = time.time_ns() // 1_000
    said = Replacement(v=1, deployment=deployment, root=None, time_us=now_us, old=old, new=new, reason=reason)
    try:
        return format_statement(said)
    except ProtocolError as error:
        raise CliError(str(error), exit=Exit.USAGE) from None


def sign(
    file: StatementArgument,
    key: KeyOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="a file that isn't there yet")],
    expect: ExpectOption = None,
) -> int:
    """Show what a statement says, and sign it. Works without a network: carry the files.

    A statement that is signed already gets one signature more.
    """
    envelope, said = _read(file)
    signer = read_key(key)
    _show(envelope, said)
    results().print(f"signer    {signer.public}", soft_wrap=True)
    _confirm(envelope.hash.hex(), expect)
    _write(out, _signed(signer, envelope).to_bytes())
    note(f"{out}: signed, hash {envelope.hash.hex()}")
    return Exit.FINE


def _signed(signer: SigningKey, envelope: Envelope) -> Envelope:
    try:
        return signer.sign(envelope)
    except ProtocolError as error:
        raise CliError(f"not signed: {error}", exit=Exit.REJECTED) from None


def _confirm(digest: str, expect: str | None) -> None:
    """Nobody signs a hash that they didn't compare: it is typed in, or given."""
    if expect is not None:
        wanted = expect.removeprefix("sha256:")
        if wanted != digest:
            raise CliError("--expect: this is another statement", exit=Exit.REJECTED, hint=f"its hash is {digest}")
        return
    if not sys.stdin.isatty():
        raise CliError("nobody is here to confirm it", exit=Exit.USAGE, hint=f"--expect {digest}")
    typed = typer.prompt("to sign it, type the first two groups of its hash", err=True)
    if "".join(str(typed).split()) != digest[:8]:
        raise CliError("that is not how its hash begins; nothing was signed", exit=Exit.REJECTED)


def show(
    file: StatementArgument,
    trust: Annotated[
        Path | None, typer.Option("--trust", metavar="FILE", help="check its signatures against these operators")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Show what a statement says, and who signed it."""
    envelope, said = _read(file)
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
        fields = {"kind": envelope.kind, "sha256": envelope.hash.hex(), "says": said, "checked": trust is not None}
        print_json(fields | {"signers": signers})
        return Exit.FINE
    _show(envelope, said)
    for key_id in envelope.signatures:
        results().print(f"signed    {key_id}  {clean(names.get(key_id, '(not checked)'))}", soft_wrap=True)
    return Exit.FINE


def send(file: StatementArgument, verifier: VerifierOption, json: JsonOption = False) -> int:
    """Give a signed statement to a verifier. It needs no token: the signatures decide."""
    envelope, _ = _read(file)
    if not envelope.signatures:
        raise CliError(f"{file}: nobody signed it", exit=Exit.USAGE, hint="keyturn sign")
    with Client(verifier, None) as client:
        item = client.send_bytes(api.STATEMENTS, envelope.to_bytes(), api_read.StatementItem)
    if json:
        print_json(item)
    else:
        note(f"{item.kind} {item.sha256} is leaf {item.index} of the verifier's log")
    return Exit.FINE


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


def _read(path: Path) -> tuple[Envelope, Statement]:
    """A statement in its envelope, or a bare payload that nobody has signed yet."""
    data = read_capped(path, ENVELOPE_BYTES, "FILE")
    try:
        if data.startswith(b'{"payload":'):
            return parse_statement(data)
        fields: dict[str, object] = parse(data, dict[str, object])
        kind = fields.get("type")
        if not isinstance(kind, str) or kind not in KINDS:
            raise CliError(f"{path}: not a statement", exit=Exit.USAGE)
        said = parse_payload(kind, data)
        return Envelope(kind_of(said), data, {}), said
    except ProtocolError as error:
        raise CliError(f"{path}: {error}", exit=Exit.REJECTED) from None


def _show(envelope: Envelope, said: Statement) -> None:
    """Every field, by its name; rendered from the bytes that are signed."""
    digest = envelope.hash.hex()
    groups = " ".join(digest[at : at + 4] for at in range(0, len(digest), 4))
    rows = {"kind": envelope.kind, "hash": groups}
    for field in said.__struct_fields__:
        value = getattr(said, field)
        rows[field] = f"{moment(value)} ({value})" if field == "time_us" else "none" if value is None else str(value)
    for name, text in rows.items():
        results().print(f"{name:<9} {clean(text, 2_000)}", soft_wrap=True)


def _write(path: Path, data: bytes) -> None:
    """A new file; one that is there is never overwritten."""
    try:
        with path.open("xb") as out:
            out.write(data)
    except FileExistsError:
        raise CliError(f"{path} is there already", exit=Exit.USAGE) from None
    except OSError as error:
        raise CliError(f"--out {path}: {error.strerror or error}", exit=Exit.USAGE) from None
