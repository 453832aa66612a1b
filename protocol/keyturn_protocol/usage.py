"""Usage entries folded into hourly rows and gaps, per log and in exact integers.

    Row key   log, chip, UTC hour, workload, inventory_seq, basis
    Row       time_us, samples, and the fields of a usage entry, summed (or the maximum)

*Basis* is the set of fields that were ``null``, as a bit mask in the order of
:data:`~keyturn_protocol.entries.FIELDS`; rows of different basis never merge, so that a sum never hides that a
part of it was not measured. Bit :data:`SHARED` marks a part of a shared chip, an attribution rather than a
measurement. ``inventory_seq`` is the entry that describes the chip.

The fold is exact: any partition of a log into segments and batches gives the same rows and gaps.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import sub
from typing import Final, NamedTuple

from keyturn_protocol.canonical import Record, UInt, encode_record
from keyturn_protocol.entries import Entry, Inventory, Paused, Retired, Shutdown, Usage
from keyturn_protocol.entries import Gap as GapEntry
from keyturn_protocol.entry_usage import FIELDS, SUM_FIELDS, Share
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import GAP, UNATTRIBUTED, Origin, WorkloadId
from keyturn_protocol.limits import CHIPS_OWED, MAX_INT, USAGE_SPAN_US
from keyturn_protocol.segment import EntryError
from keyturn_protocol.usage_runs import Column, Run

HOUR_S: Final = 3600
SHARED: Final = 1 << 30
ALL_NULL: Final = (1 << len(FIELDS)) - 1
_SUMS: Final = len(SUM_FIELDS)
_WHOLE: Final = 1_000_000


class RowKey(NamedTuple):
    """What a usage row is about. ``hour_s`` is the POSIX time at which its UTC hour starts."""

    log: Origin
    chip: str
    hour_s: int
    workload: WorkloadId
    inventory_seq: int
    basis: int


class UsageRow(Record, frozen=True, kw_only=True):
    """One row of ``usage_hour`` as totals hold it; a field in the basis is null."""

    log: str
    chip: str
    hour_s: UInt
    workload: str
    inventory_seq: UInt
    basis: UInt
    time_us: UInt
    samples: UInt
    energy_mj: UInt | None
    busy_us: UInt | None
    elapsed_mcycles: UInt | None
    active_mcycles: UInt | None
    tensor_mcycles: UInt | None
    hmma_mcycles: UInt | None
    imma_mcycles: UInt | None
    dmma_mcycles: UInt | None
    fp64_mcycles: UInt | None
    fp32_mcycles: UInt | None
    fp16_mcycles: UInt | None
    dram_busy_us: UInt | None
    nvlink_tx_kib: UInt | None
    nvlink_rx_kib: UInt | None
    pcie_tx_kib: UInt | None
    pcie_rx_kib: UInt | None
    throttled_us: UInt | None
    memory_mib_max: UInt | None
    clock_mhz_max: UInt | None


class Gap(Record, frozen=True, kw_only=True):
    """Time of one chip that no usage entry covers, though the log goes on after it."""

    log: str
    chip: str
    from_us: UInt
    to_us: UInt
    inventory_seq: UInt
    cause: str | None
    """What the log says about it, the last word before measuring went on; null: nothing."""


Sums = list[int | None]
"""time_us, samples, then :data:`~keyturn_protocol.entries.FIELDS`."""
Rows = dict[RowKey, Sums]


def add_sums(rows: Rows, key: RowKey, values: Sequence[int | None]) -> None:
    """Add one row's values into ``rows``: sums add, maxima fold, null stays null.

    Sums stop at 2^53-1, so that no host can write a number that a database or a JSON reader can't hold;
    stopping is associative, so the order of additions still doesn't matter.
    """
    old = rows.get(key)
    if old is None:
        rows[key] = [v if v is None or v <= MAX_INT else MAX_INT for v in values]
        return
    for i, value in enumerate(values):
        have = old[i]
        if value is not None and have is not None:
            old[i] = min(have + value, MAX_INT) if i < _SUMS + 2 else max(have, value)


def merge(rows: Rows, more: Rows) -> None:
    """Add all of ``more`` into ``rows``."""
    for key, values in more.items():
        add_sums(rows, key, values)


def to_row(key: RowKey, values: Sequence[int | None]) -> UsageRow:
    """The row in its outside form."""
    names = (*RowKey._fields, "time_us", "samples", *FIELDS)
    return UsageRow(**dict(zip(names, (*key, *values), strict=True)))  # type: ignore[arg-type]


def totals_json(rows: Iterable[UsageRow], gaps: Iterable[Gap]) -> bytes:
    """``totals.json``: all rows and gaps, sorted, in canonical JSON; compared as bytes."""
    ordered = sorted(rows, key=lambda r: (r.log, r.chip, r.hour_s, r.workload, r.inventory_seq, r.basis))
    apart = sorted(gaps, key=lambda g: (g.log, g.chip, g.from_us, g.to_us, g.inventory_seq))
    return encode_record(Totals(v=1, gaps=apart, usage_hour=ordered))


class Totals(Record, frozen=True, kw_only=True):
    """The content of ``totals.json``."""

    v: UInt
    gaps: list[Gap]
    usage_hour: list[UsageRow]


class Covered(Record, frozen=True, kw_only=True):
    """How far one chip's time is accounted for, on both clocks, and the inventory that lists the chip."""

    chip: str
    boots: UInt
    mono_us: UInt
    time_us: UInt
    inventory_seq: UInt
    cause: str | None
    """What the log said about the chip since it was last measured."""


