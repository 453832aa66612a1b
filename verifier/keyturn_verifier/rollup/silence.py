"""What is missing after the ends of logs, kept in the process: it grows by itself and is stored nowhere.

The verifier's log says which logs moved since it was last asked for; only their nodes are read again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, select

from keyturn_protocol.canonical import parse
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.entries import Chip
from keyturn_protocol.flop import gap_rate
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.totals import missing_after
from keyturn_protocol.usage import Gap
from keyturn_verifier import queries
from keyturn_verifier.db.tables import inventory, log
from keyturn_verifier.rollup import feed, numbers
from keyturn_verifier.rollup.delta import ChipNumbers
from keyturn_verifier.rollup.keyed import rows_of
from keyturn_verifier.rollup.sources import Sources
from keyturn_verifier.rollup.stretch import Stretch

_FAR_US: Final = 2**62
"""After all times that an entry can have: a stretch up to here goes on."""
_NODES: Final = 500


@dataclass(slots=True)
class _Owed:
    """A stretch whose chips may not have numbers yet."""

    stretch: Stretch
    chips: tuple[str, ...]
    known: bool = False


class Silence:
    """Belongs to one reader at a time."""

    def __init__(self, sources: Sources, table: ChipTable) -> None:
        self._sources = sources
        self._table = table
        self._size = 0
        self._nodes: dict[str, list[_Owed]] = {}
        self._unknown: set[str] = set()

    def stretches(self, connection: Connection, named: ChipNumbers) -> Iterator[Stretch]:
        """Everything that is missing, as of a snapshot: up to when a stretch names, or up to now."""
        size = feed.size(connection)
        if size < self._size:
            # A snapshot older than what is kept, or another database in the place of the old one.
            self._size, self._nodes, self._unknown = 0, {}, set()
        if self._size == 0:
            nodes: Iterable[str] = connection.execute(select(log.c.node_id).distinct()).scalars().all()
        else:
            nodes = {parse_origin(origin).node_id for origin in feed.origins(connection, self._size, size)}
        self._read(connection, sorted(nodes))
        self._size = size
        for node in sorted(self._unknown):
            self._number(connection, node)
        for node, owed in self._nodes.items():
            for one in owed:
                if node in self._unknown and not one.known:
                    of = named.of(one.chips)
                    yield one.stretch._replace(chips=numbers.of(of[chip] for chip in one.chips))
                else:
                    yield one.stretch

    def _read(self, connection: Connection, nodes: list[str]) -> None:
        """Read some nodes again."""
        for first in range(0, len(nodes), _NODES):
            part = nodes[first : first + _NODES]
            gaps = [gap for end in queries.ends(connection, part) for gap in missing_after(end, _FAR_US)]
            ids = self._sources.ids(connection, {gap.log for gap in gaps})
            rates = self._rates(connection, {(ids[gap.log], gap.inventory_seq, gap.chip) for gap in gaps})
            for node in part:
                self._nodes[node] = []
            self._unknown.update(part)
            together: dict[tuple[str, int, int], list[Gap]] = {}
            for gap in gaps:
                together.setdefault((gap.log, gap.from_us, gap.to_us), []).append(gap)
            for (origin, from_us, to_us), same in together.items():
                each = [rates[ids[origin], gap.inventory_seq, gap.chip] for gap in same]
                bounds = [rate for rate in each if rate is not None]
                until_us = None if to_us == _FAR_US else to_us
                missing, unbounded = len(same), len(same) - len(bounds)
                stretch = Stretch(ids[origin], from_us, until_us, missing, sum(bounds), unbounded, {}, silent=True)
                self._nodes[parse_origin(origin).node_id].append(_Owed(stretch, tuple(gap.chip for gap in same)))

    def _rates(
        self, connection: Connection, wanted: set[tuple[int, int, str]]
    ) -> dict[tuple[int, int, str], int | None]:
        """The most FLOP a µs of chips as inventories describe them."""
        rates: dict[tuple[int, int, str], int | None] = {}
        keys = sorted({(log_id, seq) for log_id, seq, _ in wanted})
        for row in rows_of(connection, inventory, ["log_id = ?", "seq = ?"], keys):
            chips: list[Chip] = parse(row.chips, list[Chip])
            for chip in chips:
                rates[row.log_id, row.seq, chip.uuid] = gap_rate(chip, self._table)
        return rates

    def _number(self, connection: Connection, node: str) -> None:
        """Number a node's chips with what is stored by now; without new numbers, which may never be stored."""
        owed = self._nodes[node]
        known = self._sources.numbers(connection, {chip for one in owed for chip in one.chips})
        for one in owed:
            if not one.known and all(chip in known for chip in one.chips):
                one.stretch = one.stretch._replace(chips=numbers.of(known[chip] for chip in one.chips))
                one.known = True
        if all(one.known for one in owed):
            self._unknown.discard(node)
