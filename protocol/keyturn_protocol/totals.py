"""From rows and gaps to what each workload used, with intervals. Used by verifier and auditor alike."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from keyturn_protocol.api import FlopInterval, WorkloadTotal
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.entries import Chip, ShareClass, Source, WorkloadStartedBody
from keyturn_protocol.flop import Interval, estimate, estimate_gap
from keyturn_protocol.ids import GAP, UNATTRIBUTED, Origin
from keyturn_protocol.usage import HOUR_S, SHARED, FoldState, Gap, UsageRow, silence

Chips = Mapping[tuple[str, int, str], Chip]
"""(log, inventory_seq, uuid) → the chip as that inventory entry describes it."""
Started = Mapping[tuple[str, str], Sequence[WorkloadStartedBody]]
"""(log, workload) → what the log says about it, in order."""

_NOTHING = Interval(0, 0, 0)
_POOLS = (UNATTRIBUTED, GAP)


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The newest known state of one log, for what is missing after it."""

    origin: Origin
    source: Source | None
    last_entry_us: int
    fold: FoldState
    next_listed_us: int | None
    """When the node's next incarnation first listed its chips; None until it has."""


def missing_after(end: LogEnd, until_us: int) -> list[Gap]:
    """What is missing between a log's last usage entry and ``until_us``: silence widens bounds upwards.

    A log that has a successor is silent up to its successor's first inventory, from which on that one owes the
    time. A replayed log runs on a clock of its own, so that nothing is owed after its last entry.
    """
    if end.source == "replay":
        until_us = min(until_us, end.last_entry_us)
    if end.next_listed_us is not None:
        until_us = min(until_us, end.next_listed_us)
    return silence(end.origin, end.fold, until_us)


@dataclass(slots=True)
class _Sum:
    logs: set[str] = field(default_factory=set)
    chips: set[str] = field(default_factory=set)
    classes: set[ShareClass] = field(default_factory=set)
    dtypes: set[str | None] = field(default_factory=set)
    time_us: int = 0
    gap_us: int = 0
    energy_mj: int | None = 0
    from_s: int | None = None
    to_s: int | None = None
    undeclared: Interval = _NOTHING
    declared: Interval = _NOTHING
    any_declared: bool = False

    def span(self, from_s: int, to_s: int) -> None:
        self.from_s = from_s if self.from_s is None else min(self.from_s, from_s)
        self.to_s = to_s if self.to_s is None else max(self.to_s, to_s)


def declared_dtype(bodies: Sequence[WorkloadStartedBody]) -> str | None:
    """What a log declares for a workload: one data type, or nothing where it contradicts itself."""
    dtypes = {body.declared_dtype for body in bodies}
    return dtypes.pop() if len(dtypes) == 1 else None


def summarise(
    rows: Iterable[UsageRow], gaps: Iterable[Gap], chips: Chips, started: Started, table: ChipTable
) -> list[WorkloadTotal]:
    """Totals by workload, the pools *unattributed* and *gap* last.

    :param rows: of any logs and hours; each names a chip that ``chips`` describes.
    """
    sums: dict[str, _Sum] = {}
    for row in rows:
        total = sums.setdefault(row.workload, _Sum())
        bodies = started.get((row.log, row.workload), ())
        dtype = declared_dtype(bodies)
        one = estimate(row, chips[row.log, row.inventory_seq, row.chip], dtype, table)
        total.logs.add(row.log)
        total.chips.add(row.chip)
        total.classes.update(body.class_ for body in bodies)
        if row.basis & SHARED:
            total.classes.add("shared")
        total.dtypes.add(dtype)
        total.time_us += row.time_us
        if row.workload == GAP:
            total.gap_us += row.time_us
        missing = row.energy_mj is None or total.energy_mj is None
        total.energy_mj = None if missing else (total.energy_mj or 0) + (row.energy_mj or 0)
        total.span(row.hour_s, row.hour_s + HOUR_S)
        total.undeclared += one.undeclared
        total.declared += one.declared or one.undeclared
        total.any_declared |= one.declared is not None
    for gap in gaps:
        total = sums.setdefault(GAP, _Sum())
        total.logs.add(gap.log)
        total.chips.add(gap.chip)
        total.time_us += gap.to_us - gap.from_us
        total.gap_us += gap.to_us - gap.from_us
        total.energy_mj = None
        total.span(gap.from_us // 1_000_000, -(-gap.to_us // 1_000_000))
        lost = estimate_gap(gap, chips[gap.log, gap.inventory_seq, gap.chip], table)
        total.undeclared += lost
        total.declared += lost
    order = sorted(sums, key=lambda w: (w in _POOLS, w))
    return [_total(workload, sums[workload]) for workload in order]


def _total(workload: str, total: _Sum) -> WorkloadTotal:
    (class_,) = total.classes if len(total.classes) == 1 else ("shared",) if total.classes else (None,)
    return WorkloadTotal(
        workload=workload,
        class_=class_,  # type: ignore[arg-type]
        declared_dtype=next(iter(total.dtypes)) if len(total.dtypes) == 1 else None,
        logs=len(total.logs),
        chips=len(total.chips),
        time_us=total.time_us,
        gap_us=total.gap_us,
        energy_mj=None if total.energy_mj is None else str(total.energy_mj),
        from_s=total.from_s,
        to_s=total.to_s,
        undeclared=to_text(total.undeclared),
        declared=to_text(total.declared) if total.any_declared else None,
    )


def to_text(interval: Interval) -> FlopInterval:
    """An interval as it goes over the wire, in decimal digits."""
    return FlopInterval(
        low=str(interval.low),
        best=str(interval.best),
        high=None if interval.high is None else str(interval.high),
    )