class FoldState(Record, frozen=True, kw_only=True):
    """What the fold of a log must remember between segments.

    ``present``: the chips of the last inventory, in its order. ``absent``: chips that left it without being
    retired, whose time is still missing. ``retired``: chips that were retired since the last inventory; one that
    an inventory lists again is owed again, so that a retirement can't silence a chip that stays.
    """

    inventory_seq: UInt
    present: list[Covered]
    absent: list[Covered]
    retired: list[str]


EMPTY: Final = FoldState(inventory_seq=0, present=[], absent=[], retired=[])


@dataclass(frozen=True, slots=True)
class Folded:
    """What a run of entries adds, and the state after them."""

    rows: Rows
    gaps: tuple[Gap, ...]
    state: FoldState


def fold(origin: Origin, state: FoldState, entries: Sequence[Entry]) -> Folded:
    """Fold verified entries of one log, in order.

    :param entries: have passed :func:`keyturn_protocol.segment.follow`, so columns fit the inventory.
    :raises EntryError: an inventory leaves more chips owed than one host may (:data:`CHIPS_OWED`).
    """
    folding = Folding(origin, state)
    folding.entries(entries)
    return folding.result()


def owed(state: FoldState) -> list[Covered]:
    """The chips whose time goes on being owed after the end of a log."""
    return [c for c in [*state.present, *state.absent] if c.chip not in state.retired]


def silence(origin: Origin, state: FoldState, until_us: int) -> list[Gap]:
    """What is missing at the end of a log up to ``until_us`` (UTC): a silent chip is never idle."""
    return [silent(origin, c, until_us) for c in owed(state) if c.time_us < until_us]


def silent(origin: Origin, chip: Covered, until_us: int) -> Gap:
    """What is missing of one chip after the end of its log."""
    return Gap(
        log=origin,
        chip=chip.chip,
        from_us=chip.time_us,
        to_us=until_us,
        inventory_seq=chip.inventory_seq,
        cause=chip.cause or "silent",
    )


def later(from_us: int, passed_us: int | None, mono_us: int, time_us: int) -> int:
    """The UTC time of a moment that came after ``from_us``, whatever a wall clock that was set back says.

    Across boots the wall clock tells how long it was, and at least as long as the new boot has run.

    :param passed_us: what passed in between on CLOCK_BOOTTIME; None across boots.
    :param mono_us: CLOCK_BOOTTIME of the moment.
    :param time_us: its wall-clock time.
    """
    return max(time_us, from_us + mono_us) if passed_us is None else from_us + passed_us


