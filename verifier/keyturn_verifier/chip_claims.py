"""Which nodes claim a chip, and which two list one at once: the protocol's own folds, over what is stored.

For a lease only what the rule looks at is read: when each node first named the chips, and what its newest log lists
now. However many inventories a host writes, a request for a lease costs the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, func, select

from keyturn_protocol.canonical import parse
from keyturn_protocol.claim_findings import Listings
from keyturn_protocol.claims import Claims, Naming
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.findings import Finding
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.segment import ChainState
from keyturn_protocol.totals import HOST
from keyturn_verifier.db.tables import chip_listed, inventory, log, segment
from keyturn_verifier.errors import stored
from keyturn_verifier.people import receipt_time_s

_PART: Final = 500
"""Values in one IN."""


@stored
def claims(connection: Connection, chips: Iterable[str]) -> Claims:
    """The claims to some chips, as of what is committed."""
    found, nodes = Claims(), set()
    for part in _parts(sorted(set(chips))):
        for row in connection.execute(_first_named(part)):
            naming = Naming(0, _chain(row).source, frozenset({row.chip}))
            found.received(parse_origin(row.origin), receipt_time_s(row.receipt), naming)
            nodes.add(row.node_id)
    newest: dict[str, Any] = {}
    for part in _parts(sorted(nodes)):
        query = select(log).where(log.c.node_id.in_(part), log.c.receipt_s.is_not(None))
        newest |= {row.node_id: row for row in connection.execute(query.order_by(log.c.incarnation))}
    listed = dict(_listed(connection, [row.id for row in newest.values()]))
    for row in newest.values():
        chain = _chain(row)
        naming = Naming(0, chain.source, frozenset(), listed.get(row.id), chain.closed == "retired")
        found.received(parse_origin(row.origin), row.receipt_s, naming)
    return found


def _first_named(chips: Sequence[str]) -> Any:
    """The first segment of each log that names each chip."""
    first = (
        select(chip_listed.c.log_id, chip_listed.c.chip, func.min(chip_listed.c.start).label("start"))
        .where(chip_listed.c.chip.in_(chips))
        .group_by(chip_listed.c.log_id, chip_listed.c.chip)
        .subquery()
    )
    return (
        select(first.c.chip, segment.c.receipt, log.c.origin, log.c.node_id, log.c.chain)
        .join(segment, (segment.c.log_id == first.c.log_id) & (segment.c.start == first.c.start))
        .join(log, log.c.id == first.c.log_id)
    )


def _listed(connection: Connection, logs: Sequence[int]) -> Iterator[tuple[int, frozenset[str]]]:
    """The newest inventory of logs."""
    for part in _parts(logs):
        newest = (
            select(inventory.c.log_id, func.max(inventory.c.seq).label("seq"))
            .where(inventory.c.log_id.in_(part))
            .group_by(inventory.c.log_id)
            .subquery()
        )
        query = select(inventory).join(
            newest, (newest.c.log_id == inventory.c.log_id) & (newest.c.seq == inventory.c.seq)
        )
        for row in connection.execute(query):
            yield row.log_id, _uuids(row)


@stored
def findings(connection: Connection) -> list[Finding]:
    """Chips that two nodes listed at once."""
    listings = Listings()
    shared = (
        select(chip_listed.c.chip)
        .join(log, log.c.id == chip_listed.c.log_id)
        .where(chip_listed.c.chip != HOST)
        .group_by(chip_listed.c.chip)
        .having(func.count(log.c.node_id.distinct()) > 1)
    )
    logs = select(chip_listed.c.log_id).where(chip_listed.c.chip.in_(shared)).distinct()
    for row in connection.execute(select(log).where(log.c.id.in_(logs))).all():
        for _, receipt_s, naming in namings(connection, row):
            listings.received(parse_origin(row.origin), receipt_s, naming)
    return listings.findings()


def namings(connection: Connection, row: Any) -> Iterator[tuple[int, int, Naming]]:
    """Each segment of a log: its end, its receipt's time, and what it says about chips.

    :param row: of the table of logs.
    """
    chain, named = _chain(row), _named(connection, row.id)
    inventories = connection.execute(
        select(inventory).where(inventory.c.log_id == row.id).order_by(inventory.c.seq)
    ).all()
    segments = select(segment.c.start, segment.c.end, segment.c.receipt).where(segment.c.log_id == row.id)
    at = 0
    for part in connection.execute(segments.order_by(segment.c.start)).all():
        listed = None
        while at < len(inventories) and inventories[at].seq < part.end:
            listed, at = _uuids(inventories[at]), at + 1
        retired = chain.closed == "retired" and part.end == row.size
        here = frozenset(named.get(part.start, ()))
        yield part.end, receipt_time_s(part.receipt), Naming(part.start, chain.source, here, listed, retired)


@stored
def naming_by_size(connection: Connection, row: Any) -> dict[int, Naming]:
    """:func:`namings` by the size of the log after each segment."""
    return {end: naming for end, _, naming in namings(connection, row)}


def _named(connection: Connection, log_id: int) -> dict[int, list[str]]:
    """What each segment of a log lists or retires by name, by its start."""
    found: dict[int, list[str]] = {}
    query = select(chip_listed.c.start, chip_listed.c.chip).where(chip_listed.c.log_id == log_id)
    for row in connection.execute(query.where(chip_listed.c.chip != HOST)):
        found.setdefault(row.start, []).append(row.chip)
    return found


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for at in range(0, len(values), _PART):
        yield values[at : at + _PART]


def _chain(row: Any) -> ChainState:
    chain: ChainState = parse(row.chain, ChainState)
    return chain


def _uuids(row: Any) -> frozenset[str]:
    chips: list[Chip] = parse(row.chips, list[Chip])
    return frozenset(chip.uuid for chip in chips)
