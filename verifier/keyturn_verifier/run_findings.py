"""What someone who stops a run, or lets it go on, should know: findings of the logs that hold its leases, from the
first of them on, with what is at stake.

Of findings in totals only gaps are here: the rest takes all usage rows of all hosts. ``/v1/findings`` has them.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from msgspec import structs
from sqlalchemy import Connection, or_, select

from keyturn_protocol.api_switch import RUN_FINDINGS
from keyturn_protocol.canonical import parse
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.findings import Finding, FindingCode, Severity, in_totals, rank
from keyturn_protocol.flop import gap_rate
from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.lease_accounts import Account
from keyturn_protocol.leases import SILENT_US
from keyturn_protocol.totals import missing_after
from keyturn_protocol.usage import Gap
from keyturn_verifier import chip_claims, queries
from keyturn_verifier.db.switch_tables import lease_issued
from keyturn_verifier.db.tables import finding, inventory, log, usage_gap
from keyturn_verifier.errors import stored

T = TypeVar("T")
_PART: Final = 500
"""Values in one IN."""
GAPS: Final = 10_000
"""Rows of gaps that are read, the newest of :data:`_PART` logs each: a host can write as many as it likes."""


def ends_us(accounts: Mapping[Origin, Account]) -> dict[Origin, int]:
    """Until when each log holds a lease of a run, or what it last said of one that it has no more."""
    return {origin: max(one.expires_us, one.heard_us, one.settled_us) for origin, one in accounts.items()}


@stored
def of_run(
    connection: Connection,
    run: str,
    ends: Mapping[Origin, int],
    said: Sequence[Finding],
    now_us: int,
    table: ChipTable,
) -> list[Finding]:
    """The gravest :data:`RUN_FINDINGS`, the most severe first.

    :param ends: as :func:`ends_us` gives them.
    :param said: what was wrong with what nodes said about leases of this run, whenever that was.
    """
    holders = _Holders(connection, run, ends, now_us)
    found = [*_stored(connection, holders), *_gaps(connection, holders, now_us, table)]
    found += [one for one in chip_claims.findings(connection) if holders.claimed(one)] if ends else []
    return heapq.nsmallest(RUN_FINDINGS, [*said, *found], key=rank)


class _Holders:
    """The logs that hold, or held, leases of a run; and when."""

    def __init__(self, connection: Connection, run: str, ends: Mapping[Origin, int], now_us: int) -> None:
        self._connection, self._run = connection, run
        self.names: dict[int, Origin] = {}
        for part in _parts(sorted(ends)):
            rows = connection.execute(select(log.c.id, log.c.origin).where(log.c.origin.in_(part)))
            self.names |= {row.id: Origin(row.origin) for row in rows}
        self._ids = {origin: at for at, origin in self.names.items()}
        self._to_us = {at: min(now_us, ends[origin]) for at, origin in self.names.items()}
        self._from_us: dict[int, int] = {}

    def span(self, origin: str) -> tuple[int, int]:
        """UTC µs from its first lease on. A log of which nothing is found is never asked for."""
        at = self._ids[Origin(origin)]
        if at not in self._from_us:
            first = select(lease_issued.c.time_us).where(lease_issued.c.log_id == at, lease_issued.c.run == self._run)
            found = self._connection.execute(first.order_by(lease_issued.c.seq).limit(1)).scalar_one_or_none()
            # The ends can be of leases that this transaction doesn't see yet: nothing that it sees is of their time.
            self._from_us[at] = self._to_us[at] + 1 if found is None else found
        return self._from_us[at], self._to_us[at]

    def claimed(self, one: Finding) -> bool:
        """Whether a chip of theirs is claimed, by them or from them: the finding is about who came later."""
        words = {word.strip(",") for word in one.detail.split()}
        theirs = [origin for origin in self._ids if parse_origin(origin).node_id in words]
        return any(self.touch(one, origin) for origin in (one.origin, *theirs))

    def touch(self, one: Finding, origin: str | None = None) -> bool:
        """Whether it is of one of these logs, and of the log's time; what has no time counts.

        :param origin: of the log; the finding's own by default.
        """
        log = Origin(one.origin if origin is None else origin)
        if log not in self._ids:
            return False
        from_us, to_us = self.span(log)
        return (one.to_us is None or one.to_us >= from_us) and (one.from_us is None or one.from_us <= to_us)

    def cut(self, gaps: Iterable[Gap]) -> Iterator[Gap]:
        """What of gaps is of their time."""
        for gap in gaps:
            from_us, to_us = self.span(gap.log)
            if max(gap.from_us, from_us) < min(gap.to_us, to_us):
                yield structs.replace(gap, from_us=max(gap.from_us, from_us), to_us=min(gap.to_us, to_us))


def _stored(connection: Connection, holders: _Holders) -> Iterator[Finding]:
    for part in _parts(sorted(holders.names)):
        for row in connection.execute(select(finding).where(finding.c.log_id.in_(part))):
            one = Finding(
                code=FindingCode(row.code),
                severity=Severity(row.severity),
                origin=holders.names[row.log_id],
                seq=row.seq,
                from_us=row.from_us,
                to_us=row.to_us,
                detail=row.detail,
            )
            if holders.touch(one):
                yield one


def _gaps(connection: Connection, holders: _Holders, now_us: int, table: ChipTable) -> Iterator[Finding]:
    """Gaps inside of logs and after their ends, each with what its chips can have done meanwhile."""
    gaps: list[Gap] = []
    for part in _parts(sorted(holders.names)):
        rows = connection.execute(
            select(usage_gap).where(usage_gap.c.log_id.in_(part)).order_by(usage_gap.c.id.desc()).limit(GAPS)
        )
        gaps += holders.cut(queries.gap_of(row, holders.names[row.log_id]) for row in rows)
        # A host that is heard of owes no more than what it hasn't sent yet.
        quiet = or_(log.c.receipt_s.is_(None), log.c.receipt_s * 1_000_000 < now_us - SILENT_US)
        silent = connection.execute(select(log.c.origin).where(log.c.id.in_(part), quiet)).scalars().all()
        nodes = sorted({parse_origin(Origin(origin)).node_id for origin in silent})
        for end in queries.ends(connection, nodes) if nodes else ():
            if end.origin in silent:
                gaps += holders.cut(missing_after(end, now_us))
    chips = _chips(connection, holders, {gap.log for gap in gaps})
    together: dict[tuple[str, int, int, str | None], list[Gap]] = {}
    for gap in gaps:
        together.setdefault((gap.log, gap.from_us, gap.to_us, gap.cause), []).append(gap)
    for same in together.values():
        (one,) = in_totals((), same, {}, lambda _: True)
        yield structs.replace(one, detail=f"{one.detail}, {_stake(same, chips, table)} at stake")


def _stake(gaps: Iterable[Gap], chips: Mapping[tuple[str, int, str], Chip], table: ChipTable) -> str:
    """What chips can have done in a gap."""
    flop = 0
    for gap in gaps:
        chip = chips.get((gap.log, gap.inventory_seq, gap.chip))
        rate = None if chip is None else gap_rate(chip, table)
        if rate is None:
            return "unbounded FLOP"
        flop += rate * (gap.to_us - gap.from_us)
    step = 10 ** max(0, len(str(flop)) - 3)
    return f"at most {-(-flop // step) * step:.2e} FLOP".replace("e+", "e")


def _chips(connection: Connection, holders: _Holders, logs: set[str]) -> dict[tuple[str, int, str], Chip]:
    """The chips of some logs, as each inventory describes them."""
    found: dict[tuple[str, int, str], Chip] = {}
    for part in _parts([at for at, origin in holders.names.items() if origin in logs]):
        for row in connection.execute(select(inventory).where(inventory.c.log_id.in_(part))):
            listed: list[Chip] = parse(row.chips, list[Chip])
            found |= {(holders.names[row.log_id], row.seq, chip.uuid): chip for chip in listed}
    return found


def _parts(values: Sequence[T]) -> Iterator[Sequence[Any]]:
    for at in range(0, len(values), _PART):
        yield values[at : at + _PART]