@dataclass(slots=True)
class _Point:
    """How far a chip's time is accounted for; a mutable :class:`Covered`."""

    boots: int
    mono_us: int
    time_us: int
    inventory_seq: int
    cause: str | None = None


@dataclass(slots=True)
class _Pending:
    """Sums that go into the same rows, a list for each run: adding them up at once is faster than row by row."""

    hour_s: int
    shares: list[Share]
    chips: list[int]
    """Those that are in the sums, by their place in the inventory."""
    nulls: list[int]
    time_us: int
    sums: list[Sums]
    """samples and :data:`~keyturn_protocol.entries.FIELDS`, each for every chip, end to end."""


class Folding:
    """:func:`fold` in parts, in the order of the log."""

    def __init__(self, origin: Origin, state: FoldState) -> None:
        self.origin = origin
        self.inventory_seq = state.inventory_seq
        self.present, self.absent = (
            {c.chip: _Point(c.boots, c.mono_us, c.time_us, c.inventory_seq, c.cause) for c in chips}
            for chips in (state.present, state.absent)
        )
        self.retired = set(state.retired)
        self.rows: Rows = {}
        self.gaps: list[Gap] = []
        self._pending: _Pending | None = None

    def result(self) -> Folded:
        """What was folded so far."""
        self._settle()
        state = FoldState(
            inventory_seq=self.inventory_seq,
            present=_covered(self.present.items()),
            absent=_covered(sorted(self.absent.items())),
            retired=sorted(self.retired),
        )
        return Folded(self.rows, tuple(self.gaps), state)

    def entries(self, entries: Sequence[Entry]) -> None:
        """Fold entries that have been followed one by one.

        :raises EntryError: as :func:`fold`.
        """
        for boots, group in groupby(entries, key=lambda e: e.boots if isinstance(e, Usage) else None):
            if boots is not None:
                self.run(Run.of([e for e in group if isinstance(e, Usage)]))
                continue
            for entry in group:
                self._other(entry)

    def _other(self, entry: Entry) -> None:
        match entry:
            case Inventory():
                self._inventory(entry)
            case Retired(body=body):
                for chip in body.chips if body.chips is not None else [*self.present, *sorted(self.absent)]:
                    self._retire(chip, entry)
            case GapEntry(body=gap):
                self._explain(gap.cause, gap.chips)
            case Paused():
                self._explain("paused", None)
            case Shutdown():
                self._explain("shutdown", None)
            case _:
                pass

    def _explain(self, cause: str, chips: Sequence[int] | None) -> None:
        """What the log says about chips, by their place in the inventory, until they are measured again."""
        points = list(self.present.values())
        for point in points if chips is None else [points[chip] for chip in chips]:
            point.cause = cause

    def _inventory(self, entry: Inventory) -> None:
        """A chip that is listed again is owed from where it left off, or from here if it was retired."""
        self._settle()
        left, self.present = self.present, {}
        for chip in entry.body.chips:
            point = left.pop(chip.uuid, None) or self.absent.pop(chip.uuid, None)
            if point is None or chip.uuid in self.retired:
                point = _Point(entry.boots, entry.mono_us, entry.time_us, entry.seq)
            self.present[chip.uuid] = point
        self.absent.update((chip, point) for chip, point in left.items() if chip not in self.retired)
        if len(self.present) + len(self.absent) > CHIPS_OWED:
            error = ProtocolError(
                Code.BAD_ENTRY,
                "too many chips left the inventory without being retired",
                expected=f"<= {CHIPS_OWED} chips listed or owed",
                got=len(self.present) + len(self.absent),
            )
            raise EntryError(entry.seq, error)
        self.retired.clear()
        self.inventory_seq = entry.seq

    def _retire(self, chip: str, entry: Retired) -> None:
        """A chip's time is owed up to its retirement, and no further."""
        point = self.present.get(chip) or self.absent.pop(chip, None)
        if point is None or chip in self.retired:
            return
        self._gap(chip, point, entry.boots, entry.mono_us, entry.time_us)
        point.boots, point.mono_us, point.time_us = entry.boots, entry.mono_us, entry.time_us
        if chip in self.present:
            self.retired.add(chip)

    def _gap(self, chip: str, point: _Point, boots: int, mono_us: int, time_us: int) -> None:
        """The time between ``point`` and the given moment."""
        end = later(point.time_us, mono_us - point.mono_us if boots == point.boots else None, mono_us, time_us)
        if end > point.time_us and chip not in self.retired:
            self.gaps.append(
                Gap(
                    log=self.origin,
                    chip=chip,
                    from_us=point.time_us,
                    to_us=end,
                    inventory_seq=point.inventory_seq,
                    cause=point.cause,
                )
            )

    def run(self, run: Run) -> None:
        """Fold usage entries that fit the inventory."""
        if self.retired:
            for at in range(len(run.from_us)):
                one = run.part(at, at + 1)
                self._returned(one.samples)
                self._cover(one)
        else:
            self._cover(run)
        at = 0
        for (hour_s, shares), group in groupby(zip(map(_hour_s, run.from_us), run.workloads, strict=True)):
            count = sum(1 for _ in group)
            self._add(run if count == len(run.from_us) else run.part(at, at + count), hour_s, shares)
            at += count

    def _returned(self, samples: Column) -> None:
        """A retired chip that is measured again was never gone: its time since then is owed after all."""
        for chip, counts in zip(self.present, samples, strict=True):
            if any(counts):
                self.retired.discard(chip)

    def _cover(self, run: Run) -> None:
        """Advance every present chip over the intervals, noting what lies between them."""
        at: tuple[int, int] | None = None
        ends = zip(run.mono_to_us, run.to_us, strict=True)
        for mono_us, time_us, end in zip(run.mono_from_us, run.from_us, ends, strict=True):
            if at is None or at[0] != mono_us:
                if at is not None:
                    self._reach(run.boots, *at)
                for chip, point in self.present.items():
                    if (point.boots, point.mono_us) != (run.boots, mono_us):
                        self._gap(chip, point, run.boots, mono_us, time_us)
            at = end
        if at is not None:
            self._reach(run.boots, *at)

    def _reach(self, boots: int, mono_us: int, time_us: int) -> None:
        for point in self.present.values():
            point.boots, point.mono_us, point.time_us = boots, mono_us, time_us
            point.inventory_seq, point.cause = self.inventory_seq, None

    def _add(self, run: Run, hour_s: int, shares: list[Share]) -> None:
        """Add entries of one hour with the same shares: as sums where a chip is one workload's or nobody's."""
        sums = [
            total for i, column in enumerate((_read(run.samples), *run.columns)) for total in _across(column, _HOW[i])
        ]
        count = len(self.present)
        odd = {at % count for at, value in enumerate(sums) if value == _MIXED} if _MIXED in sums else set()
        of = _by_chip(shares)
        odd |= {at for at, each in of.items() if not _whole(each)}
        spans = list(map(sub, run.to_us, run.from_us))
        for at, chip in enumerate(self.present) if odd else ():
            if at in odd:
                for i, span in enumerate(spans):
                    values = [span, run.samples[at][i], *(column[at][i] for column in run.columns)]
                    self._add_one(chip, hour_s, of.get(at, []), values)
        chips = [at for at in range(count) if at not in odd]
        nulls = [at for at, value in enumerate(sums) if value is None] if None in sums else []
        last = self._pending
        if last is None or (last.hour_s, last.chips, last.nulls, last.shares) != (hour_s, chips, nulls, shares):
            self._settle()
            self._pending = last = _Pending(hour_s, shares, chips, nulls, 0, [])
        last.time_us += sum(spans)
        last.sums.append(sums)

    def _settle(self) -> None:
        """Add what is pending into the rows."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        uuids, of = list(self.present), _by_chip(pending.shares)
        totals = pending.sums[0]
        if len(pending.sums) > 1:
            parts = enumerate(zip(*pending.sums, strict=True))
            totals = [None if None in part else _HOW[i // len(uuids)](part) for i, part in parts]
        for at in pending.chips:
            samples, *values = totals[at :: len(uuids)]
            shares = of.get(at, [])
            workload, basis = (WorkloadId(shares[0].id) if shares else UNATTRIBUTED), _basis(values) | _flag(shares)
            if samples is None:
                workload, basis = GAP, ALL_NULL
            key = RowKey(self.origin, uuids[at], pending.hour_s, workload, self.inventory_seq, basis)
            add_sums(self.rows, key, [pending.time_us, samples or 0, *values])

    def _add_one(self, chip: str, hour_s: int, shares: Sequence[Share], values: Sums) -> None:
        """Add one chip's part of one entry, split by its shares."""
        if values[1] == 0:
            key = RowKey(self.origin, chip, hour_s, GAP, self.inventory_seq, ALL_NULL)
            add_sums(self.rows, key, values)
            return
        basis = _basis(values[2:]) | _flag(shares)
        for workload, part in split(shares, values):
            add_sums(self.rows, RowKey(self.origin, chip, hour_s, workload, self.inventory_seq, basis), part)


