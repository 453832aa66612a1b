"""What changed since the sums were stored: the verifier's log, read from there on."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sqlalchemy import Connection, select

from keyturn_protocol.canonical import parse
from keyturn_protocol.leaves import Enrolment, Leaf, LogFrozen, NodeCheckpoint
from keyturn_verifier import translog
from keyturn_verifier.db.hours import unpack_hours
from keyturn_verifier.db.rollup_tables import rollup_day, rollup_state
from keyturn_verifier.db.tables import segment, tree_head, workload_started
from keyturn_verifier.rollup.keyed import rows_of
from keyturn_verifier.rollup.parts import decode_day
from keyturn_verifier.rollup.sources import Sources

ALL_LOGS: Final = 2**62
_LEAVES: Final = 4_096


class State(NamedTuple):
    """How far stored sums reach: leaves before ``size``, in logs up to ``built``."""

    version: str
    size: int
    built: int


def load(connection: Connection) -> State | None:
    """The stored state; None before the first pass."""
    row = connection.execute(select(rollup_state)).one_or_none()
    return None if row is None else State(row.version, row.size, row.built)


def size(connection: Connection) -> int:
    """Leaves of the verifier's log, as this snapshot has them."""
    return int(connection.execute(select(tree_head.c.size).where(tree_head.c.id == translog.HEAD)).scalar_one())


@dataclass(slots=True)
class Touched:
    """Hours of logs whose rows may differ from what the sums hold."""

    hours: dict[int, set[int]] = field(default_factory=dict)
    whole: set[int] = field(default_factory=set)
    """Logs of which that isn't known: all of their hours."""


def origins(connection: Connection, start: int, end: int) -> dict[str, list[int]]:
    """The logs that leaves ``start`` … ``end - 1`` are about, each with the starts of its segments there."""
    found: dict[str, list[int]] = {}
    for first in range(start, end, _LEAVES):
        for data in translog.leaves(connection, first, min(_LEAVES, end - first)):
            leaf: Leaf = parse(data, Leaf)
            match leaf:
                case NodeCheckpoint(body=body):
                    found.setdefault(body.origin, []).append(body.start)
                case Enrolment() | LogFrozen():
                    found.setdefault(leaf.body.origin, [])
                case _:
                    pass
    return found


def touched(connection: Connection, sources: Sources, state: State, end: int) -> Touched:
    """What leaves ``state.size`` … ``end - 1`` touched, in logs that are in the sums."""
    found = Touched()
    named = origins(connection, state.size, end)
    ids = sources.ids(connection, named)
    starts = [(ids[o], start) for o, all_ in named.items() if ids[o] <= state.built for start in all_]
    ranges = []
    for row in rows_of(connection, segment, ["log_id = ?", "start = ?"], starts):
        ranges.append((row.log_id, row.start, row.end))
        if row.hours is None:
            found.whole.add(row.log_id)
        else:
            found.hours.setdefault(row.log_id, set()).update(unpack_hours(row.hours))
    _declared(connection, ranges, found)
    for log_id in found.whole:
        found.hours.pop(log_id, None)
    return found


def _declared(connection: Connection, ranges: list[tuple[int, int, int]], found: Touched) -> None:
    """A declaration is about all hours of its workload, those before it too."""
    said: dict[int, set[str]] = {}
    for row in rows_of(connection, workload_started, ["log_id = ?", "seq >= ?", "seq < ?"], ranges):
        said.setdefault(row.log_id, set()).add(row.workload)
    for row in rows_of(connection, rollup_day, ["log_id = ?"], [(log_id,) for log_id in sorted(said)]):
        hours = {hour.hour_s for hour in decode_day(row.body) if hour.workload in said[row.log_id]}
        found.hours.setdefault(row.log_id, set()).update(hours)
