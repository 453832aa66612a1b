"""What a node charges to its leases: one fold over its own entries, by agent and auditor alike, in exact integers.

    permit → lease adopted → usage, usage, … → lease report → … → lease final

From the first word on a lease to the last, all work seen on its chips is charged, whoever did it:

- a usage entry costs the high end for the lease's data types, or the undeclared one where counters contradict them;
- time of a leased chip that nothing covers costs its undeclared peak, so that killing the agent saves nothing; or no
  more than what the energy can have done that a ``lease`` entry gives for exactly that time;
- up to the end of the lease: what runs after that runs under none. What is *measured* is charged until the last word;
- a reboot voids leases: the time from the last measurement to the start of the new boot costs the peak.

A chip that the table doesn't know has no peak, so that no lease names one. One that becomes unknown while it is leased
uses the whole lease up. Nothing here depends on how the log is cut into segments or read in runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from msgspec import structs

from keyturn_protocol.authority import Why, refuse
from keyturn_protocol.canonical import Decimal, Hex32, Record, UInt
from keyturn_protocol.charge_rows import COLUMNS, Reading, summed
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.entries import Entry, Inventory, Permit, Usage
from keyturn_protocol.entries import Lease as LeaseEntry
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_switch import SPENT, LeaseBody, PermitBody
from keyturn_protocol.entry_usage import Share
from keyturn_protocol.flop import contradicts, energy_bound, highest, peak_rate
from keyturn_protocol.lease import Lease, lease_subject
from keyturn_protocol.lease_accounts import TERA
from keyturn_protocol.usage_runs import Run

_SECOND: Final = 1_000_000
_ANY: Final[frozenset[str]] = frozenset()


def peak_tflop_s(chips: Iterable[Chip], dtypes: Iterable[str], table: ChipTable) -> int:
    """What chips can do a second with all pipes at full rate, in TFLOP, rounded up.

    :raises Refused: ``unknown_chip``.
    """
    total, types = 0, frozenset(dtypes)
    for chip in chips:
        rate = peak_rate(chip, types, table)
        if rate is None:
            raise refuse(Why.UNKNOWN_CHIP, "no row in the chip table", got=f"{chip.uuid}: {chip.name}")
        total += rate * _SECOND
    return -(-total // TERA)


class Point(Record, frozen=True, kw_only=True):
    """Up to where a leased chip's time is charged, on both clocks; and the chip as it was listed last."""

    chip: Chip
    mono_us: UInt
    time_us: UInt


class OnLease(Record, frozen=True, kw_only=True):
    """A lease in force: since and until when, and its chips that were ever listed, by uuid."""

    lease: Hex32
    chips: list[str]
    since_mono_us: UInt
    since_us: UInt
    ends_mono_us: UInt
    upto_tflop: UInt
    dtypes: list[str]
    points: dict[str, Point]


class AskedAt(Record, frozen=True, kw_only=True):
    """When a nonce was drawn, at the latest."""

    nonce: Hex32
    boots: UInt
    mono_us: UInt


class ChargeState(Record, frozen=True, kw_only=True):
    """All that the fold must remember. Kept by an agent, which doesn't keep its whole log."""

    boots: UInt
    inventory: list[Chip]
    asked: dict[str, AskedAt]
    """By what was asked for: the newest entry of each."""
    on: dict[str, OnLease]
    """By subject."""
    flop: dict[str, Decimal]
    """Charged by subject, but for what follows."""
    floor: dict[str, Decimal]
    """At least so much was: a lease that a chip without bounds used up."""


EMPTY: Final = ChargeState(boots=0, inventory=[], asked={}, on={}, flop={}, floor={})


class Survivor(NamedTuple):
    """A workload that goes on after the last word on a lease, on one of its chips."""

    lease: str
    workload: str
    chip: str
    from_us: int


@dataclass(slots=True)
class _Ended:
    """The last word on a lease, and what had been seen on its chips."""

    lease: str
    boots: int
    mono_us: int
    workloads: set[str] = field(default_factory=set)


