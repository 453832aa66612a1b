"""From rows and gaps to what each workload used, with intervals. Used by verifier and auditor alike."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from msgspec import structs

from keyturn_protocol.api import FlopInterval, WorkloadTotal
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.entries import Entry, Inventory, Retired
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_log import Source
from keyturn_protocol.entry_usage import ShareClass
from keyturn_protocol.entry_workloads import WorkloadStartedBody
from keyturn_protocol.findings import CLOCK_AHEAD_US, Finding, FindingCode, finding
from keyturn_protocol.flop import Estimate, Interval, estimate, estimate_gap
from keyturn_protocol.ids import GAP, UNATTRIBUTED, Origin
from keyturn_protocol.segment import ChainState
from keyturn_protocol.usage import (
    HOUR_S,
    SHARED,
    Covered,
    FoldState,
    Gap,
    UsageRow,
    later,
    owed,
    silence,
    silent,
)

Chips = Mapping[tuple[str, int, str], Chip]
"""(log, inventory_seq, uuid) → the chip as that inventory entry describes it."""
Started = Mapping[tuple[str, str], Sequence[WorkloadStartedBody]]
"""(log, workload) → what the log says about it, in order."""

K = TypeVar("K", bound=Hashable)

_NOTHING = Interval(0, 0, 0)
_POOLS = (UNATTRIBUTED, GAP)


HOST: Final = ""
"""Stands for every chip of a host in :data:`Listed`."""


class Moment(NamedTuple):
    """When an entry was written, on the clocks of its host."""

    boot_id: str
    mono_us: int
    time_us: int


Listed = Mapping[str, Moment]
"""Chip, or :data:`HOST` → the entry of a log from which on an earlier log of the node owes its time no more."""


def listed_in(entries: Iterable[Entry]) -> dict[str, Moment]:
    """The first entry that lists each chip, or retires it by name; :data:`HOST` if the whole host is retired."""
    found: dict[str, Moment] = {}
    for entry in entries:
        match entry:
            case Inventory(body=inventory):
                chips = [chip.uuid for chip in inventory.chips]
            case Retired(body=retired):
                chips = [HOST] if retired.chips is None else retired.chips
            case _:
                continue
        for chip in chips:
            found.setdefault(chip, Moment(entry.boot_id, entry.mono_us, entry.time_us))
    return found


def listed_from(source: Source | None, own: Listed, later: Listed) -> Listed:
    """What a node's log and the ones after it list, for the log before it: the nearest log counts.

    A replay runs on a clock of its own and may list anything: it takes over nothing.
    """
    if source == "replay":
        return later
    return own if HOST in own else {**later, **own}


class Takeover(NamedTuple):
    """Where a node that replaces another names one of its chips."""

    moment: Moment
    not_before_us: int
    """The first receipt of that node: whatever its clock says, it named nothing before."""

    @property
    def us(self) -> int:
        """From when on that node owes the chip's time, UTC. A boot id that both name is the word of the new one only,
        so that CLOCK_BOOTTIME has no part in it: what is owed by both is counted twice, and nothing by neither.
        """
        return max(self.not_before_us, self.moment.time_us)


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The newest known state of one log, for what is missing after it."""

    origin: Origin
    chain: ChainState
    fold: FoldState
    receipt_s: int | None
    """When the verifier received the newest entry, by its own clock."""
    listed: Listed
    """What later incarnations of the node list."""
    replaced: Mapping[str, Takeover] = field(default_factory=dict)
    """What the nodes that replace this one list, by chip: see :mod:`keyturn_protocol.links`."""


def missing_after(end: LogEnd, until_us: int) -> list[Gap]:
    """What is missing between a log's last usage entry and ``until_us``: silence widens bounds upwards.

    A chip is silent up to the first entry by which a later incarnation lists or retires it: from there on that one
    owes its time; or else up to the first by which a node does that replaces this one. A chip that no later log names
    stays silent. A replayed log runs on a clock of its own, so that nothing is owed after its last entry.
    """
    if end.chain.source == "replay":
        return silence(end.origin, end.fold, min(until_us, end.chain.time_us))
    gaps = []
    for chip in owed(end.fold):
        at = end.listed.get(chip.chip, end.listed.get(HOST))
        takeover = end.replaced.get(chip.chip)
        if ahead_us(end, chip.time_us):
            # Nothing was measured after it was received, whatever the host's clock says.
            chip = structs.replace(chip, time_us=_received_us(end))
        to_us = until_us
        if at is not None:
            to_us = min(until_us, _taken_over(end.chain, chip, at))
        elif takeover is not None:
            to_us = min(until_us, takeover.us)
        if chip.time_us < to_us:
            gaps.append(silent(end.origin, chip, to_us))
    return gaps


