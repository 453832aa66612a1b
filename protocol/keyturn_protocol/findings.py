"""What an auditor should look at: stable codes with a severity, and the pure rules that raise them.

A finding says where (log, entry, time) and what; it never says who is to blame. Rules see verified entries or
totals only, so that verifier and auditor find the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from keyturn_protocol.canonical import Record, UInt
from keyturn_protocol.entries import ClockStep, Degraded, Entry, Genesis, Paused, Recovered
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_log import GenesisBody
from keyturn_protocol.entry_usage import FIELDS
from keyturn_protocol.ids import GAP, UNATTRIBUTED
from keyturn_protocol.usage import Gap, UsageRow

CLOCK_STEP_US: Final = 1_000_000
"""A smaller step is the ordinary work of time synchronisation."""
CLOCK_AHEAD_US: Final = 60_000_000
"""By less than this an entry may be later than its receipt: two clocks are never the same."""
UNATTRIBUTED_BUSY_US: Final = 600_000_000
"""Ten busy minutes of an hour on one chip without a visible workload."""


class Severity(StrEnum):
    """``info`` needs nobody; ``critical`` means that evidence contradicts evidence."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class FindingCode(StrEnum):
    """What was found. Codes are stable."""

    GAP = "gap"
    """Time of chips that no usage entry covers, though the log goes on after it."""
    UNMEASURED = "unmeasured"
    """A chip that its agent could not read for part of the time."""
    UNATTRIBUTED = "unattributed"
    """A chip that was busy for long while no workload was visible."""
    UNKNOWN_CHIP = "unknown_chip"
    """Not in the chip table: metered in time and energy, FLOP unbounded."""
    IMPLAUSIBLE = "implausible"
    """Counters that contradict each other or the chip's limits."""
    CLOCK_STEP = "clock_step"
    """The wall clock was set while the agent ran."""
    CLOCK_BACK = "clock_back"
    """The wall clock is earlier after a reboot, or in the node's next log: the time in between can't be known."""
    CLOCK_AHEAD = "clock_ahead"
    """A log ends later than it was received: silence is counted from the receipt."""
    RECOVERED = "recovered"
    """The agent dropped a torn tail after a crash."""
    DEGRADED = "degraded"
    """The agent measures less than before, and says why."""
    PAUSED = "paused"
    """The operator paused the agent, and says why."""
    NEW_INCARNATION = "new_incarnation"
    """The node left its log for a new one, and says why."""
    REPLACED = "replaced"
    """An operator says that another node is what this host became, and why."""
    REPLACED_ACTIVE = "replaced_active"
    """A node that is said to be replaced went on reporting."""
    INCARNATION_SKIPPED = "incarnation_skipped"
    """Incarnations in between were never seen."""
    LOST_HEAD = "lost_head"
    """A new incarnation forgets entries of the old one that were receipted, or knows other ones."""
    FORK = "fork"
    """Two signed heads of one size: the node, or a copy of it, rewrote its log."""
    INVALID_ENTRIES = "invalid_entries"
    """Signed entries that break the format or the chain."""
    UNLOGGED_RECEIPT = "unlogged_receipt"
    """A receipt whose checkpoint is not in the verifier's log."""
    VERIFIER_ROLLBACK = "verifier_rollback"
    """The verifier lost what it had signed: a node showed a receipt, or quotes a checkpoint of another history."""
    CHIP_CLAIMED = "chip_claimed"
    """Two nodes listed one chip at once."""
    LEASE_UNKNOWN = "lease_unknown"
    """A node runs under a lease that the verifier's log doesn't have, or that isn't its own: host or verifier lies."""
    LEASE_ROLLBACK = "lease_rollback"
    """A node says that it has charged less than it said before: its state is from a backup."""
    LEASE_UNDERCHARGED = "lease_undercharged"
    """A node says that it has charged less than its own log comes to."""
    LEASE_OVERRUN = "lease_overrun"
    """A node charged more than its lease allowed."""
    LEASE_SURVIVORS = "lease_survivors"
    """Work went on on leased chips after the last word on their lease."""
    UNLEASED = "unleased"
    """The agent of a gated host saw work on a chip that nobody leased."""


