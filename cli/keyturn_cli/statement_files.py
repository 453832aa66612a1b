"""Statements as files: a bare payload that nobody has signed yet, or an envelope with signatures."""

from pathlib import Path

from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import read_capped
from keyturn_protocol.canonical import parse
from keyturn_protocol.dsse import Envelope
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import ENVELOPE_BYTES
from keyturn_protocol.statements import KINDS, Statement, format_statement, kind_of, parse_payload, parse_statement


def read_statement(path: Path, what: str = "FILE") -> tuple[Envelope, Statement]:
    """The statement in a file; an envelope without signatures for a bare payload.

    :param what: the argument that named the file.
    :raises CliError: something else.
    """
    return statement_in(read_capped(path, ENVELOPE_BYTES, what), path)


def statement_in(data: bytes, path: Path) -> tuple[Envelope, Statement]:
    """The same of a file's bytes.

    :param path: where they are from, for messages.
    :raises CliError: something else.
    """
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


def unsigned(said: Statement) -> Envelope:
    """A statement that was made here, to be signed.

    :raises CliError: what it says is against a rule of its kind: whoever made it has to say it otherwise.
    """
    try:
        return Envelope(kind_of(said), format_statement(said), {})
    except ProtocolError as error:
        raise CliError(str(error), exit=Exit.USAGE) from None


def to_file(envelope: Envelope) -> bytes:
    """What a file holds: the payload alone while nobody has signed it."""
    return envelope.to_bytes() if envelope.signatures else envelope.payload


def write_new(path: Path, data: bytes) -> None:
    """A new file; one that is there is never overwritten."""
    try:
        with path.open("xb") as out:
            out.write(data)
    except FileExistsError:
        raise CliError(f"{path} is there already", exit=Exit.USAGE) from None
    except OSError as error:
        raise CliError(f"--out {path}: {error.strerror or error}", exit=Exit.USAGE) from None
