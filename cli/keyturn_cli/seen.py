"""What a person has seen of a run on this machine: what is new since then, and what a verifier no longer shows.

    {"run":"7f3a…","statements":[[0,"5f0c…"],[1,"91c4…"],[7,"7f3a…"]],"v":1}               (one line)

A file a run under ``KEYTURN_STATE``, else ``~/.local/state/keyturn``, and one for the roots and policies. A statement
that was shown once has to be shown again, at its leaf: a verifier that hides a veto from who saw it is caught by that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from keyturn_cli.files import keep_private
from keyturn_cli.output import note
from keyturn_cli.sent import Sent
from keyturn_protocol.canonical import Hex32, Record, UInt, decode, encode_record
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import ENVELOPE_BYTES

VARIABLE: Final = "KEYTURN_STATE"
_BYTES: Final = 64 * ENVELOPE_BYTES

Leaf = tuple[int, str]
"""Its index, and the hash of the statement in it."""


class _File(Record, frozen=True, kw_only=True):
    run: Hex32 | None
    statements: list[tuple[UInt, Hex32]]
    v: Literal[1]


@dataclass(frozen=True, slots=True)
class Compared:
    """What is shown now against what was seen."""

    new: tuple[Leaf, ...]
    """Not seen yet."""
    older: tuple[Leaf, ...]
    """Seen, and later than all that is shown now: this is an older copy."""
    gone: tuple[Leaf, ...]
    """Seen, and not there though later ones are, or there with another content: hidden, or put in its place."""


def compare(seen: Sequence[Leaf], shown: Sequence[Leaf]) -> Compared:
    """Hold what is shown against what was seen; both in the order of their leaves."""
    last = shown[-1][0] if shown else -1
    lacking = [leaf for leaf in seen if leaf not in set(shown)]
    return Compared(
        tuple(leaf for leaf in shown if leaf not in set(seen)),
        tuple(leaf for leaf in lacking if leaf[0] > last),
        tuple(leaf for leaf in lacking if leaf[0] <= last),
    )


class Memory:
    """The files."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        home = environment.get("XDG_STATE_HOME") or "~/.local/state"
        base = Path(environment.get(VARIABLE) or Path(home) / "keyturn").expanduser()
        self.folder = base / "seen"
        self.sent = Sent(base / "sent")

    def last(self, root: str, run: str | None) -> tuple[Leaf, ...]:
        """What was seen of a run last, or of roots and policies; nothing if it wasn't, or can't be read.

        :param root: hash of the first root: what begins anew has another one, whatever it is called.
        """
        path = self._path(root, run)
        try:
            file: _File = decode(path.read_bytes(), _File, limit=_BYTES)
        except FileNotFoundError:
            return ()
        except (OSError, ProtocolError) as error:
            note(f"{path}: what was seen before can't be read: {error}")
            return ()
        return tuple(file.statements)

    def keep(self, root: str, run: str | None, shown: Sequence[Leaf]) -> None:
        """That this was seen. A folder that can't be written is said, and ends nothing."""
        path = self._path(root, run)
        data = encode_record(_File(run=run, statements=list(shown), v=1))
        try:
            keep_private(path, data)
        except OSError as error:
            note(f"{path}: can't be written, so that the next time nothing is known to be new: {error.strerror}")

    def _path(self, root: str, run: str | None) -> Path:
        return self.folder / f"{root[:16]}-{run or 'authority'}.json"
