"""The thread that stores what changed, a little at a time, in every process that serves; replicas take turns.

A pass reads one snapshot, works without holding a lock, and writes only if the state is still the one that it read:
two passes at once can't both count. It uses a tenth of a core at most, and ingest never waits for it.
"""

import logging
from typing import Final

from sqlalchemy import Connection, Engine, delete, insert, update
from sqlalchemy.dialects import postgresql, sqlite

from keyturn_protocol.chips import ChipTable
from keyturn_verifier.db.engine import is_postgres, reading, writing
from keyturn_verifier.db.rollup_tables import (
    rollup_cell,
    rollup_chip,
    rollup_day,
    rollup_gap,
    rollup_log,
    rollup_place,
    rollup_state,
)
from keyturn_verifier.passes import Passes
from keyturn_verifier.rollup import feed
from keyturn_verifier.rollup.delta import CellKey, Delta, Work
from keyturn_verifier.rollup.feed import ALL_LOGS, State
from keyturn_verifier.rollup.keyed import rows_of
from keyturn_verifier.rollup.parts import Part, encode_day
from keyturn_verifier.rollup.sources import Sources
from keyturn_verifier.rollup.stretch import encode_stretch
from keyturn_verifier.rollup.view import version_of, whole_logs

log = logging.getLogger(__name__)

TURN: Final = 0x6B65797475726E02
"""The advisory lock of whoever makes a pass on PostgreSQL: "keyturn" and a two."""
LEAVES: Final = 2_048
"""Of the verifier's log, in one pass."""
LOGS: Final = 16
"""Put in as a whole in one pass, when sums are made for the first time."""
_ROW: Final = 1


class Keeper:
    """Makes passes. :meth:`step` may be called by anybody; :meth:`start` begins a thread that does."""

    def __init__(self, engine: Engine, table: ChipTable, interval_ms: int, sources: Sources) -> None:
        self._engine = engine
        self._table = table
        self._sources = sources
        self._passes = Passes(self.step, interval_ms / 1_000, "rollup", "sums could not be brought up to date")
        self._taken_over = False
        """Another chip table replaced this process's: it is not taken back, or two versions would go on doing so."""
        self._mine = False

    def start(self) -> None:
        """Begin."""
        self._passes.start()

    def stop(self) -> None:
        """End after the pass that is under way. Blocks."""
        self._passes.stop()

    def step(self) -> bool:
        """Make one pass; returns whether there is more to do at once."""
        version = version_of(self._table)
        with reading(self._engine) as snapshot:
            if is_postgres(snapshot):
                turn = snapshot.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({TURN})").scalar()
                if not turn:
                    return False
            state = feed.load(snapshot)
            size = feed.size(snapshot)
            if state is None or state.version != version or state.size > size:
                return self._begin_again(state, State(version, size, -1))
            self._mine = True
            if state.size == size and state.built == ALL_LOGS:
                return False
            work = Work(snapshot, self._sources, self._table)
            end = min(size, state.size + LEAVES)
            work.touched(feed.touched(snapshot, self._sources, state, end))
            built = state.built
            if end == size and built != ALL_LOGS:
                logs = whole_logs(snapshot, state)
                work.whole(logs[:LOGS])
                built = logs[LOGS - 1] if len(logs) > LOGS else ALL_LOGS
            delta = work.done()
            bodies = _add(snapshot, delta)
            after = State(version, end, built)
            with writing(self._engine) as connection:
                if is_postgres(connection):
                    # What is lost in a crash is lost whole, and made again.
                    connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
                if not _move(connection, state, after):
                    return False
                _write(connection, delta, bodies)
            return end < size or built != ALL_LOGS

    def _begin_again(self, state: State | None, new: State) -> bool:
        """Drop all sums: they are another version's, or a restored database's that is older than they are."""
        if state is not None and self._mine and state.version != new.version:
            if not self._taken_over:
                log.warning("totals are kept with another chip table by a replica started later: reads here are slow")
            self._taken_over = True
            return False
        with writing(self._engine) as connection:
            if is_postgres(connection):
                connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            if state is None:
                make = postgresql.insert if is_postgres(connection) else sqlite.insert
                first = make(rollup_state).values(id=_ROW, **new._asdict()).on_conflict_do_nothing()
                if connection.execute(first.returning(rollup_state.c.id)).first() is None:
                    return False
            elif not _move(connection, state, new):
                return False
            for table in (rollup_cell, rollup_day, rollup_log, rollup_gap):
                connection.execute(delete(table))
        return True


def _move(connection: Connection, old: State, new: State) -> bool:
    """Compare and swap. Whoever finds the row locked waits, and then finds it moved."""
    row = rollup_state.c
    same = (row.version == old.version, row.size == old.size, row.built == old.built)
    return connection.execute(update(rollup_state).where(row.id == _ROW, *same).values(**new._asdict())).rowcount == 1


def _add(snapshot: Connection, changed: Delta) -> list[tuple[CellKey, bytes]]:
    """Stored sums with the delta added, encoded."""
    keys = sorted(changed.cells)
    on = ["level = ?", "workload = ?", "from_s = ?", "place = ?"]
    for row in rows_of(snapshot, rollup_cell, on, keys):
        stored = Part.decode(row.body)
        stored.add(changed.cells[CellKey(row.level, row.workload, row.from_s, row.place)])
        changed.cells[CellKey(row.level, row.workload, row.from_s, row.place)] = stored
    return [(key, changed.cells[key].encode()) for key in keys]


def _write(connection: Connection, changed: Delta, bodies: list[tuple[CellKey, bytes]]) -> None:
    make = postgresql.insert if is_postgres(connection) else sqlite.insert
    if changed.places.new:
        places = [{"id": i, "organisation": o, "site": s} for i, (o, s) in changed.places.new.items()]
        connection.execute(insert(rollup_place), places)
    if changed.numbers.new:
        chips = [{"number": number, "chip": chip} for chip, number in changed.numbers.new.items()]
        connection.execute(insert(rollup_chip), chips)
    days = [
        {"log_id": log_id, "day_s": day_s, "body": encode_day(hours)} for (log_id, day_s), hours in changed.days.items()
    ]
    cells = [{**key._asdict(), "body": body} for key, body in bodies]
    logs = [{"log_id": log_id, "gap_id": gap_id} for log_id, gap_id in changed.gap_ids.items()]
    for table, rows, value in ((rollup_day, days, "body"), (rollup_cell, cells, "body"), (rollup_log, logs, "gap_id")):
        if rows:
            statement = make(table)
            statement = statement.on_conflict_do_update(
                index_elements=list(table.primary_key.columns), set_={value: statement.excluded[value]}
            )
            connection.execute(statement, rows)
    if changed.long:
        long = [
            {"log_id": s.log_id, "from_us": s.from_us, "to_us": s.to_us, "gap_id": last, "body": encode_stretch(s)}
            for s, last in changed.long
        ]
        connection.execute(insert(rollup_gap), long)