def split(shares: Sequence[Share], values: Sequence[int | None]) -> Iterable[tuple[WorkloadId, Sums]]:
    """Split one chip's values by running sum of the shares, so that the parts always sum to the whole.

    Workload i gets ``x*c_i // 10**6 - x*c_(i-1) // 10**6`` with c the cumulative ppm in the order of the entry;
    the remainder is *unattributed*. Maxima are copied.
    """
    before = 0
    parts = [(WorkloadId(s.id), s.share_ppm) for s in shares]
    parts.append((UNATTRIBUTED, _WHOLE - sum(ppm for _, ppm in parts)))
    for workload, ppm in parts:
        if not ppm:
            continue
        upto = before + ppm
        yield (
            workload,
            [
                x if x is None or i >= _SUMS + 2 else x * upto // _WHOLE - x * before // _WHOLE
                for i, x in enumerate(values)
            ],
        )
        before = upto


_MIXED: Final = -1
"""In place of a total: a column that is null only in some entries. No value is negative."""

_HOW: Final[tuple[Callable[[Iterable[int]], int], ...]] = (sum,) * (1 + _SUMS) + (max,) * (len(FIELDS) - _SUMS)
"""How samples and each field fold."""


def _across(column: Column, how: Callable[[Iterable[int]], int]) -> Sums:
    """One field of several entries, folded for each chip."""
    try:
        return list(map(how, column))  # type: ignore[arg-type]
    except TypeError:
        # There is a null in it. Alone in its column it may have passed max() as it is, which is right.
        return [_fold_nulls(values, how) for values in column]