def _taken_over(chain: ChainState, chip: Covered, at: Moment) -> int:
    """When a later log took a chip over, as a UTC time after the chip's last."""
    same = (at.boot_id, chain.boots) == (chain.boot_id, chip.boots)
    return later(chip.time_us, at.mono_us - chip.mono_us if same else None, at.mono_us, at.time_us)


def _received_us(end: LogEnd) -> int:
    return 0 if end.receipt_s is None else (end.receipt_s + 1) * 1_000_000


def ahead_us(end: LogEnd, time_us: int) -> int:
    """By how much a time that a log claims is later than its receipt; 0 for what differing clocks explain."""
    if end.chain.source == "replay" or end.receipt_s is None:
        return 0
    ahead = time_us - _received_us(end)
    return ahead if ahead > CLOCK_AHEAD_US else 0


def clock_findings(ends: Iterable[LogEnd]) -> list[Finding]:
    """Logs that end in the future."""
    found = []
    for end in ends:
        if ahead := ahead_us(end, end.chain.time_us):
            detail = f"the newest entry claims to be {ahead} µs later than its receipt"
            seq, at = max(end.chain.size - 1, 0), end.chain.time_us
            found.append(finding(FindingCode.CLOCK_AHEAD, end.origin, detail, seq=seq, from_us=at, to_us=at))
    return found


@dataclass(slots=True)
class Sum:
    """What one group used."""

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
    sums = add_up(rows, gaps, chips, started, table, lambda row: row.workload, lambda _: [GAP])
    order = sorted(sums, key=lambda w: (w in _POOLS, w))
    return [_total(workload, sums[workload]) for workload in order]


def add_up(
    rows: Iterable[UsageRow],
    gaps: Iterable[Gap],
    chips: Chips,
    started: Started,
    table: ChipTable,
    group: Callable[[UsageRow], K],
    group_gap: Callable[[Gap], Iterable[K]],
    cut: Callable[[Gap, K], Gap] = lambda gap, _: gap,
) -> dict[K, Sum]:
    """Sums of any grouping.

    :param group: the group of a row.
    :param group_gap: the groups that a gap has a part in.
    :param cut: that part.
    """
    sums: dict[K, Sum] = {}
    for row in rows:
        bodies = started.get((row.log, row.workload), ())
        dtype = declared_dtype(bodies)
        one = estimate(row, chips[row.log, row.inventory_seq, row.chip], dtype, table)
        total = sums.setdefault(group(row), Sum())
        total.classes.update(body.class_ for body in bodies)
        total.dtypes.add(dtype)
        _add(total, row, one)
    for whole in gaps:
        for key in group_gap(whole):
            gap = cut(whole, key)
            total = sums.setdefault(key, Sum())
            total.logs.add(gap.log)
            total.chips.add(gap.chip)
            total.time_us += gap.to_us - gap.from_us
            total.gap_us += gap.to_us - gap.from_us
            total.energy_mj = None
            total.span(gap.from_us // 1_000_000, -(-gap.to_us // 1_000_000))
            lost = estimate_gap(gap, chips[gap.log, gap.inventory_seq, gap.chip], table)
            total.undeclared += lost
            total.declared += lost
    return sums


def _add(total: Sum, row: UsageRow, one: Estimate) -> None:
    total.logs.add(row.log)
    total.chips.add(row.chip)
    if row.basis & SHARED:
        total.classes.add("shared")
    total.time_us += row.time_us
    if row.workload == GAP:
        total.gap_us += row.time_us
    missing = row.energy_mj is None or total.energy_mj is None
    total.energy_mj = None if missing else (total.energy_mj or 0) + (row.energy_mj or 0)
    total.span(row.hour_s, row.hour_s + HOUR_S)
    total.undeclared += one.undeclared
    total.declared += one.declared or one.undeclared
    total.any_declared |= one.declared is not None


def _total(workload: str, total: Sum) -> WorkloadTotal:
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