SEVERITY: Final[Mapping[FindingCode, Severity]] = {
    FindingCode.GAP: Severity.MEDIUM,
    FindingCode.UNMEASURED: Severity.MEDIUM,
    FindingCode.UNATTRIBUTED: Severity.HIGH,
    FindingCode.UNKNOWN_CHIP: Severity.HIGH,
    FindingCode.IMPLAUSIBLE: Severity.HIGH,
    FindingCode.CLOCK_STEP: Severity.LOW,
    FindingCode.CLOCK_BACK: Severity.HIGH,
    FindingCode.CLOCK_AHEAD: Severity.HIGH,
    FindingCode.RECOVERED: Severity.LOW,
    FindingCode.DEGRADED: Severity.LOW,
    FindingCode.PAUSED: Severity.INFO,
    FindingCode.NEW_INCARNATION: Severity.MEDIUM,
    FindingCode.REPLACED: Severity.MEDIUM,
    FindingCode.REPLACED_ACTIVE: Severity.HIGH,
    FindingCode.INCARNATION_SKIPPED: Severity.HIGH,
    FindingCode.LOST_HEAD: Severity.HIGH,
    FindingCode.FORK: Severity.CRITICAL,
    FindingCode.INVALID_ENTRIES: Severity.CRITICAL,
    FindingCode.UNLOGGED_RECEIPT: Severity.HIGH,
    FindingCode.VERIFIER_ROLLBACK: Severity.HIGH,
    FindingCode.CHIP_CLAIMED: Severity.HIGH,
    FindingCode.LEASE_UNKNOWN: Severity.HIGH,
    FindingCode.LEASE_ROLLBACK: Severity.HIGH,
    FindingCode.LEASE_UNDERCHARGED: Severity.HIGH,
    FindingCode.LEASE_OVERRUN: Severity.HIGH,
    FindingCode.LEASE_SURVIVORS: Severity.HIGH,
    FindingCode.UNLEASED: Severity.HIGH,
}
UNLEASED_CAUSES: Final = frozenset({"would_refuse", "survivors"})
"""Causes of ``degraded`` that are no matter of measuring."""

_RANK: Final = {severity: rank for rank, severity in enumerate(reversed(Severity))}


class Finding(Record, frozen=True, kw_only=True):
    """One finding. ``seq`` is the entry it rests on; times are UTC µs; null where it has none."""

    code: FindingCode
    severity: Severity
    origin: str
    seq: UInt | None
    from_us: UInt | None
    to_us: UInt | None
    detail: str


def finding(
    code: FindingCode,
    origin: str,
    detail: str,
    *,
    seq: int | None = None,
    from_us: int | None = None,
    to_us: int | None = None,
) -> Finding:
    """A finding with its code's severity."""
    return Finding(
        code=code, severity=SEVERITY[code], origin=origin, seq=seq, from_us=from_us, to_us=to_us, detail=detail
    )


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Sorted for people and for comparison: severity first, then log, entry and time."""
    return sorted(findings, key=rank)


def rank(one: Finding) -> tuple[int, str, str, int, int, int, str]:
    """By what :func:`ranked` sorts."""
    return (
        *(_RANK[one.severity], one.code, one.origin),
        *(one.seq or 0, one.from_us or 0, one.to_us or 0, one.detail),
    )


def in_entries(origin: str, before: tuple[int, int] | None, entries: Sequence[Entry]) -> list[Finding]:
    """What single entries of a log say by themselves.

    :param before: ``(boots, time_us)`` of the entry before the first one, None at the log's start.
    """
    found: list[Finding] = []
    last = before
    for entry in entries:
        # Before a log's second entry nothing was measured: a replay starts in any year that it is told to.
        if last is not None and entry.seq > 1 and entry.boots != last[0] and entry.time_us < last[1]:
            detail = f"the wall clock was {last[1] - entry.time_us} µs later before this boot"
            found.append(
                finding(FindingCode.CLOCK_BACK, origin, detail, seq=entry.seq, from_us=entry.time_us, to_us=last[1])
            )
        last = (entry.boots, entry.time_us)
        match entry:
            case ClockStep(body=step) if abs(step.step_us) >= CLOCK_STEP_US:
                code, detail = FindingCode.CLOCK_STEP, f"wall clock moved by {step.step_us} µs"
            case Recovered(body=recovered):
                code, detail = FindingCode.RECOVERED, f"dropped {recovered.bytes} bytes, SHA-256 {recovered.sha256}"
            case Degraded(body=degraded):
                unleased = degraded.cause in UNLEASED_CAUSES
                code, detail = FindingCode.UNLEASED if unleased else FindingCode.DEGRADED, degraded.cause
            case Paused(body=paused):
                code, detail = FindingCode.PAUSED, f"for at most {paused.for_us} µs: {paused.reason}"
            case Genesis(body=GenesisBody(previous=previous)) if previous is not None:
                code, detail = FindingCode.NEW_INCARNATION, f"{previous.reason}, after {previous.size} entries"
            case _:
                continue
        found.append(finding(code, origin, detail, seq=entry.seq, from_us=entry.time_us, to_us=entry.time_us))
    return found


class Before(NamedTuple):
    """The node's newest earlier log at the moment at which the next one was opened at the verifier."""

    incarnation: int
    size: int
    """Entries of it that were receipted then."""
    root: str | None = None
    """Of these, in hex; None if it isn't at hand."""
    time_us: int | None = None
    """Of the last of them, if it is at hand."""


