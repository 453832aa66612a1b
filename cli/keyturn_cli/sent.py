"""What was signed and sent from this machine, and what a verifier answered to it.

    sent/<about>/<hash>.json           the statement in its envelope, written before it goes: it can be sent again
    sent/<about>/<hash>.answer.json    the StatementItem that was answered: which leaf of the log it is

``about`` is the earlier statement that it hangs on, which a bundle that has to have this one holds. The answer isn't
signed: it convinces nobody else, but it tells this machine what the verifier's bundles have to show from then on.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyturn_cli.client import Client
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import keep_private
from keyturn_cli.output import note
from keyturn_protocol import api
from keyturn_protocol.api_read import StatementItem
from keyturn_protocol.canonical import decode, encode_record
from keyturn_protocol.dsse import Envelope
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.policy import Policy
from keyturn_protocol.root import Root
from keyturn_protocol.runs import Amend, Decision, Resume, Revoke, Suspend, Withdraw
from keyturn_protocol.statements import parse_payload

_ANSWER: Final = ".answer.json"
_ANSWER_BYTES: Final = 4_096


@dataclass(frozen=True, slots=True)
class Answered:
    """A statement that a verifier said it took."""

    index: int
    sha256: str
    path: Path
    """Of the statement."""


class Sent:
    """The files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, envelope: Envelope) -> Path | None:
        """A statement that is about to be sent; None if it can't be written, which is said."""
        path = self._path(envelope)
        return path if self._write(path, envelope.to_bytes(), "the statement isn't kept here") else None

    def keep_answer(self, envelope: Envelope, item: StatementItem) -> None:
        """That it was taken, as the verifier said."""
        path = self._path(envelope).with_suffix(_ANSWER)
        self._write(path, encode_record(item), "a bundle without the statement won't be noticed here")

    def answered(self, about: Iterable[str]) -> Iterator[Answered]:
        """What was taken of what hangs on any of these statements."""
        try:
            there = {path.name for path in self.folder.iterdir()}
        except OSError:  # nothing was sent from here yet
            return
        for digest in sorted(there.intersection(about)):
            for path in sorted((self.folder / digest).glob(f"*{_ANSWER}")):
                try:
                    item: StatementItem = decode(path.read_bytes(), StatementItem, limit=_ANSWER_BYTES)
                except (OSError, ProtocolError) as error:
                    note(f"{path}: what was answered can't be read: {error}")
                    continue
                yield Answered(item.index, item.sha256, path.with_name(f"{item.sha256}.json"))

    def _path(self, envelope: Envelope) -> Path:
        return self.folder / about(envelope) / f"{envelope.hash.hex()}.json"

    def _write(self, path: Path, data: bytes, without: str) -> bool:
        try:
            keep_private(path, data)
        except OSError as error:
            note(f"{path}: can't be written, so that {without}: {error.strerror}")
            return False
        return True


def about(envelope: Envelope) -> str:
    """Hash of the statement that this one hangs on; its own where it hangs on none that a bundle has."""
    match parse_payload(envelope.kind, envelope.payload):
        case Decision() | Withdraw() as said:
            return said.subject
        case Suspend() | Resume() | Revoke() | Amend() as said:
            return said.run
        case Policy() | Root() as said:
            return said.root or envelope.hash.hex()
        case _:
            return envelope.hash.hex()


def send(client: Client, sent: Sent, envelope: Envelope) -> StatementItem:
    """Give a signed statement to a verifier; kept first, and what is answered after it.

    :raises CliError: refused, out of reach, or an answer about something else; the hint says what to send again.
    """
    path = sent.keep(envelope)
    again = "sign it again with --out FILE, and keep that"
    if path is not None:
        again = f"the signed statement is kept: keyturn statement send {path}, to another replica with --verifier"
    try:
        item = client.send_bytes(api.STATEMENTS, envelope.to_bytes(), StatementItem)
    except CliError as error:
        hint = again if error.hint is None else f"{error.hint}; {again}"
        raise CliError(str(error), exit=error.exit, hint=hint) from None
    wanted, got = (envelope.kind, envelope.hash.hex()), (item.kind, item.sha256)
    if got != wanted:
        raise CliError(
            f"{client.base} answered that it took another statement: take it as not taken"
            f" (expected {' '.join(wanted)}, got {' '.join(got)})",
            exit=Exit.REJECTED,
            hint=again,
        )
    sent.keep_answer(envelope, item)
    return item