def _fold_nulls(values: Sequence[int | None], how: Callable[[Iterable[int]], int]) -> int | None:
    missing = values.count(None)
    if 0 < missing < len(values):
        return _MIXED
    return None if missing else how(values)  # type: ignore[arg-type]


def _read(samples: Column) -> Column:
    """The samples, null where a chip wasn't read."""
    if any(0 in counts for counts in samples):
        return [tuple(count or None for count in counts) for counts in samples]
    return samples


def _by_chip(shares: Sequence[Share]) -> dict[int, list[Share]]:
    found: dict[int, list[Share]] = {}
    for share in shares:
        found.setdefault(share.chip, []).append(share)
    return found


def _basis(values: Sequence[int | None]) -> int:
    """The bits of the fields that are null."""
    return sum(1 << i for i, value in enumerate(values) if value is None) if None in values else 0


def _whole(shares: Sequence[Share]) -> bool:
    """Whether one workload, or none, has the chip to itself."""
    return not shares or (len(shares) == 1 and shares[0].share_ppm == _WHOLE)


def _flag(shares: Sequence[Share]) -> int:
    """Several workloads on one chip are told apart by attribution, whatever class each is given."""
    return SHARED if len(shares) > 1 or any(s.class_ == "shared" for s in shares) else 0


def _hour_s(from_us: int) -> int:
    return from_us // USAGE_SPAN_US * HOUR_S


def _covered(points: Iterable[tuple[str, _Point]]) -> list[Covered]:
    return [
        Covered(
            chip=chip,
            boots=p.boots,
            mono_us=p.mono_us,
            time_us=p.time_us,
            inventory_seq=p.inventory_seq,
            cause=p.cause,
        )
        for chip, p in points
    ]
