"""What changed, as parts to add to the stored sums: the same for whoever stores them and for whoever reads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, select

from keyturn_protocol.chips import ChipTable
from keyturn_protocol.entry_workloads import WorkloadStartedBody
from keyturn_protocol.flop import estimate, gap_rate
from keyturn_protocol.ids import GAP
from keyturn_protocol.totals import declared_dtype
from keyturn_protocol.usage import HOUR_S, UsageRow
from keyturn_verifier.db.rollup_tables import rollup_day, rollup_log, rollup_place
from keyturn_verifier.rollup import numbers
from keyturn_verifier.rollup.feed import Touched
from keyturn_verifier.rollup.keyed import rows_of
from keyturn_verifier.rollup.parts import HourPart, Part, decode_day
from keyturn_verifier.rollup.sources import (
    Inventories,
    LogFacts,
    Sources,
    gaps_after,
    next_number,
    rows_at,
    rows_of_log,
    started_of,
)
from keyturn_verifier.rollup.spans import DAY_S, Level, span_of
from keyturn_verifier.rollup.stretch import Stretch, add_stretch

EVERY: Final = ""
"""In place of a workload: all of them. No workload and no pool has this name."""
LONG_US: Final = 32 * DAY_S * 1_000_000
"""A longer gap is kept apart: it would be in more sums than a month has hours."""
_HOUR_US: Final = HOUR_S * 1_000_000
_LOGS: Final = 256
"""Logs whose rows are in memory at one time."""


class CellKey(NamedTuple):
    """The key of a stored sum."""

    level: int
    workload: str
    from_s: int
    place: int


class ChipNumbers:
    """Numbers of chips as one snapshot has them, and new ones for chips that have none."""

    def __init__(self, connection: Connection, sources: Sources) -> None:
        self._connection = connection
        self._sources = sources
        self._next: int | None = None
        self.new: dict[str, int] = {}

    def of(self, chips: Iterable[str]) -> Mapping[str, int]:
        """Every chip's number."""
        wanted = set(chips)
        known = self._sources.numbers(self._connection, wanted)
        for chip in sorted(wanted - known.keys() - self.new.keys()):
            self._next = next_number(self._connection) if self._next is None else self._next
            self.new[chip] = self._next
            self._next += 1
        return {chip: known[chip] if chip in known else self.new[chip] for chip in wanted}


class Places:
    """Numbers of (organisation, site), in the same way."""

    def __init__(self, connection: Connection) -> None:
        self.names = {row.id: (row.organisation, row.site) for row in connection.execute(select(rollup_place))}
        self._ids = {name: place for place, name in self.names.items()}
        self.new: dict[int, tuple[str, str]] = {}

    def of(self, facts: LogFacts) -> int:
        name = facts.place
        if name not in self._ids:
            self._ids[name] = place = max(self.names, default=-1) + 1
            self.names[place] = self.new[place] = name
        return int(self._ids[name])


@dataclass(slots=True)
class Delta:
    """Parts to add, and what is stored with them."""

    numbers: ChipNumbers
    places: Places
    cells: dict[CellKey, Part] = field(default_factory=dict)
    days: dict[tuple[int, int], list[HourPart]] = field(default_factory=dict)
    """All of what a log's day holds now."""
    gap_ids: dict[int, int] = field(default_factory=dict)
    long: list[tuple[Stretch, int]] = field(default_factory=list)
    """With the id of the last gap of each."""


