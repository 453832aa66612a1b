"""What is read out of the database: logs, rows, gaps, totals and findings, in the forms of the protocol.

Rows, gaps and findings in entries are stored; what is missing up to now, FLOP, and findings in totals are
computed here at read, by the same pure functions that the auditor runs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select, tuple_

from keyturn_protocol.api import NodeLog
from keyturn_protocol.api_read import SegmentItem
from keyturn_protocol.canonical import parse
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_usage import FIELDS
from keyturn_protocol.findings import Finding, FindingCode, Severity, in_totals, ranked
from keyturn_protocol.ids import GAP, LogName, Origin, parse_origin
from keyturn_protocol.links import link_findings, takeovers
from keyturn_protocol.segment import ChainState, node_key
from keyturn_protocol.totals import Listed, LogEnd, Moment, clock_findings, listed_from, missing_after
from keyturn_protocol.usage import FoldState, Gap, UsageRow
from keyturn_verifier import chip_claims, people
from keyturn_verifier.db.tables import (
    chip_listed,
    finding,
    inventory,
    log,
    segment,
    usage_gap,
    usage_hour,
)
from keyturn_verifier.errors import stored
from keyturn_verifier.heads import state_of

RowCursor = tuple[int, str, int, str, int, int]
"""The primary key of a usage row."""
NodeCursor = tuple[str, int]
"""Node id and incarnation."""

_ROW_KEY = (
    usage_hour.c.log_id,
    usage_hour.c.chip,
    usage_hour.c.hour_s,
    usage_hour.c.workload,
    usage_hour.c.inventory_seq,
    usage_hour.c.basis,
)


@dataclass(frozen=True, slots=True)
class Filter:
    """A part of the usage: hours from … to (POSIX seconds, whole hours), one workload. None: no limit."""

    from_s: int | None = None
    to_s: int | None = None
    workload: str | None = None

    def clauses(self) -> Iterator[ColumnElement[bool]]:
        if self.from_s is not None:
            yield usage_hour.c.hour_s >= self.from_s
        if self.to_s is not None:
            yield usage_hour.c.hour_s < self.to_s
        if self.workload is not None:
            yield usage_hour.c.workload == self.workload

    def clip(self, gap: Gap) -> Gap | None:
        """The part of a gap that lies in these hours."""
        return None if self.workload not in (None, GAP) else cut(gap, self.from_s, self.to_s)


def cut(gap: Gap, from_s: int | None, to_s: int | None) -> Gap | None:
    """The part of a gap that lies between two times; None if nothing does."""
    from_us = gap.from_us if from_s is None else max(gap.from_us, from_s * 1_000_000)
    to_us = gap.to_us if to_s is None else min(gap.to_us, to_s * 1_000_000)
    if from_us >= to_us:
        return None
    if (from_us, to_us) == (gap.from_us, gap.to_us):
        return gap
    return Gap(
        log=gap.log, chip=gap.chip, from_us=from_us, to_us=to_us, inventory_seq=gap.inventory_seq, cause=gap.cause
    )


EVERYTHING = Filter()


@stored
def nodes(connection: Connection, after: NodeCursor | None, limit: int, node_id: str | None = None) -> list[NodeLog]:
    """Logs by node and incarnation; of one node if it is named."""
    query = select(log).order_by(log.c.node_id, log.c.incarnation).limit(limit)
    if after is not None:
        query = query.where(tuple_(log.c.node_id, log.c.incarnation) > tuple_(*after))
    if node_id is not None:
        query = query.where(log.c.node_id == node_id)
    return [_node(row) for row in connection.execute(query)]


@stored
def one_log(connection: Connection, node_id: str, incarnation: int) -> tuple[int, NodeLog] | None:
    """A log with its id; None if there is none."""
    query = select(log).where(log.c.node_id == node_id, log.c.incarnation == incarnation)
    row = connection.execute(query).one_or_none()
    return None if row is None else (row.id, _node(row))


@stored
def segments(connection: Connection, log_id: int, after: int | None, limit: int) -> list[SegmentItem]:
    """A log's segments by their first entries."""
    query = select(segment.c.start, segment.c.end, segment.c.sha256).where(segment.c.log_id == log_id)
    if after is not None:
        query = query.where(segment.c.start > after)
    rows = connection.execute(query.order_by(segment.c.start).limit(limit))
    return [SegmentItem(start=row.start, end=row.end, sha256=row.sha256.hex()) for row in rows]


def _node(row: Row[Any]) -> NodeLog:
    chain: ChainState = parse(row.chain, ChainState)
    state, reason = state_of(row.frozen, chain)
    return NodeLog(
        origin=row.origin,
        node_id=row.node_id,
        incarnation=row.incarnation,
        organisation=row.organisation,
        site=row.site,
        vkey=str(node_key(row.origin, row.public_key)),
        source=chain.source,
        size=row.size,
        chips=chain.chips or 0,
        last_entry_us=chain.time_us if row.size else None,
        last_receipt_s=row.receipt_s,
        state=state,
        reason=reason,
    )


@stored
def origins(connection: Connection) -> dict[int, Origin]:
    """Every log's origin by its id."""
    return {row.id: Origin(row.origin) for row in connection.execute(select(log.c.id, log.c.origin))}


@stored
def usage_page(
    connection: Connection, wanted: Filter, after: RowCursor | None, limit: int
) -> tuple[list[UsageRow], RowCursor | None]:
    """Some usage rows in the order of their keys, and the key of the last one if it may not be the end."""
    query = select(usage_hour, log.c.origin).join(log, log.c.id == usage_hour.c.log_id).where(*wanted.clauses())
    if after is not None:
        query = query.where(tuple_(*_ROW_KEY) > tuple_(*after))
    rows = connection.execute(query.order_by(*_ROW_KEY).limit(limit)).all()
    last = rows[-1] if len(rows) == limit else None
    cursor = None if last is None else tuple(getattr(last, column.name) for column in _ROW_KEY)
    return [usage_row(row, row.origin) for row in rows], cursor


