"""A job on this host, from the command that asks to the last report: what is due at a moment, and when it stops. Pure.

    looking → asking → leased → starting → running → ending
                          ▲──── renewal ─────┘

Times are CLOCK_BOOTTIME of the boot in which the nonce was drawn: in another boot nothing of it is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec

from keyturn_protocol.canonical import Hex32, Positive, Record, Text, UInt, fit_text
from keyturn_protocol.entry_switch import SPENT, LeaseKind, Lineage, SpecChecks
from keyturn_protocol.lease import Lease
from keyturn_protocol.lifecycle import Run
from keyturn_protocol.permit import Opened
from keyturn_protocol.values import BootId, ChipUuid, Micros, SpecPart

SECOND: Final = 1_000_000
TFLOP: Final = 10**12


class Phase(StrEnum):
    """How far a job has come."""

    LOOKING = "looking"
    ASKING = "asking"
    LEASED = "leased"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"


class Place(Record, frozen=True, kw_only=True):
    """The run's processes, as the gate takes them."""

    pid: UInt
    start: UInt
    cgroup: str | None
    session: UInt | None


class Asked(Record, frozen=True, kw_only=True):
    """A ``permit`` entry that was written: which one, with which nonce, when (CLOCK_BOOTTIME)."""

    origin: str
    seq: UInt
    nonce: Hex32
    mono_us: Micros


class Holding(Record, frozen=True, kw_only=True):
    """An adopted lease: its hash, the log that has the word on it, and when its nonce was drawn."""

    sha256: Hex32
    origin: str
    drawn_us: Micros


class Said(Record, frozen=True, kw_only=True):
    """A :class:`Moment` as it is kept."""

    at_us: UInt
    why: Text
    of_us: UInt


class Bounds(Record, frozen=True, kw_only=True):
    """What the permit of a run says of its end, as this host saw it last.

    It holds until the permit is seen again: an agent that is started again, and reaches no verifier, stops all the
    same. ``ends_us``: the end of the run's window, CLOCK_BOOTTIME.
    """

    said: Said | None
    ends_us: UInt | None
    grace_s: UInt
    kill_s: UInt


class Job(Record, frozen=True, kw_only=True):
    """One start of a command, as it is kept over restarts of the agent.

    ``approved``: the commitments with which what was started was compared; empty without a run.
    """

    job: Hex32
    boot_id: BootId
    kind: LeaseKind
    run: Hex32 | None
    lineage: Lineage | None
    group: Text
    hosts: Positive
    chips: list[ChipUuid]
    spec: SpecChecks
    approved: dict[SpecPart, Hex32 | None]
    signal: UInt | None
    phase: Literal["looking", "asking", "leased", "starting", "running", "ending"]
    asked: Asked | None
    lease: Holding | None
    place: Place | None
    bounds: Bounds | None
    reported_us: Micros
    why: Text


class Book(Record, frozen=True, kw_only=True):
    """The file ``leases.json``: jobs, and what outlives them. In one log the numbers of a subject only grow."""

    v: Literal[1]
    origin: str
    jobs: list[Job]
    sequences: dict[str, Annotated[int, msgspec.Meta(ge=0)]]
    gate_seq: UInt


@dataclass(frozen=True, slots=True)
class Stop:
    """When a job stops (CLOCK_BOOTTIME), and why."""

    at_us: int
    why: str


@dataclass(frozen=True, slots=True)
class Now:
    """This moment: CLOCK_BOOTTIME and the wall clock, in µs."""

    mono_us: int
    time_us: int


def stop_of(lease: Lease, drawn_us: int, run: Run | None, spent_us: int, now: Now, stopped: "Moment | None") -> Stop:
    """The one moment at which a job stops, whatever comes first.

    :param spent_us: when its compute would be used up at the peak of the chips.
    :param stopped: what the run's events say, as it was when this host heard of it.
    """
    stops = [
        Stop(drawn_us + lease.ttl_s * SECOND, "the lease ends"),
        Stop(spent_us, SPENT),
    ]
    return sooner(stops, run, now, stopped)


def sooner(stops: Sequence[Stop], run: Run | None, now: Now, stopped: "Moment | None") -> Stop:
    """The first of these, of the end of a run's window, and of what its events say."""
    found = list(stops)
    if run is not None:
        found.append(Stop(now.mono_us + max(0, run.scope.not_after_us - now.time_us), "the run's window ends"))
    if stopped is not None:
        found.append(Stop(stopped.at_us, stopped.why))
    return min(found, key=lambda stop: stop.at_us)


