"""The jobs of this host: what is kept of each on disk, what is live of it, and what the log has to say of it.

Used by the daemon's thread alone.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from keyturn_agent.errors import RefusedError
from keyturn_agent.ports import Clock
from keyturn_agent.status import LiveLease
from keyturn_agent.store import Store
from keyturn_agent.switch import lease_files
from keyturn_agent.switch.asking import Ask, ToExec
from keyturn_agent.switch.door import Visitor
from keyturn_agent.switch.lease_state import SECOND, Job, Moment, Now, Phase, Stop
from keyturn_agent.switch.metering import Metering
from keyturn_agent.switch.spec import replaced
from keyturn_protocol.canonical import fit_text
from keyturn_protocol.entries import Body
from keyturn_protocol.entry_log import DegradedBody
from keyturn_protocol.entry_switch import LeaseBody, LeaseGap
from keyturn_protocol.lease import Lease, lease_subject
from keyturn_protocol.permit import Opened
from keyturn_protocol.values import SpecPart

logger = logging.getLogger(__name__)


class Hands(Protocol):
    """What leases need of the daemon, in its thread."""

    def write(self, bodies: Sequence[Body]) -> None: ...

    def checkpoint(self) -> None:
        """Sign what is new and have it sent."""
        ...

    def flush(self) -> None:
        """Write the usage that is open."""
        ...

    def relist(self) -> None:
        """Write the inventory again, with what the gate does now."""
        ...

    @property
    def writable(self) -> bool:
        """Whether the log takes entries now; where the disk is full they wait, and nobody knows their place."""
        ...


@dataclass(slots=True)
class Live:
    """A job with what isn't kept: who asked, what its run says, when things are due."""

    job: Job
    visitor: Visitor | None = None
    stub: Visitor | None = None
    looked: Visitor | None = None
    """The stub, until the agent has seen what it became."""
    looked_us: int = 0
    ask: Ask | None = None
    digests: dict[Any, str] = field(default_factory=dict)
    token: str = ""
    opened: Opened | None = None
    heard: Moment | None = None
    stop: Stop | None = None
    last: Stop | None = None
    """Its last stop in a log that was left, until it has a lease in the next one."""
    gated: bool = False
    """Whether the gate may hold a grant of it, which has to end with it."""
    granted_us: int | None = None
    granted_lease: str | None = None
    again_us: int = 0
    news_us: int = 0
    renew_us: int | None = None
    warned: bool = False
    lease: Lease | None = None

    @property
    def phase(self) -> Phase:
        return Phase(self.job.phase)

    @property
    def replaced(self) -> list[SpecPart]:
        """The parts of what runs that an amendment replaced, as far as is known."""
        run = None if self.opened is None else self.opened.run
        return [] if run is None else replaced(self.job.approved, run.spec)

    @property
    def subject(self) -> str:
        """What its lease is charged to; "" without one."""
        return "" if self.lease is None else lease_subject(self.lease)

    def change(self, **fields: Any) -> None:
        """Set fields of what is kept, which :meth:`Jobs.keep` then keeps."""
        self.job = msgspec.structs.replace(self.job, **fields)

    def move(self, phase: Phase) -> None:
        self.change(phase=phase.value)

    def tell(self, message: ToExec) -> None:
        """Say something to whoever asked, if that is still there."""
        if self.visitor is not None:
            self.visitor.tell(message)