def usage_rows(connection: Connection, names: dict[int, Origin], wanted: Filter = EVERYTHING) -> Iterator[UsageRow]:
    """All usage rows of a part of the usage, in the order of their keys."""
    query = select(usage_hour).where(*wanted.clauses()).order_by(*_ROW_KEY)
    for row in connection.execute(query.execution_options(yield_per=2_000)):
        yield usage_row(row, names[row.log_id])


def usage_row(row: Row[Any], origin: Origin) -> UsageRow:
    """A row of the table in the form of the protocol."""
    # Columns are in the order of the table: log_id, the rest of the key, time_us, samples, the fields.
    return UsageRow(log=origin, **dict(zip(_ROW_FIELDS, row[1:], strict=False)))


_ROW_FIELDS = ("chip", "hour_s", "workload", "inventory_seq", "basis", "time_us", "samples", *FIELDS)


@stored
def stored_gaps(connection: Connection, names: dict[int, Origin]) -> list[Gap]:
    """Gaps inside of logs."""
    return [gap_of(row, names[row.log_id]) for row in connection.execute(select(usage_gap))]


def gap_of(row: Row[Any], origin: Origin) -> Gap:
    """A row of the table of gaps in the form of the protocol."""
    return Gap(
        log=origin,
        chip=row.chip,
        from_us=row.from_us,
        to_us=row.to_us,
        inventory_seq=row.inventory_seq,
        cause=row.cause,
    )


def ends(connection: Connection, of: Sequence[str] | None = None) -> Iterator[LogEnd]:
    """Where every log ends, and what later logs of its node list.

    :param of: only the logs of these nodes.
    """
    query = select(log.c.id, log.c.origin, log.c.node_id, log.c.chain, log.c.fold, log.c.receipt_s).order_by(
        log.c.node_id, log.c.incarnation.desc()
    )
    listing = select(chip_listed).order_by(chip_listed.c.start)
    known = people.links(connection)
    linked = bool(known.by_old) if of is None else not known.by_old.keys().isdisjoint(of)
    if of is not None:
        query = query.where(log.c.node_id.in_(of))
        nodes = {*of, *known.by_old, *known.by_new} if linked else of
        listing = listing.where(chip_listed.c.log_id.in_(select(log.c.id).where(log.c.node_id.in_(nodes))))
    by_log: dict[int, dict[str, Moment]] = {}
    for row in connection.execute(listing):
        by_log.setdefault(row.log_id, {}).setdefault(row.chip, Moment(row.boot_id, row.mono_us, row.time_us))
    replaced = takeovers(known, people.node_logs(connection, known, by_log)) if linked else {}
    node: str | None = None
    listed: Listed = {}
    for row in connection.execute(query):
        if row.node_id != node:
            node, listed = row.node_id, {}
        chain: ChainState = parse(row.chain, ChainState)
        taken = replaced.get(row.node_id, {})
        yield LogEnd(Origin(row.origin), chain, parse(row.fold, FoldState), row.receipt_s, listed, taken)
        listed = listed_from(chain.source, by_log.get(row.id, {}), listed)


def missing(connection: Connection, until_us: int) -> list[Gap]:
    """What is missing after the end of every log; never stored, since it grows by itself."""
    return [gap for end in ends(connection) for gap in missing_after(end, until_us)]


def chips(connection: Connection, names: dict[int, Origin]) -> dict[tuple[str, int, str], Chip]:
    """Every chip as each inventory describes it."""
    found: dict[tuple[str, int, str], Chip] = {}
    for row in connection.execute(select(inventory)):
        listed: list[Chip] = parse(row.chips, list[Chip])
        found |= {(names[row.log_id], row.seq, chip.uuid): chip for chip in listed}
    return found


def _gaps(connection: Connection, names: dict[int, Origin], until_us: int) -> list[Gap]:
    return [*stored_gaps(connection, names), *missing(connection, until_us)]


@stored
def findings(
    connection: Connection, until_us: int, table: ChipTable, about_leases: Iterable[Finding] = ()
) -> list[Finding]:
    """All findings, the most severe first.

    :param about_leases: those of the start switch.
    """
    names = origins(connection)
    found = [*_stored_findings(connection, names), *clock_findings(ends(connection)), *_link_findings(connection)]
    found += [*about_leases, *chip_claims.findings(connection)]
    found += in_totals(
        usage_rows(connection, names),
        _gaps(connection, names, until_us),
        chips(connection, names),
        lambda chip: table.lookup(chip) is not None,
    )
    return ranked(found)


def _link_findings(connection: Connection) -> list[Finding]:
    known = people.links(connection)
    nodes = people.node_logs(connection, known, {})
    return link_findings(known, nodes, people.newest_logs(connection, known))


def _stored_findings(connection: Connection, names: dict[int, Origin]) -> Iterable[Finding]:
    for row in connection.execute(select(finding)):
        yield Finding(
            code=FindingCode(row.code),
            severity=Severity(row.severity),
            origin=names[row.log_id],
            seq=row.seq,
            from_us=row.from_us,
            to_us=row.to_us,
            detail=row.detail,
        )


def logs(connection: Connection) -> list[tuple[int, LogName, Any]]:
    """Every log for an export: its id, its name, and organisation, site, size and key."""
    query = select(log.c.id, log.c.origin, log.c.organisation, log.c.site, log.c.size, log.c.public_key).order_by(
        log.c.node_id, log.c.incarnation
    )
    return [(row.id, parse_origin(row.origin), row) for row in connection.execute(query)]
