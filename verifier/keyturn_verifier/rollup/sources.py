"""What estimates are made from: rows, chips and declarations, of the logs that are asked for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec import structs
from sqlalchemy import Connection, Row, func, select

from keyturn_protocol.canonical import encode_record, parse
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_workloads import WorkloadStartedBody
from keyturn_protocol.ids import Origin
from keyturn_protocol.usage import Gap, UsageRow
from keyturn_verifier import queries
from keyturn_verifier.db.rollup_tables import rollup_chip
from keyturn_verifier.db.tables import inventory, log, usage_gap, usage_hour, workload_started
from keyturn_verifier.rollup.keyed import rows_of

_INVENTORIES: Final = 100_000
"""Inventories that are remembered; most are the same as the one before them, and take no room of their own."""


class LogFacts(NamedTuple):
    """What never changes of a log."""

    id: int
    origin: Origin
    node_id: str
    organisation: str
    site: str

    @property
    def place(self) -> tuple[str, str]:
        """Organisation and site."""
        return self.organisation, self.site


Inventories = Mapping[int, Mapping[str, Chip]]
"""Entry → uuid → the chip as described there."""


class Sources:
    """Reads, and remembers what can't change. Threads may share it: what two of them fetch is the same."""

    def __init__(self) -> None:
        self._logs: dict[int, LogFacts] = {}
        self._ids: dict[str, int] = {}
        self._inventories: dict[int, dict[int, Mapping[str, Chip]]] = {}
        self._remembered = 0
        self._alike: dict[bytes, Chip] = {}
        self._numbers: dict[str, int] = {}

    def ids(self, connection: Connection, origins: Iterable[str]) -> dict[str, int]:
        """Logs' ids by their origins."""
        wanted = set(origins)
        missing = sorted(wanted - self._ids.keys())
        self._remember(rows_of(connection, log, ["origin = ?"], [(origin,) for origin in missing]))
        return {origin: self._ids[origin] for origin in wanted}

    def logs(self, connection: Connection, ids: Iterable[int]) -> dict[int, LogFacts]:
        """Logs by their ids."""
        wanted = set(ids)
        self._remember(rows_of(connection, log, ["id = ?"], [(i,) for i in sorted(wanted - self._logs.keys())]))
        return {i: self._logs[i] for i in wanted}

    def _remember(self, rows: Iterable[Row[Any]]) -> None:
        for row in rows:
            self._logs[row.id] = LogFacts(row.id, Origin(row.origin), row.node_id, row.organisation, row.site)
            self._ids[row.origin] = row.id

    def inventories(self, connection: Connection, ids: Sequence[int]) -> dict[int, Inventories]:
        """Every inventory of some logs."""
        if self._remembered > _INVENTORIES:
            self._inventories, self._remembered = {}, 0
        found = {i: self._inventories.get(i, {}) for i in ids}
        ends = {i: max(known, default=-1) for i, known in found.items()}
        for row in rows_of(connection, inventory, ["log_id = ?", "seq > ?"], sorted(ends.items())):
            self._remembered += 1
            of = dict(found[row.log_id])
            listed: list[Chip] = parse(row.chips, list[Chip])
            chips = {chip.uuid: self._described(chip) for chip in listed}
            of[row.seq] = next((same for same in of.values() if same == chips), chips)
            self._inventories[row.log_id] = found[row.log_id] = of
        return found  # type: ignore[return-value]

    def _described(self, chip: Chip) -> Chip:
        """A chip without what tells it from others of its kind: one object for all of them."""
        plain = structs.replace(chip, uuid="", parent=None, pci_bus_id=None)
        return self._alike.setdefault(encode_record(plain), plain)

    def numbers(self, connection: Connection, chips: Iterable[str]) -> dict[str, int]:
        """The stored numbers of those chips that have one."""
        wanted = set(chips)
        missing = sorted(wanted - self._numbers.keys())
        for row in rows_of(connection, rollup_chip, ["chip = ?"], [(chip,) for chip in missing]):
            self._numbers[row.chip] = row.number
        known = self._numbers
        return {chip: known[chip] for chip in wanted if chip in known}


def rows_at(
    connection: Connection, facts: Mapping[int, LogFacts], keys: Sequence[tuple[int, str, int]]
) -> Iterator[tuple[int, UsageRow]]:
    """Rows by (log, chip, hour), each with its log's id."""
    for row in rows_of(connection, usage_hour, ["log_id = ?", "chip = ?", "hour_s = ?"], keys):
        yield row.log_id, queries.usage_row(row, facts[row.log_id].origin)


def rows_between(
    connection: Connection, facts: Mapping[int, LogFacts], keys: Sequence[tuple[int, str]], from_s: int, to_s: int
) -> Iterator[tuple[int, UsageRow]]:
    """Rows by (log, chip) of some hours, each with its log's id."""
    on = ["log_id = ?", "chip = ?", "hour_s >= :from_s", "hour_s < :to_s"]
    for row in rows_of(connection, usage_hour, on, keys, from_s=from_s, to_s=to_s):
        yield row.log_id, queries.usage_row(row, facts[row.log_id].origin)


def rows_of_log(connection: Connection, facts: LogFacts) -> Iterator[UsageRow]:
    """All rows of one log."""
    query = select(usage_hour).where(usage_hour.c.log_id == facts.id).execution_options(yield_per=1_000)
    return (queries.usage_row(row, facts.origin) for row in connection.execute(query))


def started_of(
    connection: Connection, pairs: Iterable[tuple[int, str]]
) -> dict[tuple[int, str], list[WorkloadStartedBody]]:
    """What logs say about workloads, in order; of those (log, workload) that say anything."""
    rows = rows_of(connection, workload_started, ["log_id = ?", "workload = ?"], sorted(set(pairs)))
    found: dict[tuple[int, str], list[WorkloadStartedBody]] = {}
    for row in sorted(rows, key=lambda row: row.seq):
        found.setdefault((row.log_id, row.workload), []).append(parse(row.body, WorkloadStartedBody))
    return found


def gaps_after(
    connection: Connection, facts: Mapping[int, LogFacts], after: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, Gap]]:
    """Gaps inside of logs, given as (log, id after which), each with its log and its id."""
    for row in rows_of(connection, usage_gap, ["log_id = ?", "id > ?"], after):
        yield row.log_id, row.id, queries.gap_of(row, facts[row.log_id].origin)


def next_number(connection: Connection) -> int:
    """The first number that no chip has."""
    last = connection.execute(select(func.max(rollup_chip.c.number))).scalar()
    return 0 if last is None else int(last) + 1
