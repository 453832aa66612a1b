"""What nodes ask for, and what was issued: rows of the start switch's tables as the switch takes them."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, select

from keyturn_protocol.authority import Why, refuse
from keyturn_protocol.canonical import parse
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_switch import PermitBody
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.leases import Asked
from keyturn_protocol.segment import ChainState
from keyturn_verifier.db.switch_tables import lease_issued, lease_request
from keyturn_verifier.db.tables import inventory, log
from keyturn_verifier.errors import stored

FRESH_US: Final = 600_000_000
"""So long after it was received an entry asks; then a host that still wants a lease writes another."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A ``permit`` entry as it is stored."""

    log_id: int
    node_id: str
    asked: Asked
    party: str
    time_us: int
    """When it was received."""
    chips: tuple[Chip, ...]
    """Those that it names, as the inventory before it describes them."""
    boot_id: str | None
    """The newest boot of its log."""
    ended: bool
    """Its log takes nothing more."""


@stored
def waiting(connection: Connection, origin: str, seq: int) -> Waiting | None:
    """One entry; None if no such entry was received."""
    row = connection.execute(_requests().where(log.c.origin == origin, lease_request.c.seq == seq)).one_or_none()
    return None if row is None else _waiting(connection, row)


@stored
def party(connection: Connection, name: str, since_us: int) -> list[Waiting]:
    """The newest entry of each log of those who start together, that came since a time and has no lease yet."""
    row = lease_request.c
    newest = (
        select(row.log_id, func.max(row.seq).label("seq"))
        .where(row.party == name, row.time_us >= since_us)
        .group_by(row.log_id)
        .subquery()
    )
    query = (
        _requests()
        .join(newest, (newest.c.log_id == row.log_id) & (newest.c.seq == row.seq))
        .join(lease_issued, (lease_issued.c.log_id == row.log_id) & (lease_issued.c.seq == row.seq), isouter=True)
        .where(lease_issued.c.leaf.is_(None))
        .order_by(row.leaf, row.log_id)
    )
    return [_waiting(connection, found) for found in connection.execute(query).all()]


def askers(connection: Connection, name: str) -> int:
    """How many logs ever asked as one of those who start together: no more of them can be there now."""
    query = select(func.count(lease_request.c.log_id.distinct())).where(lease_request.c.party == name)
    return int(connection.execute(query).scalar_one())


def members(connection: Connection, name: str) -> set[Origin]:
    """Logs that got a lease as one of those who start together."""
    row = lease_request.c
    query = (
        select(log.c.origin)
        .join(lease_request, row.log_id == log.c.id)
        .join(lease_issued, (lease_issued.c.log_id == row.log_id) & (lease_issued.c.seq == row.seq))
        .where(row.party == name)
    )
    return {Origin(origin) for origin in connection.execute(query).scalars()}


def asking(connection: Connection, run: str, since_us: int) -> set[Origin]:
    """Logs that asked for a lease of a run since a time, and have none for it yet."""
    row = lease_request.c
    query = (
        select(log.c.origin)
        .join(lease_request, row.log_id == log.c.id)
        .join(lease_issued, (lease_issued.c.log_id == row.log_id) & (lease_issued.c.seq == row.seq), isouter=True)
        .where(row.run == run, row.time_us >= since_us, lease_issued.c.leaf.is_(None))
    )
    return {Origin(origin) for origin in connection.execute(query).scalars()}


def every(connection: Connection) -> Iterator[Waiting]:
    """Every entry that asks for a lease and can be read: what can't is named where segments are decided about again."""
    for row in connection.execute(_requests()).all():
        with suppress(ProtocolError):
            yield _waiting(connection, row)


def check_asked(connection: Connection, one: Waiting, time_us: int) -> None:
    """Whether an entry still asks, whatever people said; once it doesn't, it never will.

    :raises Refused: ``too_late``, ``stale``.
    """
    asked = one.asked
    if time_us - one.time_us > FRESH_US:
        raise refuse(Why.TOO_LATE, "asked too long ago: write another entry", expected=f"<= {FRESH_US} µs")
    if one.ended:
        raise refuse(Why.STALE, "the log takes nothing more", got=asked.origin)
    if asked.boot_id != one.boot_id:
        raise refuse(Why.STALE, "asked in an earlier boot", expected=one.boot_id, got=asked.boot_id)
    if newest_seq(connection, one) != asked.seq:
        raise refuse(Why.STALE, "the node asked again since", got=f"entry {asked.seq}")
    name = parse_origin(asked.origin)
    if newest_incarnation(connection, name.node_id) != name.incarnation:
        raise refuse(Why.STALE, "the node has left this log", got=asked.origin)


def newest_seq(connection: Connection, one: Waiting) -> int:
    """The newest entry of a log that asks for the same."""
    row = lease_request.c
    query = select(func.max(row.seq)).where(row.log_id == one.log_id, row.party == one.party)
    return int(connection.execute(query).scalar_one())


def newest_incarnation(connection: Connection, node_id: str) -> int:
    """Of a node's logs."""
    query = select(func.max(log.c.incarnation)).where(log.c.node_id == node_id)
    return int(connection.execute(query).scalar_one())


def issued(connection: Connection, log_id: int, seq: int) -> bytes | None:
    """The lease that an entry got."""
    query = select(lease_issued.c.note).where(lease_issued.c.log_id == log_id, lease_issued.c.seq == seq)
    return connection.execute(query).scalar()


def _requests() -> Any:
    columns = (log.c.origin, log.c.node_id, log.c.organisation, log.c.site, log.c.chain, log.c.frozen)
    return select(lease_request, *columns).join(log, log.c.id == lease_request.c.log_id)


def _waiting(connection: Connection, row: Any) -> Waiting:
    body: PermitBody = parse(row.body, PermitBody)
    chips = _chips(connection, row.log_id, row.seq)
    chain: ChainState = parse(row.chain, ChainState)
    listed = frozenset(chip.uuid for chip in chips if chip.role != "mig_parent")
    asked = Asked(Origin(row.origin), row.seq, row.boot_id, body, row.organisation, row.site, listed, row.leaf)
    named = tuple(chip for chip in chips if chip.uuid in set(body.chips))
    ended = row.frozen is not None or chain.closed is not None
    return Waiting(row.log_id, row.node_id, asked, row.party, row.time_us, named, chain.boot_id, ended)


def _chips(connection: Connection, log_id: int, seq: int) -> list[Chip]:
    """The inventory in force at an entry."""
    query = select(inventory.c.chips).where(inventory.c.log_id == log_id, inventory.c.seq < seq)
    data = connection.execute(query.order_by(inventory.c.seq.desc()).limit(1)).scalar()
    return [] if data is None else parse(data, list[Chip])