class Jobs:
    """All of them, and ``leases.json``, which holds those with a lease.

    :param hurry: has the courier send what was signed at once.
    """

    hands: Hands

    def __init__(self, store: Store, clock: Clock, metering: Metering, hurry: Callable[[], None]) -> None:
        self.store = store
        self.metering = metering
        self._clock = clock
        self._hurry = hurry
        self._book = self._kept = lease_files.load(store.folder)
        self._live: dict[str, Live] = {}

    # -- which there are

    def __iter__(self) -> Iterator[Live]:
        """As they are now: whoever goes through them may end some."""
        return iter(list(self._live.values()))

    def get(self, job: str) -> Live | None:
        return self._live.get(job)

    def take_up(self) -> list[Live]:
        """Those of the agent before this one: all of them are there before the first one ends, and is forgotten."""
        for job in self._book.jobs:
            if job.lease is not None:
                self.add(Live(job, gated=job.place is not None))
        return list(self)

    def add(self, live: Live) -> None:
        self._live[live.job.job] = live

    def drop(self, live: Live) -> None:
        """It is over; after this that survives."""
        self._live.pop(live.job.job, None)
        self.keep()

    def of(self, visitor: Visitor) -> list[Live]:
        return [live for live in self if live.visitor is visitor]

    def free(self) -> list[str]:
        """Chips that no job has."""
        taken = {chip for live in self for chip in live.job.chips}
        return [chip.uuid for chip in self.metering.chips() if chip.role != "mig_parent" and chip.uuid not in taken]

    def live_leases(self) -> list[LiveLease]:
        """What is held, for whoever looks."""
        now_us = self.now().mono_us
        return [
            LiveLease(
                job=live.job.job,
                phase=live.job.phase,
                kind=live.job.kind,
                run=live.job.run,
                lineage=live.job.lineage,
                lease=live.job.lease.sha256,
                chips=live.job.chips,
                upto_tflop=live.lease.upto_tflop,
                charged_flop=str(self.metering.charged_flop(live.subject)),
                stop_in_s=None if live.stop is None else max(0, live.stop.at_us - now_us) // SECOND,
                stop_why=None if live.stop is None else live.stop.why,
            )
            for live in self
            if live.lease is not None and live.job.lease is not None
        ]

    # -- the clock

    @property
    def boot_id(self) -> str:
        return self._clock.boot_id

    def now(self) -> Now:
        now = self._clock.now()
        return Now(now.mono_us, now.time_us)

    # -- what survives

    def keep(self) -> None:
        """After this the jobs survive as they are."""
        jobs = [live.job for live in self if live.job.lease is not None]
        self._book = msgspec.structs.replace(self._book, jobs=jobs)
        if self._book != self._kept or not (self.store.folder / lease_files.NAME).exists():
            lease_files.keep(self.store.folder, self._book)
            self._kept = self._book

    def sequence(self, subject: str, origin: str) -> int:
        """Of the newest lease of a subject that was ever adopted in this log; -1 for none."""
        return self._book.sequences.get(subject, -1) if self._book.origin == origin else -1

    def adopted(self, subject: str, origin: str, sequence: int) -> None:
        """A lease is this host's; :meth:`keep` has to follow."""
        before = self._book.sequences if self._book.origin == origin else {}
        self._book = msgspec.structs.replace(self._book, origin=origin, sequences={**before, subject: sequence})

    @property
    def gate_seq(self) -> int:
        """The gate's events up to this one are in the log."""
        return self._book.gate_seq

    def gate_said(self, seq: int) -> None:
        """The gate's events up to this one are in the log; after this none of them is said again."""
        self._book = msgspec.structs.replace(self._book, gate_seq=seq)
        self.keep()

    # -- what the log says

    def report(
        self,
        live: Live,
        event: Literal["adopted", "report", "final"],
        reason: str | None,
        gaps: Sequence[LeaseGap] = (),
    ) -> None:
        """Say what was charged, which the writer fills in; signed at once."""
        holding = live.job.lease
        if holding is None or holding.origin != self.store.log.name.origin:
            return
        body = LeaseBody(
            charged_flop="0",
            event=event,
            gaps=list(gaps),
            lease=holding.sha256,
            reason=None if reason is None else fit_text(reason),
        )
        live.change(reported_us=self.now().mono_us)
        self.hands.write([body])
        self.seal()

    def leave(self, why: str) -> None:
        """The last word on every lease in this log, which is about to end: what they didn't use is free then. Whatever
        goes on asks anew, in the log that follows."""
        held = []
        for live in self:
            if (holding := live.job.lease) is not None and holding.origin == self.store.log.name.origin:
                live.change(lease=msgspec.structs.replace(holding, origin=""))
                held.append(holding.sha256)
        # Kept first: a word on a lease after the last one would be one too many.
        self.keep()
        for lease in held:
            self.hands.write([LeaseBody(charged_flop="0", event="final", gaps=[], lease=lease, reason=fit_text(why))])

    def seal(self) -> None:
        """Sign what was written, and have it sent at once."""
        self.hands.checkpoint()
        self._hurry()

    def degraded(self, cause: str, detail: str) -> None:
        """Say what isn't as it should be."""
        logger.warning("%s: %s", cause, detail)
        self.hands.write([degraded(cause, detail)])


def degraded(cause: str, detail: str) -> DegradedBody:
    """The body that says so."""
    return DegradedBody(cause=cause, interval_us=None, detail=fit_text(detail))


def pick(free: Collection[str], wanted: Collection[str] | None) -> list[str]:
    """The chips of a job: those that it wants, or all that nobody has.

    :raises RefusedError: ``chips``: not free, or none is.
    """
    chips = sorted(free if wanted is None else set(wanted))
    if strange := set(chips) - set(free):
        raise RefusedError("chips", f"not a free chip of this host: {', '.join(sorted(strange))}")
    if not chips:
        raise RefusedError("chips", "no chip of this host is free", hint="keyturn-agent status shows who has them")
    return chips