def at_genesis(origin: str, genesis: Genesis, incarnation: int, known: Before | None) -> list[Finding]:
    """What a new incarnation leaves behind.

    :param known: the log before; None if there is none.
    """
    found: list[Finding] = []
    at: Callable[[FindingCode, str], Finding] = lambda code, detail: finding(  # noqa: E731
        code, origin, detail, seq=0, from_us=genesis.time_us, to_us=genesis.time_us
    )
    last, size, root, time_us = known or Before(0, 0)
    if incarnation != last + 1:
        found.append(at(FindingCode.INCARNATION_SKIPPED, f"incarnation {incarnation} follows {last}"))
    previous = genesis.body.previous
    if previous is None or not previous.origin.endswith(f"/{last}"):
        return found
    # Whoever wrote entries that this one doesn't know has a clock of its own, which says nothing about this one's.
    if previous.size < size:
        return [*found, at(FindingCode.LOST_HEAD, f"knows {previous.size} of {size} receipted entries")]
    if previous.size == size > 0 and root is not None and previous.root != root:
        return [*found, at(FindingCode.LOST_HEAD, f"knows other entries than the {size} that were receipted")]
    # A genesis alone measured nothing, and a replay starts in any year that it is told to.
    if time_us is not None and size > 1 and genesis.body.source != "replay":
        back_us = time_us - genesis.time_us
        if back_us >= CLOCK_STEP_US:
            detail = f"the wall clock was {back_us} µs later in the log before"
            code, until_us = FindingCode.CLOCK_BACK, time_us
            found.append(finding(code, origin, detail, seq=0, from_us=genesis.time_us, to_us=until_us))
    return found


def in_totals(
    rows: Iterable[UsageRow],
    gaps: Iterable[Gap],
    chips: Mapping[tuple[str, int, str], Chip],
    known: Callable[[Chip], bool],
) -> list[Finding]:
    """What totals show: gaps, unread chips, unattributed work, unknown chips, counters out of bounds.

    :param chips: ``(log, inventory_seq, uuid)`` → the chip as described there.
    :param known: whether the chip table has a row for a chip.
    """
    found: list[Finding] = []
    missing: dict[tuple[str, int, int, str | None], int] = {}
    for gap in gaps:
        key = (gap.log, gap.from_us, gap.to_us, gap.cause)
        missing[key] = missing.get(key, 0) + 1
    for (log, from_us, to_us, cause), count in missing.items():
        seconds = (to_us - from_us) / 1_000_000
        detail = f"{count} chip{'s' * (count > 1)} not measured for {seconds:.1f} s ({cause or 'not explained'})"
        found.append(finding(FindingCode.GAP, log, detail, from_us=from_us, to_us=to_us))
    unread: dict[tuple[str, str], tuple[int, int, int]] = {}
    for row in rows:
        start, end = row.hour_s * 1_000_000, (row.hour_s + 3600) * 1_000_000
        if row.workload == GAP:
            first, last, time_us = unread.get((row.log, row.chip), (start, end, 0))
            unread[row.log, row.chip] = (min(first, start), max(last, end), time_us + row.time_us)
        busy_us = row.busy_us or 0
        if row.workload == UNATTRIBUTED and busy_us >= UNATTRIBUTED_BUSY_US:
            detail = f"{row.chip} busy for {busy_us // 1_000_000} s without a visible workload"
            found.append(finding(FindingCode.UNATTRIBUTED, row.log, detail, from_us=start, to_us=end))
        chip = chips.get((row.log, row.inventory_seq, row.chip))
        if problem := _implausible(row, chip):
            detail = f"{row.chip}: {problem}"
            found.append(finding(FindingCode.IMPLAUSIBLE, row.log, detail, from_us=start, to_us=end))
    for (log, uuid), (first, last, time_us) in unread.items():
        detail = f"{uuid} could not be read for {time_us / 1_000_000:.1f} s"
        found.append(finding(FindingCode.UNMEASURED, log, detail, from_us=first, to_us=last))
    for (log, seq, uuid), chip in chips.items():
        if not known(chip):
            detail = f"{uuid}: no row in the chip table for {chip.name!r}"
            found.append(finding(FindingCode.UNKNOWN_CHIP, log, detail, seq=seq))
    return found


def _implausible(row: UsageRow, chip: Chip | None) -> str | None:
    """Why a row's counters can't all be true, allowing 2 % for sampling and one unit a sample for rounding."""

    def over(value: int | None, limit: int) -> bool:
        return value is not None and value > limit + limit // 50 + row.samples + 1

    for name in ("busy_us", "dram_busy_us", "throttled_us"):
        if over(getattr(row, name), row.time_us):
            return f"{name} exceeds the time"
    if chip is not None and chip.clock_max_mhz and over(row.elapsed_mcycles, row.time_us * chip.clock_max_mhz // 10**6):
        return "more SM cycles than the maximum clock allows"
    above = row.elapsed_mcycles
    for name in ("active_mcycles", "tensor_mcycles"):
        value: int | None = getattr(row, name)
        if above is not None and over(value, above):
            return f"{name} exceeds the cycles it is part of"
        above = above if value is None else value
    for name in FIELDS:
        if (
            name.endswith("_mcycles")
            and row.elapsed_mcycles is not None
            and over(getattr(row, name), row.elapsed_mcycles)
        ):
            return f"{name} exceeds the elapsed cycles"
    return None
