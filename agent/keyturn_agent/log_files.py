"""What a log's folder holds beside its segments, and the making of single lines."""

import logging
from typing import Literal

from keyturn_agent.errors import StoreError
from keyturn_agent.fitting import smaller
from keyturn_agent.ports import Stamp
from keyturn_protocol.canonical import Hex32, Record, Text, UInt, encode_record
from keyturn_protocol.entries import ENTRY_OF_BODY, Body, Entry, parse_entry
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import ENTRY_BYTES
from keyturn_protocol.segment import ChainState

logger = logging.getLogger(__name__)


class Intended(Record, frozen=True, kw_only=True):
    """The head that was intended last, over entries ``start`` … ``size - 1``, and what stood before them."""

    v: Literal[1]
    origin: str
    start: UInt
    frontier: str
    chain: ChainState
    size: UInt
    root: Hex32


class Opened(Record, frozen=True, kw_only=True):
    """Why this incarnation exists. ``opened_s`` is the host's real time, also in a replay."""

    v: Literal[1]
    opened_s: UInt
    reason: Literal["enrolled", "rejected", "rollback", "damaged", "key_roll", "reinstalled"]
    detail: Text


def contradicts(line: bytes, chain: ChainState) -> bool:
    """Whether a line is a whole entry that names another entry before it than the one that is there."""
    try:
        entry = parse_entry(line)
    except ProtocolError:
        return False
    return entry.seq == chain.size and entry.prev != chain.prev


def format_line(body: Body, chain: ChainState, stamp: Stamp) -> bytes:
    """The line of the next entry after ``chain``; of a body that is too large, what fits.

    :raises ProtocolError: what the format has no place for.
    :raises StoreError: ``entry_too_large``: nothing of it can be left out.
    """
    line = whole = _line(body, chain, stamp)
    for form in smaller(body, len(whole) - ENTRY_BYTES) if len(whole) > ENTRY_BYTES else ():
        line = _line(form, chain, stamp)
        if len(line) <= ENTRY_BYTES:
            logger.warning("a %s of %d bytes was cut to %d", type(body).__name__, len(whole), len(line))
            break
    if len(line) > ENTRY_BYTES:
        raise StoreError("entry_too_large", f"a {type(body).__name__} of {len(line)} bytes (at most {ENTRY_BYTES})")
    return line


def _line(body: Body, chain: ChainState, stamp: Stamp) -> bytes:
    entry: Entry = ENTRY_OF_BODY[type(body)](
        v=1,
        seq=chain.size,
        prev=chain.prev,
        boot_id=stamp.boot_id,
        boots=stamp.boots,
        mono_us=stamp.mono_us,
        time_us=stamp.time_us,
        body=body,
    )
    return encode_record(entry)
