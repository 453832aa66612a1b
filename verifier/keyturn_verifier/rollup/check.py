"""Stored sums against rows: made once more from nothing, and compared. Part of ``keyturn-verifier check``."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from backports import zstd
from sqlalchemy import Connection, select
from sqlalchemy.exc import NoResultFound

from keyturn_protocol.chips import ChipTable
from keyturn_verifier.db.rollup_tables import rollup_cell, rollup_day, rollup_gap
from keyturn_verifier.differences import Difference
from keyturn_verifier.rollup import feed
from keyturn_verifier.rollup.delta import CellKey, Work
from keyturn_verifier.rollup.parts import Part, decode_day
from keyturn_verifier.rollup.sources import Sources
from keyturn_verifier.rollup.stretch import Stretch, decode_stretch
from keyturn_verifier.rollup.view import version_of, whole_logs

_DAMAGED: Final = (msgspec.MsgspecError, zstd.ZstdError, ValueError, TypeError, KeyError)


def check_sums(connection: Connection, table: ChipTable) -> Iterator[Difference]:
    """What stored sums say that rows don't. Sums of another version are nobody's word, and are made again."""
    state = feed.load(connection)
    if state is None or state.version != version_of(table):
        return
    try:
        size = feed.size(connection)
    except NoResultFound:
        return  # the head's own row is missing, which its table's check says
    if state.size > size:
        yield Difference("rollup_state", "size", f"expected at most {size}, got {state.size}")
        return
    sources = Sources()
    try:
        pending = Work(connection, sources, table)
        touched = feed.touched(connection, sources, state, size)
        pending.touched(touched)
        later = whole_logs(connection, state)
        pending.whole(later)
        delta = pending.done()
        cells = dict(_cells(connection))
        days = {(row.log_id, row.day_s): decode_day(row.body) for row in connection.execute(select(rollup_day))}
        gaps = [decode_stretch(row.body) for row in connection.execute(select(rollup_gap))]
        fresh = Work(connection, sources, table, stored=False)
        fresh.whole(whole_logs(connection, feed.State("", 0, -1)))
        made = fresh.done()
    except _DAMAGED as error:
        yield Difference(rollup_cell.name, "sums", f"can't be made or read: {error!r}")
        return
    for key, part in delta.cells.items():
        cells.setdefault(key, Part()).add(part)
    for key in sorted(cells.keys() | made.cells.keys()):
        if _shown(cells.get(key)) != _shown(made.cells.get(key)):
            yield Difference(rollup_cell.name, _where(key), "differs from what rows add up to")
    changing = touched.whole | set(later)
    for log_id, day_s in sorted(days.keys() | made.days.keys()):
        pending_hours = {hour // 86_400 * 86_400 for hour in touched.hours.get(log_id, ())}
        if log_id in changing or day_s in pending_hours:
            continue
        if sorted(days.get((log_id, day_s), [])) != sorted(made.days.get((log_id, day_s), [])):
            yield Difference(rollup_day.name, f"log_id {log_id}, day {day_s}", "differs from what its rows are")
    expected = [one for one, _ in made.long]
    if sorted(map(_stretch, [*gaps, *(one for one, _ in delta.long)])) != sorted(map(_stretch, expected)):
        yield Difference(rollup_gap.name, "long gaps", "differ from those of the logs")


def _cells(connection: Connection) -> Iterator[tuple[CellKey, Part]]:
    for row in connection.execute(select(rollup_cell).execution_options(yield_per=1_000)):
        yield CellKey(row.level, row.workload, row.from_s, row.place), Part.decode(row.body)


def _shown(part: Part | None) -> Any:
    """All that a part says; one that is of nothing says nothing."""
    if part is None or not any((*part.sums, part.logs, part.chips)):
        return None
    dtypes = {dtype: count for dtype, count in part.dtypes.items() if count}
    return (part.sums, part.from_s, part.to_s, dtypes, part.classes, part.logs, part.chips)


def _stretch(one: Stretch) -> tuple[object, ...]:
    return (*one[:6], sorted(one.chips.items()))


def _where(key: CellKey) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in key._asdict().items())
