"""Totals as of one snapshot: what is stored, what changed since, and what is missing up to now."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, select

from keyturn_protocol.chips import ChipTable
from keyturn_verifier.db.rollup_tables import rollup_cell, rollup_gap
from keyturn_verifier.db.tables import log
from keyturn_verifier.queries import Filter
from keyturn_verifier.rollup import feed
from keyturn_verifier.rollup.delta import EVERY, Delta, Work
from keyturn_verifier.rollup.feed import State
from keyturn_verifier.rollup.parts import Part
from keyturn_verifier.rollup.silence import Silence
from keyturn_verifier.rollup.sources import Sources
from keyturn_verifier.rollup.spans import Level, Span, cut
from keyturn_verifier.rollup.stretch import Place, Stretch, decode_stretch

RULES: Final = 1
"""Grows when sums would come out differently with the same chip table."""
ALWAYS: Final[Sequence[Span] | None] = None
"""In place of spans: every month there is."""


def version_of(table: ChipTable) -> str:
    """What stored sums were made with."""
    return f"{RULES}/{table.version}/{table.sha256[:16]}"


def whole_logs(connection: Connection, state: State) -> Sequence[int]:
    """Logs that are in no stored sum yet."""
    return connection.execute(select(log.c.id).where(log.c.id > state.built).order_by(log.c.id)).scalars().all()


class View:
    """Reads only what is asked for."""

    def __init__(self, connection: Connection, sources: Sources, silence: Silence, table: ChipTable) -> None:
        self._connection = connection
        state = feed.load(connection)
        size = feed.size(connection)
        self._stored = state is not None and state.version == version_of(table) and state.size <= size
        if state is None or not self._stored:
            state = State("", size, -1)
        work = Work(connection, sources, table, stored=self._stored, keep=False)
        work.touched(feed.touched(connection, sources, state, size))
        if state.built != feed.ALL_LOGS:
            work.whole(whole_logs(connection, state))
        self._delta: Delta = work.done()
        self._facts = sources
        self._silence = silence
        self._stretches: list[Stretch] | None = None

    def stretches(self) -> list[Stretch]:
        """Long gaps and silences."""
        if self._stretches is None:
            long = [one for one, _ in self._delta.long]
            if self._stored:
                long += [decode_stretch(row.body) for row in self._connection.execute(select(rollup_gap))]
            facts = self._facts.logs(self._connection, {one.log_id for one in long})
            self._stretches = [one._replace(place=facts[one.log_id].place) for one in long]
            self._stretches += self._silence.stretches(self._connection, self._delta.numbers)
        return self._stretches

    @property
    def new_chips(self) -> Iterable[str]:
        """Chips that have no number yet; complete once :meth:`stretches` was asked for."""
        return self._delta.numbers.new

    def spans(self, wanted: Filter) -> Sequence[Span] | None:
        """A part of the usage as spans; :data:`ALWAYS` if nothing bounds it."""
        if wanted.from_s is None and wanted.to_s is None:
            return ALWAYS
        months = self.starts(Level.MONTH, EVERY)
        if not months:
            return []
        first, last = months[0], Span(Level.MONTH, months[-1]).to_s
        from_s = first if wanted.from_s is None else max(first, wanted.from_s)
        return list(cut(from_s, last if wanted.to_s is None else min(last, wanted.to_s)))

    def starts(self, level: Level, workload: str, from_s: int | None = None, to_s: int | None = None) -> list[int]:
        """Which spans of a level hold anything of a workload."""
        cell = rollup_cell.c
        query = select(cell.from_s).distinct().where(cell.level == level, cell.workload == workload)
        if from_s is not None:
            query = query.where(cell.from_s >= from_s)
        if to_s is not None:
            query = query.where(cell.from_s < to_s)
        found = set(self._connection.execute(query).scalars()) if self._stored else set()
        for key in self._delta.cells:
            if (key.level, key.workload) == (level, workload):
                inside = (from_s is None or key.from_s >= from_s) and (to_s is None or key.from_s < to_s)
                found |= {key.from_s} if inside else set()
        return sorted(found)

    def workloads(self, spans: Sequence[Span] | None, after: str, limit: int, but: Sequence[str] = ()) -> list[str]:
        """The first workloads after one, by name; pools are among them unless they are left out."""
        cell = rollup_cell.c
        found: set[str] = set()
        for (name, _), _part in self._changed(spans):
            found |= {name} if name > after and name not in but else set()
        query = select(cell.workload).distinct().where(cell.workload > after).order_by(cell.workload).limit(limit)
        if but:
            query = query.where(cell.workload.not_in(but))
        for one in self._queries(query, spans):
            found.update(self._connection.execute(one).scalars())
        found.discard(EVERY)
        return sorted(found)[:limit]

    def by_workload(self, spans: Sequence[Span] | None, names: Sequence[str]) -> dict[str, Part]:
        """The sums of some workloads: all that there are between the first and the last of them."""
        sums: dict[str, Part] = {}
        if not names:
            return sums
        wanted = set(names)
        for name, _, part in self._cells(spans, min(names), max(names)):
            if name in wanted:
                sums.setdefault(name, Part()).add(part)
        return sums

    def by_place(self, spans: Sequence[Span] | None, workload: str) -> dict[Place, Part]:
        """The sums of one workload, or of :data:`EVERY`."""
        sums: dict[Place, Part] = {}
        for _, place, part in self._cells(spans, workload, workload):
            sums.setdefault(place, Part()).add(part)
        return sums

    def by_start(self, level: Level, from_s: int, to_s: int, workload: str) -> dict[int, dict[Place, Part]]:
        """The sums of one workload for all spans of a level in a range."""
        cell, sums = rollup_cell.c, dict[int, dict[Place, Part]]()
        query = select(cell.from_s, cell.place, cell.body).where(
            cell.level == level, cell.workload == workload, cell.from_s >= from_s, cell.from_s < to_s
        )
        found: list[tuple[int, int, Part]] = []
        if self._stored:
            found += [(row.from_s, row.place, Part.decode(row.body)) for row in self._connection.execute(query)]
        found += [
            (key.from_s, key.place, part)
            for key, part in self._delta.cells.items()
            if (key.level, key.workload) == (level, workload) and from_s <= key.from_s < to_s
        ]
        for start, place, part in found:
            sums.setdefault(start, {}).setdefault(self._delta.places.names[place], Part()).add(part)
        return sums

    def _cells(self, spans: Sequence[Span] | None, first: str, last: str) -> Iterator[tuple[str, Place, Part]]:
        cell, names = rollup_cell.c, self._delta.places.names
        query = select(cell.workload, cell.place, cell.body)
        query = query.where(cell.workload == first if first == last else cell.workload.between(first, last))
        for one in self._queries(query, spans):
            for row in self._connection.execute(one):
                yield row.workload, names[row.place], Part.decode(row.body)
        for (name, place), part in self._changed(spans):
            if first <= name <= last:
                yield name, names[place], part

    def _queries(self, query: Select[Any], spans: Sequence[Span] | None) -> Iterator[Select[Any]]:
        """A query for each span, so that each is a range of an index; one for all months."""
        if not self._stored:
            return
        cell = rollup_cell.c
        if spans is ALWAYS:
            yield query.where(cell.level == Level.MONTH)
        for level, from_s in spans or ():
            yield query.where(cell.level == level, cell.from_s == from_s)

    def _changed(self, spans: Sequence[Span] | None) -> Iterator[tuple[tuple[str, int], Part]]:
        inside = None if spans is ALWAYS else set(spans or ())
        for key, part in self._delta.cells.items():
            if key.level == Level.MONTH if inside is None else (key.level, key.from_s) in inside:
                yield (key.workload, key.place), part