class Work:
    """Makes one delta out of one snapshot.

    :param stored: whether stored sums are used at all; if not, everything is new.
    :param keep: whether ``days`` are wanted.
    """

    def __init__(
        self, connection: Connection, sources: Sources, table: ChipTable, *, stored: bool = True, keep: bool = True
    ) -> None:
        self._connection = connection
        self._sources = sources
        self._table = table
        self._stored = stored
        self._keep = keep
        self.delta = Delta(ChipNumbers(connection, sources), Places(connection))
        self._hours: dict[tuple[str, int, int], Part] = {}

    def touched(self, changes: Touched) -> None:
        """Put in what hours hold now, and take out what they had put in."""
        logs = sorted(changes.hours)
        for first in range(0, len(logs), _LOGS):
            self._some({log_id: changes.hours[log_id] for log_id in logs[first : first + _LOGS]})
        self.whole(sorted(changes.whole))

    def whole(self, logs: Sequence[int]) -> None:
        """Put in all hours of some logs."""
        for log_id in logs:
            facts = self._sources.logs(self._connection, [log_id])
            inventories = self._sources.inventories(self._connection, [log_id])
            new: dict[tuple[int, str], Part] = {}
            for rows in _chunks(rows_of_log(self._connection, facts[log_id])):
                self._estimate(((log_id, row) for row in rows), inventories, {log_id: new})
            old = self._days([(log_id,)], ["log_id = ?"])
            self._replace(facts[log_id], new, old, None)
            self._gaps(facts, inventories)

    def done(self) -> Delta:
        """The delta, hours added up to days and months."""
        cells = self.delta.cells
        for (workload, hour_s, place), part in self._hours.items():
            for level in Level:
                from_s = span_of(level, hour_s)[0]
                for name in (workload, EVERY):
                    cells.setdefault(CellKey(level, name, from_s, place), Part()).add(part)
        self._hours = {}
        return self.delta

    def _some(self, hours: Mapping[int, set[int]]) -> None:
        ids = list(hours)
        facts = self._sources.logs(self._connection, ids)
        inventories = self._sources.inventories(self._connection, ids)
        keys = [
            (log_id, chip, hour_s)
            for log_id, of in hours.items()
            for chip in sorted({chip for listed in inventories[log_id].values() for chip in listed})
            for hour_s in sorted(of)
        ]
        new: dict[int, dict[tuple[int, str], Part]] = {log_id: {} for log_id in ids}
        self._estimate(rows_at(self._connection, facts, keys), inventories, new)
        days = sorted({(log_id, hour_s // DAY_S * DAY_S) for log_id, of in hours.items() for hour_s in of})
        old = self._days(days, ["log_id = ?", "day_s = ?"])
        for log_id in ids:
            self._replace(facts[log_id], new[log_id], old, hours[log_id])
        self._gaps(facts, inventories)

    def _days(self, keys: Sequence[tuple[int, ...]], on: Sequence[str]) -> dict[tuple[int, int], list[HourPart]]:
        if not self._stored:
            return {}
        rows = rows_of(self._connection, rollup_day, on, keys)
        return {(row.log_id, row.day_s): decode_day(row.body) for row in rows}

    def _estimate(
        self,
        rows: Iterable[tuple[int, UsageRow]],
        inventories: Mapping[int, Inventories],
        into: Mapping[int, dict[tuple[int, str], Part]],
    ) -> None:
        """Add rows to parts by hour and workload, each row estimated by itself."""
        got = list(rows)
        started = started_of(self._connection, ((log_id, row.workload) for log_id, row in got))
        chips = self.delta.numbers.of({row.chip for _, row in got})
        nothing: list[WorkloadStartedBody] = []
        for log_id, row in got:
            bodies = started.get((log_id, row.workload), nothing)
            dtype = declared_dtype(bodies)
            one = estimate(row, inventories[log_id][row.inventory_seq][row.chip], dtype, self._table)
            part = into[log_id].get((row.hour_s, row.workload))
            if part is None:
                part = into[log_id][row.hour_s, row.workload] = Part()
                part.dtypes[dtype] = 1
                part.classes.update(body.class_ for body in bodies)
                numbers.add(part.logs, log_id)
            part.row(row, one)
            numbers.add(part.chips, chips[row.chip])

    def _replace(
        self,
        facts: LogFacts,
        new: Mapping[tuple[int, str], Part],
        old: Mapping[tuple[int, int], list[HourPart]],
        hours: set[int] | None,
    ) -> None:
        """Put parts of one log in, for what its stored days say of the same hours."""
        place = self.delta.places.of(facts)
        before = {(h.hour_s, h.workload): h for (log_id, _), day in old.items() if log_id == facts.id for h in day}
        if self._keep:
            self._store(facts.id, new, before, hours)
        for (hour_s, workload), part in new.items():
            was = before.get((hour_s, workload))
            if was is not None:
                if was == part.hour(hour_s, workload):
                    continue
                part.less(was)
            self._hours.setdefault((workload, hour_s, place), Part()).add(part)

    def _store(
        self,
        log_id: int,
        new: Mapping[tuple[int, str], Part],
        before: Mapping[tuple[int, str], HourPart],
        hours: set[int] | None,
    ) -> None:
        now = {key: h for key, h in before.items() if hours is not None and h.hour_s not in hours}
        for (hour_s, workload), part in new.items():
            now[hour_s, workload] = part.hour(hour_s, workload)
        for _, hour in sorted(now.items()):
            self.delta.days.setdefault((log_id, hour.hour_s // DAY_S * DAY_S), []).append(hour)

    def _gaps(self, facts: Mapping[int, LogFacts], inventories: Mapping[int, Inventories]) -> None:
        """Put in the gaps that are new: those of one log with the same ends at once, as a reboot makes them."""
        known = {row.log_id: row.gap_id for row in self._watermarks(facts)}
        stretches: dict[tuple[int, int, int], list[tuple[int | None, str]]] = {}
        last: dict[int, int] = {}
        for log_id, gap_id, gap in gaps_after(self._connection, facts, [(i, known.get(i, -1)) for i in sorted(facts)]):
            rate = gap_rate(inventories[log_id][gap.inventory_seq][gap.chip], self._table)
            stretches.setdefault((log_id, gap.from_us, gap.to_us), []).append((rate, gap.chip))
            last[log_id] = max(last.get(log_id, -1), gap_id)
        named = self.delta.numbers.of({chip for rates in stretches.values() for _, chip in rates})
        for (log_id, from_us, to_us), rates in stretches.items():
            bounds = [rate for rate, _ in rates if rate is not None]
            chips = numbers.of(named[chip] for _, chip in rates)
            one = Stretch(log_id, from_us, to_us, len(rates), sum(bounds), len(rates) - len(bounds), chips)
            if to_us - from_us > LONG_US:
                self.delta.long.append((one, last[log_id]))
            else:
                self._spread(one, from_us, to_us, self.delta.places.of(facts[log_id]))
        self.delta.gap_ids |= last

    def _watermarks(self, facts: Mapping[int, LogFacts]) -> Iterable[Row[Any]]:
        return rows_of(self._connection, rollup_log, ["log_id = ?"], [(i,) for i in facts]) if self._stored else []

    def _spread(self, one: Stretch, from_us: int, to_us: int, place: int) -> None:
        """A stretch, hour by hour."""
        at = from_us
        while at < to_us:
            end = min(to_us, (at // _HOUR_US + 1) * _HOUR_US)
            part = self._hours.setdefault((GAP, at // _HOUR_US * HOUR_S, place), Part())
            add_stretch(part, one, at, end)
            at = end


def _chunks(rows: Iterable[UsageRow], size: int = 4_096) -> Iterator[list[UsageRow]]:
    chunk: list[UsageRow] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
