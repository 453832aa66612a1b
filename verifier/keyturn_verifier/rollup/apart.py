"""Spans of time by node or by chip: each group's own rows, read through the key of the table, a page at a time.

There are too many of these groups for sums to be kept of each. A page ends early when it has read enough; the next
one goes on from there.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, select

from keyturn_protocol.api_read import By, UsageBucket
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.flop import estimate, gap_rate
from keyturn_protocol.ids import GAP
from keyturn_protocol.totals import declared_dtype, missing_after
from keyturn_protocol.usage import HOUR_S, Gap
from keyturn_verifier import queries
from keyturn_verifier.db.rollup_tables import rollup_chip
from keyturn_verifier.db.tables import chip_listed, log, usage_gap
from keyturn_verifier.queries import Filter
from keyturn_verifier.rollup import numbers
from keyturn_verifier.rollup.keyed import rows_of
from keyturn_verifier.rollup.parts import Part
from keyturn_verifier.rollup.sources import LogFacts, Sources, rows_between, started_of
from keyturn_verifier.rollup.spans import Level, span_of
from keyturn_verifier.rollup.stretch import Stretch, add_stretch, overlap
from keyturn_verifier.rollup.totals import BucketKey, clip, occupied, shown, spread
from keyturn_verifier.rollup.view import View

ROWS: Final = 50_000
"""Usage rows that a page may have to read, about."""


class Page(NamedTuple):
    """What was found, and the key after which the next page begins; None: there is no more."""

    items: list[UsageBucket]
    next: BucketKey | None


def buckets(
    connection: Connection,
    view: View,
    sources: Sources,
    table: ChipTable,
    wanted: Filter,
    level: Level,
    by: By,
    until_us: int,
    after: BucketKey | None,
    limit: int,
) -> Page:
    """What nodes or chips used, bucket by bucket."""
    gone = spread(view, wanted, level, until_us, lambda _: GAP, 0 if after is None else after.from_s)
    found: list[UsageBucket] = []
    left = ROWS
    for start in occupied(view, wanted, level, set(gone), after):
        end = span_of(level, start)[1]
        inside = clip(wanted, start, end)
        hours = max(1, ((inside.to_s or 0) - (inside.from_s or 0)) // HOUR_S)
        at_once = max(1, min(256, ROWS // (hours * (8 if by == "node" else 1))))
        name = after.group if after is not None and after.from_s == start else ""
        while groups := _names(connection, view, by, name, at_once):
            read = _Read(connection, sources, table, inside, until_us, by)
            sums = read.sums(groups)
            for name in groups:
                if name in sums:
                    found.append(shown(BucketKey(start, end, name), by, sums[name]))
                    if len(found) == limit:
                        return Page(found, BucketKey(start, end, name))
            left -= read.rows + len(groups)
            if left <= 0:
                return Page(found, BucketKey(start, end, name))
    return Page(found, None)


def _names(connection: Connection, view: View, by: By, after: str, limit: int) -> list[str]:
    """The next groups in the order of their names, whether they used anything or not."""
    if by == "node":
        nodes = select(log.c.node_id).distinct().where(log.c.node_id > after)
        return list(connection.execute(nodes.order_by(log.c.node_id).limit(limit)).scalars())
    stored = select(rollup_chip.c.chip).where(rollup_chip.c.chip > after).order_by(rollup_chip.c.chip).limit(limit)
    new = {chip for chip in view.new_chips if chip > after}
    return sorted({*connection.execute(stored).scalars(), *new})[:limit]


class _Read:
    """One reading of some groups."""

    def __init__(
        self, connection: Connection, sources: Sources, table: ChipTable, wanted: Filter, until_us: int, by: By
    ) -> None:
        self._connection = connection
        self._sources = sources
        self._table = table
        self._wanted = wanted
        self._until_us = until_us
        self._by = by
        self._chips: dict[str, int] = {}
        self.rows = 0

    def sums(self, groups: Sequence[str]) -> dict[str, Part]:
        """What each group used; groups without anything are left out."""
        on = "chip = ?" if self._by == "chip" else "log_id = ?"
        keys: list[tuple[int | str]] = [(name,) for name in groups]
        if self._by == "node":
            keys = [(row.id,) for row in rows_of(self._connection, log, ["node_id = ?"], keys)]
        pairs = sorted({(row.log_id, row.chip) for row in rows_of(self._connection, chip_listed, [on], keys)})
        ids = sorted({log_id for log_id, _ in pairs})
        facts = self._sources.logs(self._connection, ids)
        sums: dict[str, Part] = {}
        self._rows(sums, facts, pairs)
        if self._wanted.workload in (None, GAP):
            self._missing(sums, facts, set(groups))
        return sums

    def _group(self, facts: LogFacts, chip: str) -> str:
        return chip if self._by == "chip" else facts.node_id

    def _number(self, chip: str) -> int:
        return self._chips.setdefault(chip, len(self._chips))

    def _rows(self, sums: dict[str, Part], facts: dict[int, LogFacts], pairs: list[tuple[int, str]]) -> None:
        inventories = self._sources.inventories(self._connection, sorted(facts))
        from_s, to_s, workload = self._wanted.from_s or 0, self._wanted.to_s or 0, self._wanted.workload
        rows = [
            (log_id, row)
            for log_id, row in rows_between(self._connection, facts, pairs, from_s, to_s)
            if workload in (None, row.workload)
        ]
        self.rows += len(rows)
        started = started_of(self._connection, ((log_id, row.workload) for log_id, row in rows))
        for log_id, row in rows:
            dtype = declared_dtype(started.get((log_id, row.workload), ()))
            chip = inventories[log_id][row.inventory_seq][row.chip]
            part = sums.setdefault(self._group(facts[log_id], row.chip), Part())
            part.row(row, estimate(row, chip, dtype, self._table))
            numbers.add(part.logs, log_id)
            numbers.add(part.chips, self._number(row.chip))

    def _missing(self, sums: dict[str, Part], facts: dict[int, LogFacts], groups: set[str]) -> None:
        inventories = self._sources.inventories(self._connection, sorted(facts))
        for log_id, gap in self._gaps(facts):
            name = self._group(facts[log_id], gap.chip)
            if name not in groups:
                continue
            rate = gap_rate(inventories[log_id][gap.inventory_seq][gap.chip], self._table)
            chips = numbers.of([self._number(gap.chip)])
            one = Stretch(log_id, gap.from_us, gap.to_us, 1, rate or 0, int(rate is None), chips)
            if (inside := overlap(one, self._wanted, self._until_us)) is not None:
                add_stretch(sums.setdefault(name, Part()), one, *inside)

    def _gaps(self, facts: dict[int, LogFacts]) -> Iterator[tuple[int, Gap]]:
        """Gaps inside of logs, and after their ends."""
        bounds = {"to_us": (self._wanted.to_s or 0) * 1_000_000, "from_us": (self._wanted.from_s or 0) * 1_000_000}
        on = ["log_id = ?", "to_us > :from_us", "from_us < :to_us"]
        for row in rows_of(self._connection, usage_gap, on, [(i,) for i in sorted(facts)], **bounds):
            yield row.log_id, queries.gap_of(row, facts[row.log_id].origin)
        ids = {of.origin: of.id for of in facts.values()}
        for end in queries.ends(self._connection, sorted({of.node_id for of in facts.values()})):
            if end.origin in ids:
                for gap in missing_after(end, self._until_us):
                    yield ids[end.origin], gap