@dataclass(frozen=True, slots=True)
class Moment:
    """A stop by somebody's word, as a moment of CLOCK_BOOTTIME."""

    at_us: int
    why: str
    of_us: int
    """The moment in UTC that it stands for."""


def heard_stop(
    run: Run, before: Moment | None, last_leaf_us: int, now: Now, replaced: Sequence[SpecPart] = ()
) -> Moment | None:
    """When a run stops by what was said about it, on this host's CLOCK_BOOTTIME.

    The log names a moment of UTC. A host whose wall clock was set back would stop late by it, so that it is never
    later than the notice that was given, counted from when this host heard of it.

    :param before: what was computed before; the same moment keeps its place, whatever the wall clock does since.
    :param last_leaf_us: time of the newest leaf about the run.
    :param replaced: parts of what runs here that an amendment replaced: it has the notice of a suspension.
    """
    stops: list[tuple[int, str]] = []
    if run.ended is not None:
        stops.append((run.ended.time_us, f"the run was {run.ended.state}: {run.ended.why}"))
    elif run.stop_at_us is not None:
        stops.append((run.stop_at_us, _suspended(run)))
    if replaced:
        if before is not None and before.why.startswith(_REPLACED):
            # Whatever is said since, also by the next amendment, puts it off no more.
            stops.append((before.of_us, before.why))
        else:
            notice_us = run.policy.stop.notice_s * SECOND
            stops.append((last_leaf_us + notice_us, f"{_REPLACED}: {', '.join(replaced)}"))
    if not stops:
        return None
    of_us, why = min(stops)
    if before is not None and before.of_us == of_us:
        return before
    notice_us = max(0, of_us - last_leaf_us)
    return Moment(now.mono_us + min(notice_us, max(0, of_us - now.time_us)), why, of_us)


@dataclass(frozen=True, slots=True)
class Times:
    """How a stop goes: the notice before it, and what lies between SIGTERM and SIGKILL."""

    grace_s: int
    kill_s: int


def times_of(opened: Opened | None, kept: Bounds | None) -> Times:
    """By the policy that a job's lease stands on; until its permit is seen, by what was kept of it."""
    if opened is None:
        return Times(0, 60) if kept is None else Times(kept.grace_s, kept.kill_s)
    if opened.run is not None:
        return Times(opened.run.tier.grace_s, opened.run.policy.stop.kill_s)
    policy = opened.authority.policies[-1][2]
    return Times(policy.tiers[0].grace_s, policy.stop.kill_s)


def spent_us(lease: Lease, charged_flop: int, point_us: int, rate: int, kill_s: int) -> int:
    """When the compute of a lease would be used up at peak, with room for what a stop takes.

    :param point_us: up to when ``charged_flop`` is charged.
    :param rate: the peak, in FLOP a µs.
    """
    left_flop = max(0, lease.upto_tflop * TFLOP - charged_flop)
    return point_us + left_flop // rate - kill_s * SECOND


def renew_us(holding: Holding, lease: Lease) -> int:
    """When to ask for the next one."""
    return holding.drawn_us + min(lease.renew_s, max(1, lease.ttl_s // 2)) * SECOND


def stopped_by(stop: Stop | None, now: Now) -> str | None:
    """Why a command that ended was stopped, if it was.

    Who stops it does so by the same clock, and may be first to say so.
    """
    return stop.why if stop is not None and now.mono_us >= stop.at_us - SECOND else None


def bounds_of(run: Run | None, heard: Moment | None, now: Now, times: Times) -> Bounds:
    """What to keep of a permit."""
    said = None if heard is None else Said(at_us=heard.at_us, why=fit_text(heard.why), of_us=heard.of_us)
    ends_us = None if run is None else now.mono_us + max(0, run.scope.not_after_us - now.time_us)
    return Bounds(said=said, ends_us=ends_us, grace_s=times.grace_s, kill_s=times.kill_s)


def moved(before: Bounds | None, now: Bounds, least_us: int) -> bool:
    """Whether bounds say something new; the end of a window that drifts with the wall clock, by less, doesn't."""
    if before is None or before.ends_us is None or now.ends_us is None or abs(before.ends_us - now.ends_us) >= least_us:
        return before != now
    return msgspec.structs.replace(before, ends_us=now.ends_us) != now


_REPLACED: Final = "an amendment replaced what was started"


def _suspended(run: Run) -> str:
    if not run.calls:
        return "suspended: a root took the ground from under its permit"
    return "suspended by " + ", ".join(sorted({call.person for call in run.calls}))
