"""The logs before the newest one in a state folder, each with the key that signed it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keyturn_agent import files
from keyturn_agent.errors import DamagedError, StoreError
from keyturn_agent.log_files import Opened
from keyturn_agent.spool import SEGMENT, ranges, read_segment
from keyturn_protocol.canonical import decode
from keyturn_protocol.entries import KeyRoll, parse_entry
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import LogName
from keyturn_protocol.keys import VerifierKey
from keyturn_protocol.segment import node_key

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Older:
    """A log that was left: its folder, and its key."""

    folder: Path
    key: VerifierKey


def trail(logs: Path, enrolled: bytes, newest: LogName) -> Sequence[Older]:
    """The logs before ``newest``, oldest first. One whose key can't be found is left out: nothing depends on it.

    :param logs: the folder of all logs.
    :param enrolled: the public key of the first one.
    """
    found: list[Older] = []
    key: bytes | None = enrolled
    try:
        with files.doing(f"looking at {logs}"):
            numbers = sorted(int(path.name) for path in logs.iterdir() if path.name.isdigit())
        for number in numbers:
            if number > 1 and _reason(logs / str(number)) == "key_roll":
                key = _next_key(logs / str(number - 1))
            if number < newest.incarnation and key is not None:
                name = LogName(newest.deployment, newest.node_id, number)
                found.append(Older(logs / str(number), node_key(name.origin, key)))
    except StoreError as error:
        logger.warning("%s", error)
    return found


def _reason(folder: Path) -> str | None:
    """Why a log was opened."""
    try:
        opened: Opened = decode(files.read(folder / "opened"), Opened)
    except (DamagedError, ProtocolError):
        return None
    return opened.reason


def _next_key(folder: Path) -> bytes | None:
    """The key that the last entry of a log hands over to; its newest segment is never removed."""
    with files.doing(f"looking at {folder}"):
        segments = [(end, start) for start, end, kind in ranges(folder) if kind == SEGMENT]
    try:
        end, start = max(segments)
        last = parse_entry(read_segment(folder / f"{start}-{end}.segment").lines[-1])
    except (ValueError, DamagedError, ProtocolError):
        return None
    return bytes.fromhex(last.body.next_public_key) if isinstance(last, KeyRoll) else None