class Charge:
    """The fold. Entries have been followed, so that columns fit the inventory."""

    def __init__(self, table: ChipTable, leases: Mapping[str, Lease], state: ChargeState = EMPTY) -> None:
        """
        :param leases: by hash, those that entries may name; looked into when they do. One that isn't there is charged
            for nothing.
        """
        self.table, self.leases = table, leases
        self.boots = state.boots
        self.inventory = list(state.inventory)
        self.asked = dict(state.asked)
        self.on = {subject: structs.replace(on, points=dict(on.points)) for subject, on in state.on.items()}
        self.flop = {subject: int(flop) for subject, flop in state.flop.items()}
        self.floor = {subject: int(flop) for subject, flop in state.floor.items()}
        self.survivors: dict[tuple[str, str, str], Survivor] = {}
        self._seen: dict[str, set[str]] = {}
        self._ended: dict[str, _Ended] = {}

    def state(self) -> ChargeState:
        return ChargeState(
            boots=self.boots,
            inventory=list(self.inventory),
            asked=dict(self.asked),
            on={subject: structs.replace(on, points=dict(on.points)) for subject, on in self.on.items()},
            flop={subject: str(flop) for subject, flop in self.flop.items()},
            floor={subject: str(flop) for subject, flop in self.floor.items()},
        )

    def charged_flop(self, subject: str) -> int:
        """What was charged so far."""
        return max(self.flop.get(subject, 0), self.floor.get(subject, 0))

    def to_say(self, body: LeaseBody, boots: int, mono_us: int, time_us: int) -> int:
        """What a ``lease`` entry must say that it charged, were it written at these clocks.

        :param body: of which the charge doesn't matter.
        """
        trial = Charge(self.table, self.leases, self.state())
        trial._clock(boots, mono_us, time_us)
        return trial._lease(body, mono_us, time_us)

    def entry(self, entry: Entry) -> int | None:
        """Take one entry; what a ``lease`` entry must say that it charged, None for any other."""
        if isinstance(entry, Usage):
            self.run(Run.of([entry]))
            return None
        self._clock(entry.boots, entry.mono_us, entry.time_us)
        match entry:
            case Inventory(body=body):
                self.inventory = list(body.chips)
                self._relist()
            case Permit(body=permit):
                self.asked[_wanted(permit)] = AskedAt(nonce=permit.nonce, boots=entry.boots, mono_us=entry.mono_us)
            case LeaseEntry(body=said):
                return self._lease(said, entry.mono_us, entry.time_us)
            case _:
                pass
        return None

    def run(self, run: Run) -> None:
        """Take usage entries of one boot, in order."""
        if not self.on and not self._ended:
            self.boots = run.boots
            return
        first = run.mono_from_us[0]
        self._clock(run.boots, first, run.from_us[0])
        at = {chip.uuid: i for i, chip in enumerate(self.inventory)}
        for subject, on in self.on.items():
            self._cover(subject, on, run, [uuid for uuid in on.points if uuid in at])
            dtypes = frozenset(on.dtypes)
            for i, chip in enumerate(self.inventory):
                if chip.uuid in on.points or chip.parent in on.points:
                    self._measured(subject, on, chip, dtypes, run, i)
        self._watch(run)

    def _clock(self, boots: int, mono_us: int, time_us: int) -> None:
        """A new boot voids every lease; until it began, what was leased may have run."""
        if boots == self.boots:
            return
        self.boots = boots
        began_us = time_us - mono_us
        for subject, on in self.on.items():
            for point in on.points.values():
                passed_us, left_us = began_us - point.time_us, max(0, on.ends_mono_us - point.mono_us)
                # A clock that was set back says nothing about how long it was: then it was all that was left.
                self._add_peak(subject, on, point.chip, left_us if passed_us < 0 else min(passed_us, left_us))
        self.on.clear()
        self._ended.clear()

    def _lease(self, body: LeaseBody, mono_us: int, time_us: int) -> int:
        """A word on a lease; what was charged with it to its subject."""
        lease = self.leases.get(body.lease)
        for gap in body.gaps:
            self._gap(gap.chip, gap.mono_from_us, gap.mono_to_us, gap.energy_mj)
        if lease is None:
            return 0
        subject = lease_subject(lease)
        if body.event == "adopted":
            self._adopt(subject, body.lease, lease, mono_us, time_us)
        elif body.event == "final" and (on := self.on.get(subject)) is not None:
            for uuid, point in on.points.items():
                self._leave(subject, on, uuid, point, mono_us)
            if body.reason == SPENT:
                self.flop[subject] = max(self.charged_flop(subject), on.upto_tflop * TERA)
            del self.on[subject]
        return self.charged_flop(subject)

    def _adopt(self, subject: str, digest: str, lease: Lease, mono_us: int, time_us: int) -> None:
        asked = next((one for one in self.asked.values() if one.nonce == lease.nonce and one.boots == self.boots), None)
        before = self.on.get(subject)
        points: dict[str, Point] = {} if before is None else dict(before.points)
        if before is not None:
            for uuid in [uuid for uuid in points if uuid not in lease.chips]:
                self._leave(subject, before, uuid, points.pop(uuid), mono_us)
            self._seen[digest] = self._seen.pop(before.lease, set())
        for uuid in lease.chips:
            self._ended.pop(uuid, None)
        self.on[subject] = OnLease(
            lease=digest,
            chips=lease.chips,
            since_mono_us=mono_us,
            since_us=time_us,
            ends_mono_us=(mono_us if asked is None else asked.mono_us) + lease.ttl_s * _SECOND,
            upto_tflop=lease.upto_tflop,
            dtypes=lease.dtypes,
            points=points,
        )
        self._relist()
        # Who knows of less than it reported has its state from a backup, and goes on from what it reported.
        self.flop[subject] = max(self.charged_flop(subject), lease.charged_tflop * TERA)

    def _leave(self, subject: str, on: OnLease, uuid: str, point: Point, mono_us: int) -> None:
        """A chip is no longer leased: what isn't covered up to here costs the peak."""
        self._add_peak(subject, on, point.chip, min(mono_us, on.ends_mono_us) - point.mono_us)
        self._ended[uuid] = _Ended(on.lease, self.boots, mono_us, self._seen.get(on.lease, set()))

    def _gap(self, uuid: str, from_us: int, to_us: int, energy_mj: int) -> None:
        """Time of which only the energy is known; nothing if it isn't exactly what comes next of the chip."""
        for subject, on in self.on.items():
            point = on.points.get(uuid)
            if point is None or point.mono_us != from_us:
                continue
            peak = self._peak(point.chip, min(to_us, on.ends_mono_us) - from_us)
            bound = energy_bound(energy_mj, to_us - from_us, point.chip, self.table)
            self._add(subject, on, peak if bound is None or peak is None else min(peak, bound))
            on.points[uuid] = structs.replace(point, mono_us=to_us, time_us=point.time_us + to_us - from_us)

    def _cover(self, subject: str, on: OnLease, run: Run, uuids: Iterable[str]) -> None:
        """Advance chips over intervals, charging what lies between them: the same for all that stand at one point."""
        found: dict[int, tuple[int, int]] = {}
        for uuid in uuids:
            point = on.points[uuid]
            if point.mono_us not in found:
                mono_us, missing_us = point.mono_us, 0
                for from_us, to_us in zip(run.mono_from_us, run.mono_to_us, strict=True):
                    if from_us > mono_us:
                        missing_us += max(0, min(from_us, on.ends_mono_us) - mono_us)
                    mono_us = max(mono_us, to_us)
                found[point.mono_us] = (mono_us, missing_us)
            end_us, missing_us = found[point.mono_us]
            self._add_peak(subject, on, point.chip, missing_us)
            on.points[uuid] = Point(chip=point.chip, mono_us=end_us, time_us=run.to_us[-1])

    def _measured(self, subject: str, on: OnLease, chip: Chip, dtypes: frozenset[str], run: Run, at: int) -> None:
        """What one chip did, by its counters; a chip that wasn't read may have done anything."""
        whole = summed(run, at)
        if whole is not None and not contradicts(whole, chip, dtypes, self.table):
            self._add(subject, on, highest(whole, chip, dtypes, self.table))
            return
        times = [to_us - from_us for from_us, to_us in zip(run.from_us, run.to_us, strict=True)]
        columns = [run.columns[column][at] for column in COLUMNS]
        total, unread_us = 0, 0
        for samples, *values in zip(run.samples[at], times, *columns, strict=True):
            reading = Reading(*values)
            if not samples or not any(value is not None for value in values[1:]):
                unread_us += reading.time_us
                continue
            done = highest(reading, chip, dtypes, self.table)
            if done is None:
                self._add(subject, on, None)
            else:
                total += done
        self._add(subject, on, total)
        self._add_peak(subject, on, chip, unread_us)

    def _peak(self, chip: Chip, time_us: int) -> int | None:
        """Nobody saw which types ran, so that a type that isn't allowed may have."""
        if time_us <= 0:
            return 0
        rate = peak_rate(chip, _ANY, self.table)
        return None if rate is None else rate * time_us

    def _add_peak(self, subject: str, on: OnLease, chip: Chip, time_us: int) -> None:
        self._add(subject, on, self._peak(chip, time_us))

    def _add(self, subject: str, on: OnLease, flop: int | None) -> None:
        if flop is None:
            self.floor[subject] = max(self.floor.get(subject, 0), on.upto_tflop * TERA)
        else:
            self.flop[subject] = self.flop.get(subject, 0) + flop

    def _relist(self) -> None:
        """Leased chips as the inventory describes them; one that it doesn't list stays as it was, and is owed."""
        listed = {chip.uuid: chip for chip in self.inventory}
        for on in self.on.values():
            for uuid in on.chips:
                if uuid in listed:
                    point = on.points.get(uuid)
                    mono_us, time_us = (point.mono_us, point.time_us) if point else (on.since_mono_us, on.since_us)
                    on.points[uuid] = Point(chip=listed[uuid], mono_us=mono_us, time_us=time_us)

    def _watch(self, run: Run) -> None:
        """Which workloads are seen on leased chips, and whether any goes on there after the last word on the lease."""
        chips = [chip.parent or chip.uuid for chip in self.inventory]
        leased = {uuid: on.lease for on in self.on.values() for uuid in on.points}
        last: Sequence[Share] | None = None
        for shares, mono_us, from_us in zip(run.workloads, run.mono_from_us, run.from_us, strict=True):
            if shares is last and not self._ended:
                continue
            last = shares
            for share in shares:
                uuids = {chips[share.chip], self.inventory[share.chip].uuid}
                for uuid in uuids:
                    if uuid in leased:
                        self._seen.setdefault(leased[uuid], set()).add(share.id)
                        continue
                    ended = self._ended.get(uuid)
                    if ended and share.share_ppm and share.id in ended.workloads and mono_us >= ended.mono_us:
                        key = (ended.lease, share.id, uuid)
                        self.survivors.setdefault(key, Survivor(*key, from_us))


def _wanted(body: PermitBody) -> str:
    """What an entry asks for: one that asks for the same again takes its place."""
    return f"{body.kind} {body.run or body.lineage or ''}"
