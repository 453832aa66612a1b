"""What leases add up to, kept at some size of the verifier's log: a start takes it from here and folds what came since.

Statements are folded from the first one on at every start, and need of leases only the first of each run, which is in
here too. It is nobody's word: whatever doesn't fit is thrown away and folded from nothing, and ``keyturn-verifier
check`` holds it against that.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from backports import zstd
from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from keyturn_protocol.canonical import Hex32, Record, UInt, encode_record, parse
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.findings import Finding
from keyturn_protocol.ids import Origin
from keyturn_protocol.ledger_state import RULES as LEDGER_RULES
from keyturn_protocol.ledger_state import LedgerState
from keyturn_verifier.db.engine import is_postgres
from keyturn_verifier.db.switch_tables import ledger_snapshot
from keyturn_verifier.db.tables import tree_leaf

log = logging.getLogger(__name__)

RULES: Final = 1
"""Grows when :class:`Kept` has other fields, or its counters and findings would come out differently."""
VERSION: Final = f"{RULES}/{LEDGER_RULES}"
ROW: Final = 1
DAMAGED: Final = (ProtocolError, msgspec.MsgspecError, zstd.ZstdError, LookupError, ValueError, TypeError)
"""What reading bytes can raise that aren't those of a snapshot."""
# Nobody would see a flipped bit in it before the next check: zstd's own checksum does.
_ZSTD: Final[Mapping[int, int]] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.checksum_flag: 1,
}


class Kept(Record, frozen=True, kw_only=True):
    """All that leases put into a :class:`~keyturn_verifier.switch_state.SwitchState`."""

    deployment: str
    size: UInt
    last: Hex32
    """Hash of the last leaf in it: a database that was restored, and went on with others, has another there."""
    index: int
    """Of the last leaf that the switch took."""
    ledger: LedgerState
    leases: UInt
    first: dict[Hex32, tuple[UInt, UInt]]
    """Run → index and time of the leaf of its first lease."""
    irregular: list[tuple[str, Finding]]
    irregular_of: dict[Origin, UInt]


def encode(kept: Kept) -> bytes:
    """Canonical bytes: one history has one snapshot of a size."""
    return encode_record(kept)


def load(connection: Connection, deployment: str, size: int) -> Kept | None:
    """What is stored, if it is of use to who folds up to ``size``; else the log of this process says why it isn't."""
    row = connection.execute(select(ledger_snapshot).where(ledger_snapshot.c.id == ROW)).one_or_none()
    if row is None:
        return None
    try:
        return _fitting(connection, row, deployment, size)
    except DAMAGED as why:
        unused(why)
        return None


def unused(why: Exception) -> None:
    """Say that everything is folded from nothing."""
    log.warning("what is kept of leases is not used, all of them are read again: %s", why)


def _fitting(connection: Connection, row: Any, deployment: str, size: int) -> Kept:
    if row.version != VERSION:
        raise ValueError(f"expected version {VERSION}, got {row.version}")
    if not 0 < row.size <= size:
        raise ValueError(f"expected at most the log's {size} leaves, got {row.size}")
    kept: Kept = parse(unpacked(row.body), Kept)
    for name, expected in (("deployment", deployment), ("size", row.size), ("last", last_of(connection, row.size))):
        if (got := getattr(kept, name)) != expected:
            raise ValueError(f"{name}: expected {expected}, got {got}")
    return kept


def last_of(connection: Connection, size: int) -> str:
    """The hash of the last of so many leaves.

    :raises LookupError: it isn't there.
    """
    digest = connection.execute(select(tree_leaf.c.hash).where(tree_leaf.c.index == size - 1)).scalar_one_or_none()
    if digest is None:
        raise LookupError(f"leaf {size - 1} isn't there")
    return bytes(digest).hex()


def packed(data: bytes) -> bytes:
    """As it is stored."""
    return zstd.compress(data, options=_ZSTD)


def unpacked(body: bytes) -> bytes:
    """What :func:`packed` was given."""
    return zstd.decompress(bytes(body))


def store(connection: Connection, size: int, body: bytes) -> None:
    """Put a snapshot in the place of the one before, in a transaction of its own: a crash leaves this or that one."""
    make = postgresql.insert if is_postgres(connection) else sqlite.insert
    values = {"version": VERSION, "size": size, "body": body}
    statement = make(ledger_snapshot).values(id=ROW, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))
