"""What is missing after the ends of logs, kept in the process: it grows by itself and is stored nowhere.

The verifier's log says which logs moved since it was last asked for; only their nodes are read again.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Final

from sqlalchemy import Connection, select

from keyturn_protocol.canonical import parse
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.flop import gap_rate
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.totals import missing_after
from keyturn_protocol.usage import Gap
from keyturn_verifier import people, queries
from keyturn_verifier.db.tables import inventory, log
from keyturn_verifier.rollup import feed, numbers
from keyturn_verifier.rollup.delta import ChipNumbers
from keyturn_verifier.rollup.keyed import rows_of
from keyturn_verifier.rollup.sources import Sources
from keyturn_verifier.rollup.stretch import Stretch

_FAR_US: Final = 2**62
"""After all times that an entry can have: a stretch up to here goes on."""
_NODES: Final = 500


_Unknown = tuple[Stretch, tuple[str, ...]]
"""A stretch whose chips have no numbers yet, and their names."""


class Silence:
    """Belongs to one reader at a time."""

    def __init__(self, sources: Sources, table: ChipTable) -> None:
        self._sources = sources
        self._table = table
        self._size = self._links = 0
        self._known: dict[str, list[Stretch]] = {}
        self._unknown: dict[str, list[_Unknown]] = {}
        """By node; a node is in one of the two."""

    def stretches(self, connection: Connection, named: ChipNumbers) -> list[Stretch]:
        """Everything that is missing, as of a snapshot: up to when a stretch names, or up to now."""
        size = feed.size(connection)
        if size < self._size:
            # A snapshot older than what is kept, or another database in the place of the old one.
            self._size, self._links, self._known, self._unknown = 0, 0, {}, {}
        known = people.links(connection)
        if self._size == 0:
            nodes = set(connection.execute(select(log.c.node_id).distinct()).scalars())
        else:
            nodes = {parse_origin(origin).node_id for origin in feed.origins(connection, self._size, size)}
        if len(known.by_old) != self._links or not nodes.isdisjoint((*known.by_old, *known.by_new)):
            # What a replaced node owes ends where the new one names its chips.
            nodes |= known.by_old.keys()
        self._read(connection, sorted(nodes))
        self._size, self._links = size, len(known.by_old)
        stored = self._sources.numbers(
            connection, {chip for owed in self._unknown.values() for _, chips in owed for chip in chips}
        )
        for node, owed in list(self._unknown.items()):
            if all(chip in stored for _, chips in owed for chip in chips):
                self._known[node] = [_numbered(one, chips, stored) for one, chips in owed]
                del self._unknown[node]
        found = list(chain.from_iterable(self._known.values()))
        # New numbers are of this snapshot only: they may never be stored.
        left = [one for owed in self._unknown.values() for one in owed]
        of = named.of({chip for _, chips in left for chip in chips})
        return found + [_numbered(one, chips, of) for one, chips in left]

    def _read(self, connection: Connection, nodes: list[str]) -> None:
        """Read some nodes again."""
        for first in range(0, len(nodes), _NODES):
            part = nodes[first : first + _NODES]
            gaps = [gap for end in queries.ends(connection, part) for gap in missing_after(end, _FAR_US)]
            ids = self._sources.ids(connection, {gap.log for gap in gaps})
            facts = self._sources.logs(connection, ids.values())
            rates = self._rates(connection, {(ids[gap.log], gap.inventory_seq, gap.chip) for gap in gaps})
            for node in part:
                self._known.pop(node, None)
                self._unknown[node] = []
            together: dict[tuple[str, int, int], list[Gap]] = {}
            for gap in gaps:
                together.setdefault((gap.log, gap.from_us, gap.to_us), []).append(gap)
            for (origin, from_us, to_us), same in together.items():
                of = facts[ids[origin]]
                each = [rates[of.id, gap.inventory_seq, gap.chip] for gap in same]
                bounds = [rate for rate in each if rate is not None]
                stretch = Stretch(
                    log_id=of.id,
                    from_us=from_us,
                    to_us=None if to_us == _FAR_US else to_us,
                    missing=len(same),
                    rate=sum(bounds),
                    unbounded=len(same) - len(bounds),
                    chips={},
                    silent=True,
                    place=of.place,
                )
                self._unknown[of.node_id].append((stretch, tuple(gap.chip for gap in same)))

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


def _numbered(one: Stretch, chips: Iterable[str], of: Mapping[str, int]) -> Stretch:
    return one._replace(chips=numbers.of(of[chip] for chip in chips))
