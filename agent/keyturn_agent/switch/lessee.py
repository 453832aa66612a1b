"""The agent's side of leases, in the daemon's thread: asks for them, checks them, meters down, and gives them back.

Nothing here waits. What takes time (the verifier, the gate) is an errand; what the log has to say goes through the
daemon's hands. Each step is durable before the next one rests on it: the nonce in a signed entry, the lease on disk
before a chip is opened for it, what was charged in signed reports.
"""

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import msgspec

from keyturn_agent.errors import LOST, AgentError, RefusedError, StoreError, UnreachableError
from keyturn_agent.ports import Answer, Clock, Sample, SwitchVerifier
from keyturn_agent.status import LiveGate, LiveLease
from keyturn_agent.store import Store
from keyturn_agent.switch import lease_files, scope
from keyturn_agent.switch.asking import Ask, Begin, Ended, Go, Leased, Over, Refused, Stopping, ToExec, Told
from keyturn_agent.switch.door import Door, Heard, Visitor
from keyturn_agent.switch.errands import Done, Errands
from keyturn_agent.switch.gatelink import NOTICES, GateLink, GateStatus, Grant, Target
from keyturn_agent.switch.lease_check import AHEAD_US, BehindError, Wanted, check_lease, check_place, check_run
from keyturn_agent.switch.lease_state import (
    TFLOP,
    Asked,
    Holding,
    Job,
    Moment,
    Now,
    Phase,
    Place,
    Stop,
    bounds_of,
    heard_stop,
    moved,
    stop_of,
)
from keyturn_agent.switch.metering import Metering
from keyturn_agent.switch.pin import Pin
from keyturn_agent.switch.spec import NOTHING, Start, check_spec, check_wanted, describe
from keyturn_agent.switch.strangers import Strangers
from keyturn_protocol.api import Problem
from keyturn_protocol.canonical import fit_text, parse
from keyturn_protocol.entries import Body
from keyturn_protocol.entry_log import DegradedBody
from keyturn_protocol.entry_switch import LeaseBody, LeaseGap, PermitBody, check_permit
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.lease import Lease, lease_subject, parse_lease
from keyturn_protocol.permit import Opened

logger = logging.getLogger(__name__)

Driver = Literal["none", "observe", "compute_mode"]
_SECOND: Final = 1_000_000
_WAIT_S: Final = 25
_RETRY_S: Final = 5
_GATE_S: Final = 10
_LOOK_S: Final = 2
_MOVE_US: Final = 500_000
"""A stop that moves by less than this isn't told to the gate."""


class Hands(Protocol):
    """What leases need of the daemon, in its thread."""

    def write(self, bodies: Sequence[Body]) -> None: ...

    def checkpoint(self) -> None:
        """Sign what is new and have it sent."""
        ...

    def flush(self) -> None:
        """Write the usage that is open."""
        ...

    @property
    def writable(self) -> bool:
        """Whether the log takes entries now; where the disk is full they wait, and nobody knows their place."""
        ...


@dataclass(slots=True)
class _Live:
    """A job with what isn't kept: who asked, what its run says, when things are due."""

    job: Job
    visitor: Visitor | None = None
    stub: Visitor | None = None
    ask: Ask | None = None
    digests: dict[Any, str] = field(default_factory=dict)
    token: str = ""
    opened: Opened | None = None
    heard: Moment | None = None
    stop: Stop | None = None
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


class Lessee:
    """Jobs on this host.

    :param gate: the gate, or None where there is none.
    :param report_s: between two reports of a lease.
    :param usage_us: length of a usage entry.
    """

    def __init__(
        self,
        store: Store,
        pin: Pin,
        clock: Clock,
        verifier: SwitchVerifier,
        errands: Errands,
        door: Door,
        gate: GateLink | None,
        driver: Driver,
        report_s: int,
        usage_us: int,
        hurry: Callable[[], None],
    ) -> None:
        self._store = store
        self._pin = pin
        self._clock = clock
        self._verifier = verifier
        self._errands = errands
        self._door = door
        self._gate = gate
        self._driver: Driver = driver
        self._report_us = report_s * _SECOND
        self._usage_us = usage_us
        self._hurry = hurry
        self._hands: Hands
        self._gate_seen: GateStatus | None = None
        self._gate_us = 0
        self._look_us = 0
        self._flush_us = 0
        self._strangers = Strangers()
        self._book = lease_files.load(store.folder)
        self.metering = Metering(store)
        self._live: dict[str, _Live] = {}
        self._left_over = list(self._book.jobs)

    # -- for the daemon

    def begin(self, hands: Hands) -> None:
        """From here on requests are heard; jobs of the agent before this one go on or end."""
        self._hands = hands
        for job in self._left_over:
            if job.lease is None:
                continue
            self._live[job.job] = live = _Live(job, gated=job.place is not None)
            if job.bounds is not None and (said := job.bounds.said) is not None:
                live.heard = Moment(said.at_us, said.why, said.of_us)
            live.lease = self.metering.notes.get(job.lease.sha256)
            if live.lease is None:
                raise StoreError("bad_state", f"lease {job.lease.sha256} is gone from {self._store.folder}", hint=LOST)
            if job.boot_id != self._clock.boot_id:
                self._final(live, "the host was booted again")
            elif job.place is None or not scope.alive(_target(job.place)):
                self._final(live, "the run ended while the agent was down")
            else:
                logger.warning("job %s goes on under its lease", job.job[:16])
                live.renew_us = _renew_us(job.lease, live.lease)
                self._move(live, Phase.RUNNING)
        self._left_over = []
        self._keep()

    @property
    def busy(self) -> bool:
        """Whether somebody waits, so that the loop should come back at once."""
        return self._door.waiting or any(
            live.phase in (Phase.LOOKING, Phase.ASKING, Phase.STARTING, Phase.ENDING) for live in self._live.values()
        )

    @property
    def running(self) -> bool:
        """Whether a command runs under a lease."""
        return any(live.phase is Phase.RUNNING for live in self._live.values())

    def sampled(self, sample: Sample) -> None:
        """A sample was read, and nothing is written of it yet."""
        if self._gate is not None and len(sample.chips) == len(self.metering.chips()):
            leased = {chip for live in self._live.values() if live.lease is not None for chip in live.job.chips}
            for cause, detail in self._strangers.see(self.metering.chips(), leased, sample):
                self._degraded(cause, detail)
        gaps = self.metering.sampled(sample, self._clock.boot_id)
        for live in self._live.values():
            if mine := [gap for gap in gaps if gap.chip in live.job.chips]:
                self._report(live, "report", None, mine)

    def turn(self) -> None:
        """Do what is due."""
        for heard in self._door.heard():
            self._heard(heard)
        for done in self._errands.done():
            self._done(done)
        for live in list(self._live.values()):
            try:
                self._step(live)
            except (RefusedError, ProtocolError) as error:
                self._refuse(live, error)
        self._look_at_gate()

    def live_leases(self) -> list[LiveLease]:
        """What is held, for whoever looks."""
        now_us = self._now().mono_us
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
                charged_flop=str(self.metering.charged_flop(lease_subject(live.lease))),
                stop_in_s=None if live.stop is None else max(0, live.stop.at_us - now_us) // _SECOND,
                stop_why=None if live.stop is None else live.stop.why,
            )
            for live in self._live.values()
            if live.lease is not None and live.job.lease is not None
        ]

    def live_gate(self) -> LiveGate | None:
        """The gate as it answered last."""
        if self._gate is None:
            return None
        seen = self._gate_seen
        return LiveGate(
            driver=self._driver,
            answers=seen is not None,
            released=None if seen is None or seen.released is None else seen.released.reason,
            trouble=None if seen is None else seen.trouble,
            chips={} if seen is None else {chip.uuid: chip.state for chip in seen.chips},
        )

    # -- who asks

    def _heard(self, heard: Heard) -> None:
        match heard.message:
            case Ask():
                try:
                    self._ask(heard.visitor, heard.message, heard.digests)
                except (RefusedError, ProtocolError) as error:
                    _tell_refusal(heard.visitor, error)
            case Begin(token=token):
                self._begin_run(heard.visitor, token)
            case Ended(status=status):
                for live in self._of(heard.visitor):
                    self._end(live, self._why_ended(live) or f"the command ended with {status}")
            case None:
                for live in self._of(heard.visitor):
                    live.visitor = None
                    if live.phase in (Phase.LOOKING, Phase.ASKING, Phase.LEASED):
                        self._end(live, "whoever asked went away")

    def _why_ended(self, live: _Live) -> str | None:
        """Why a command was stopped, if it was: who stops it does so by the same clock, and may be first to say so."""
        stopped = live.stop is not None and self._now().mono_us >= live.stop.at_us - _SECOND
        return live.stop.why if live.stop is not None and stopped else None

    def _of(self, visitor: Visitor) -> list[_Live]:
        return [live for live in self._live.values() if live.visitor is visitor]

    def _ask(self, visitor: Visitor, ask: Ask, digests: dict[Any, str]) -> None:
        free = self._free()
        chips = sorted(free if ask.chips is None else set(ask.chips))
        if strange := set(chips) - set(free):
            raise RefusedError("chips", f"not a free chip of this host: {', '.join(sorted(strange))}")
        if not chips:
            raise RefusedError("chips", "no chip of this host is free", hint="keyturn-agent status shows who has them")
        if any(
            (live.job.kind, live.job.run, live.job.lineage) == (ask.kind, ask.run, ask.lineage)
            for live in self._live.values()
        ):
            raise RefusedError("busy", "this host runs something under that already: one command at a time for each")
        job = Job(
            job=secrets.token_hex(32),
            boot_id=self._clock.boot_id,
            kind=ask.kind,
            run=ask.run,
            lineage=ask.lineage,
            group=ask.group,
            hosts=ask.hosts,
            chips=chips,
            spec=NOTHING,
            signal=ask.signal,
            phase="looking",
            asked=None,
            lease=None,
            place=None,
            bounds=None,
            reported_us=0,
            why="",
        )
        # Nothing of it is written before it is known to be an entry.
        check_permit(_permit(job, "0" * 64))
        self._live[job.job] = live = _Live(job, visitor=visitor, ask=ask, digests=digests)
        self._tell(live, Told(text="looking at the permit" if ask.kind == "run" else "looking at the policy"))

    def _free(self) -> list[str]:
        taken = {chip for live in self._live.values() for chip in live.job.chips}
        return [chip.uuid for chip in self.metering.chips() if chip.role != "mig_parent" and chip.uuid not in taken]

    # -- one step of a job

    def _step(self, live: _Live) -> None:
        now = self._now()
        match live.phase:
            case Phase.LOOKING:
                if now.mono_us >= live.again_us:
                    self._fetch(live, None)
            case Phase.ASKING:
                self._step_asking(live, now)
            case Phase.LEASED | Phase.STARTING | Phase.RUNNING:
                self._step_running(live, now)
            case Phase.ENDING:
                self._step_ending(live, now)

    def _fetch(self, live: _Live, after: int | None) -> None:
        """Ask for what is said about a job's run, and open it; waits for news where ``after`` is given."""
        run, pin, verifier = live.job.run, self._pin, self._verifier

        def errand() -> Opened | None:
            answer = verifier.permit(run, after, 0 if after is None else _WAIT_S)
            if answer.status == 204:
                return None
            if answer.status == 404:
                raise RefusedError(
                    "unknown_run", "the verifier knows no such run", hint="--run takes the request's hash"
                )
            if answer.status != 200:
                raise UnreachableError("permit", f"the verifier answered with HTTP {answer.status}")
            opened = pin.open(answer.body)
            if opened.bundle.run != run:
                # The permit of another run, or of none, lets nothing be started.
                raise RefusedError("bad_permit", f"not this run's permit (expected {run}, got {opened.bundle.run})")
            return opened

        self._errands.run(f"permit {live.job.job}", errand)

    def _seen(self, live: _Live, opened: Opened | None) -> None:
        """What is said about a run, if it is news."""
        if opened is None:
            return
        self._pin.take(opened)
        live.opened = opened
        now = self._now()
        if opened.bundle.time_us > now.time_us + AHEAD_US:
            self._degraded("verifier_time_ahead", f"a leaf of {opened.bundle.time_us}, {now.time_us} here")
        if opened.run is not None:
            live.heard = heard_stop(opened.run, live.heard, opened.bundle.time_us, now)
        if live.phase is Phase.LOOKING:
            self._check_start(live, opened)
            self._write_permit(live)

    def _check_start(self, live: _Live, opened: Opened) -> None:
        ask, run = live.ask, opened.run
        if ask is None or run is None:
            return
        site = self._store.enrolment.site
        check_run(run, self._now().time_us)
        check_place(run, site, tuple(live.job.chips))
        start = Start(ask.argv, live.digests, {p: d for p, d in ask.told.items() if p not in live.digests})
        checks = check_spec(run.spec, ask.openings, start)
        check_wanted(checks, run.tier.verified, run.spec)
        live.job = msgspec.structs.replace(live.job, spec=checks)
        self._tell(live, Told(text=fit_text(f"{run.request.label}: {describe(checks)}")))

    def _write_permit(self, live: _Live) -> None:
        """Ask for a lease in the log: what was asked for, and by whom, is signed before the verifier answers."""
        job = live.job
        nonce = secrets.token_hex(32)
        if self._hands.writable:
            self._hands.write([_permit(job, nonce)])
        log = self._store.log
        if not self._hands.writable:
            # Whose place in the log nobody knows can't be shown to the verifier: it is asked anew once there is room.
            self._again(live, "there is no room on the disk of this host")
            live.renew_us = None if live.renew_us is None else live.again_us
            return
        asked = Asked(origin=log.name.origin, seq=log.size - 1, nonce=nonce, mono_us=log.chain.mono_us)
        self._hands.checkpoint()
        self._hurry()
        live.job = msgspec.structs.replace(job, asked=asked)
        live.again_us = self._now().mono_us
        if live.phase is Phase.LOOKING:
            self._move(live, Phase.ASKING)
            self._tell(live, Told(text="asking for a lease"))
        self._keep()

    def _step_asking(self, live: _Live, now: Now) -> None:
        """Have the request's receipt, then the lease."""
        asked, log = live.job.asked, self._store.log
        if asked is None or asked.origin != log.name.origin:
            # The log was left for another one: what was asked in it counts for nothing.
            if now.mono_us >= live.again_us:
                self._write_permit(live)
            return
        if log.spool.receipted <= asked.seq or now.mono_us < live.again_us:
            return
        verifier = self._verifier
        origin, seq = asked.origin, asked.seq
        self._errands.run(f"lease {live.job.job}", lambda: verifier.lease(origin, seq))

    def _answered(self, live: _Live, answer: Answer) -> None:
        """What the verifier says to a request for a lease."""
        now = self._now()
        live.again_us = now.mono_us + _RETRY_S * _SECOND
        if answer.status == 200:
            self._adopt(live, answer.body)
            return
        try:
            problem: Problem | None = parse(answer.body, Problem)
        except ProtocolError:
            problem = None
        detail = f"HTTP {answer.status}" if problem is None else problem.detail
        live.again_us = now.mono_us + (answer.retry_after_s or _RETRY_S) * _SECOND
        if answer.status == 422 and problem is not None and problem.code == "lease_refused":
            why = detail.partition(":")[0]
            if why == "too_late":
                self._write_permit(live)
                live.again_us = now.mono_us + _SECOND
                return
            if live.lease is None:
                raise RefusedError(why, f"no lease: {detail}", hint=f"keyturn explain {why}")
        self._tell(live, Told(text=fit_text(f"no lease yet: {detail}")))

    def _adopt(self, live: _Live, data: bytes) -> None:
        """Check a lease, keep it, and only then charge to it."""
        job, opened = live.job, live.opened
        if job.asked is None or opened is None:
            return
        name = self._store.enrolment
        wanted = Wanted(
            job.kind,
            job.run,
            job.lineage,
            name.organisation,
            name.node_id,
            job.boot_id,
            job.asked.nonce,
            tuple(job.chips),
        )
        try:
            subject = lease_subject(parse_lease(data).lease)
            sequence = self._book.sequences.get(subject, -1) if self._book.origin == job.asked.origin else -1
            epoch = 0 if job.run is None else self._pin.epoch(job.run)
            lease = check_lease(data, wanted, opened, epoch, sequence, self.metering.charged_flop(subject))
        except BehindError as error:
            logger.warning("%s; looking at the permit again", error)
            self._again(live, str(error))
            self._fetch(live, None)
            return
        except ProtocolError as error:
            # Garbage in place of a lease: asked again, it may be one.
            self._again(live, str(error))
            return
        if lease.time_us > self._now().time_us + AHEAD_US:
            self._degraded("verifier_time_ahead", f"a lease of {lease.time_us}, {self._now().time_us} here")
        first = live.lease is None
        if first and self._spent_us(live, lease, self._now()) <= self._now().mono_us + _SECOND:
            raise RefusedError(
                "exhausted", f"what is left, up to {lease.upto_tflop} TFLOP, lasts for less than a stop takes"
            )
        signed = parse_lease(data)
        holding = Holding(sha256=signed.hash.hex(), origin=job.asked.origin, drawn_us=job.asked.mono_us)
        live.lease = lease
        live.job = msgspec.structs.replace(job, lease=holding, asked=None)
        before = self._book.sequences if self._book.origin == job.asked.origin else {}
        self._book = msgspec.structs.replace(
            self._book, origin=job.asked.origin, sequences={**before, subject: lease.sequence}
        )
        if first:
            # What was measured up to here was under no lease.
            self._hands.flush()
        self.metering.notes.add(signed)
        # After this the lease is this host's, and is never adopted again.
        self._keep()
        self._report(live, "adopted", None)
        live.renew_us = _renew_us(holding, lease)
        if first:
            self._move(live, Phase.LEASED)
            live.token = secrets.token_hex(32)
            notice = None if self._gate is None else f"{NOTICES}/{job.job}.json"
            self._tell(
                live,
                Leased(
                    job=job.job, token=live.token, lease=holding.sha256, chips=job.chips, spec=job.spec, notice=notice
                ),
            )
        self._keep()

    def _again(self, live: _Live, why: str) -> None:
        live.again_us = self._now().mono_us + _RETRY_S * _SECOND
        self._tell(live, Told(text=fit_text(f"no lease yet: {why}")))

    # -- a run

    def _begin_run(self, visitor: Visitor, token: str) -> None:
        live = next(
            (each for each in self._live.values() if each.token and secrets.compare_digest(each.token, token)), None
        )
        if live is None or live.phase is not Phase.LEASED:
            _tell_refusal(visitor, RefusedError("no_job", "no such command waits"))
            return
        live.token = ""
        try:
            target = scope.target_of(visitor.pid, visitor.uid)
        except RefusedError as error:
            _tell_refusal(visitor, error)
            self._refuse(live, error)
            return
        live.stub = visitor
        live.job = msgspec.structs.replace(
            live.job, place=Place(pid=target.pid, start=target.start, cgroup=target.cgroup, session=target.session)
        )
        self._move(live, Phase.STARTING)
        # After this an agent that is started again knows whose processes these are; nothing of theirs has begun.
        self._keep()

    def _step_running(self, live: _Live, now: Now) -> None:
        if live.lease is None or live.job.lease is None:
            return
        self._news(live, now)
        if live.job.lease.origin != self._store.log.name.origin:
            self._moved(live, now)
            return
        run = None if live.opened is None else live.opened.run
        spent_us = self._spent_us(live, live.lease, now)
        stop = stop_of(live.lease, live.job.lease.drawn_us, run, spent_us, now, live.heard)
        stop = self._bounded(live, stop, now)
        live.stop = stop
        self._tell_stop(live, stop, now)
        if now.mono_us >= stop.at_us:
            self._stopped(live, stop)
            return
        if live.phase is not Phase.LEASED:
            self._grant(live, stop)
        if now.mono_us - live.job.reported_us >= self._report_us:
            self._hands.flush()
            self._report(live, "report", None)
        if live.job.asked is not None:
            self._step_asking(live, now)
        elif live.renew_us is not None and now.mono_us >= live.renew_us and live.heard is None:
            self._write_permit(live)
        if live.phase is Phase.RUNNING and now.mono_us >= self._look_us and live.visitor is None:
            self._look_us = now.mono_us + _LOOK_S * _SECOND
            if live.job.place is not None and not scope.alive(_target(live.job.place)):
                self._end(live, "the run ended")

    def _bounded(self, live: _Live, stop: Stop, now: Now) -> Stop:
        """Keep what the permit says of the end; until it is seen again, what was kept holds."""
        kept = live.job.bounds
        if live.opened is not None:
            bounds = bounds_of(live.opened.run, live.heard, now, *self._times(live))
            if moved(kept, bounds, _MOVE_US):
                live.job = msgspec.structs.replace(live.job, bounds=bounds)
                self._keep()
        elif kept is not None and kept.ends_us is not None and kept.ends_us < stop.at_us:
            return Stop(kept.ends_us, "the run's window ends")
        return stop

    def _moved(self, live: _Live, now: Now) -> None:
        """The log was left for another, in which there is no lease: ask for one, and keep to the last stop meanwhile.

        That stop was computed at the peak of the chips, so that it holds whatever they do.
        """
        self._step_asking(live, now)
        if live.stop is not None and now.mono_us >= live.stop.at_us:
            self._stopped(live, live.stop)

    def _spent_us(self, live: _Live, lease: Lease, now: Now) -> int:
        """When the compute of a lease would be used up at peak, with room for what a stop takes.

        As that comes near, what was measured is written sooner, so that less of it counts at peak.
        """
        subject, rate = lease_subject(lease), self.metering.rate(live.job.chips)
        left = max(0, lease.upto_tflop * TFLOP - self.metering.charged_flop(subject))
        room_us = self._times(live)[1] * _SECOND
        point_us = self.metering.point_us(subject) or now.mono_us
        spent_us = point_us + left // rate - room_us
        if spent_us - now.mono_us < self._usage_us and now.mono_us - self._flush_us >= _SECOND:
            self._flush_us = now.mono_us
            self._hands.flush()
            point_us = self.metering.point_us(subject) or now.mono_us
            left = max(0, lease.upto_tflop * TFLOP - self.metering.charged_flop(subject))
            spent_us = point_us + left // rate - room_us
        return spent_us

    def _news(self, live: _Live, now: Now) -> None:
        """Keep one request open that waits for what is said about the run."""
        if now.mono_us < live.news_us or self._errands.busy(f"permit {live.job.job}"):
            return
        after = None if live.opened is None else live.opened.bundle.index
        self._fetch(live, after)

    def _grant(self, live: _Live, stop: Stop) -> None:
        """Tell the gate until when, where that is news."""
        job, lease = live.job, live.job.lease
        if lease is None:
            return
        if self._gate is None:
            self._granted(live)
            return
        moved = live.granted_us is None or abs(stop.at_us - live.granted_us) >= _MOVE_US
        if not moved and live.granted_lease == lease.sha256:
            return
        grace_s, kill_s = self._times(live)
        grant = Grant(
            job=job.job,
            lease=lease.sha256,
            subject="" if live.lease is None else lease_subject(live.lease)[:1000],
            boot_id=job.boot_id,
            chips=job.chips,
            stop_at_us=stop.at_us,
            grace_s=grace_s,
            kill_s=kill_s,
            signal=job.signal,
            why=fit_text(stop.why),
            target=None if job.place is None else _target(job.place),
        )
        gate = self._gate
        if self._errands.run(f"gate {job.job}", lambda: gate.grant(grant)):
            live.granted_us, live.granted_lease, live.gated = stop.at_us, lease.sha256, True

    def _granted(self, live: _Live) -> None:
        """The chips are open: let the command begin."""
        if live.phase is Phase.STARTING:
            if live.stub is not None:
                live.stub.tell(Go())
                live.stub = None
            self._move(live, Phase.RUNNING)
            self._gate_us = 0
            self._keep()

    def _times(self, live: _Live) -> tuple[int, int]:
        """grace and kill, in seconds, of the policy that the lease stands on."""
        if live.opened is None:
            kept = live.job.bounds
            return (0, 60) if kept is None else (kept.grace_s, kept.kill_s)
        if live.opened.run is not None:
            return live.opened.run.tier.grace_s, live.opened.run.policy.stop.kill_s
        policy = live.opened.authority.policies[-1][2]
        return policy.tiers[0].grace_s, policy.stop.kill_s

    def _tell_stop(self, live: _Live, stop: Stop, now: Now) -> None:
        grace_s, kill_s = self._times(live)
        if live.warned or now.mono_us < stop.at_us - grace_s * _SECOND:
            return
        live.warned = True
        in_ms = max(0, stop.at_us - now.mono_us) // 1000
        enforced = self._driver == "compute_mode" and not self._released
        self._tell(live, Stopping(in_ms=in_ms, kill_s=kill_s, enforced=enforced, why=fit_text(stop.why)))

    @property
    def _released(self) -> bool:
        return self._gate_seen is not None and self._gate_seen.released is not None

    def _stopped(self, live: _Live, stop: Stop) -> None:
        """The moment has come. Where a gate enforces, it stops the run; elsewhere the log says that it would be."""
        if self._driver != "compute_mode" or self._released:
            self._degraded("would_stop", f"job {live.job.job[:16]}: {stop.why}")
        self._end(live, stop.why)

    # -- the end of a job

    def _end(self, live: _Live, why: str) -> None:
        """The command has ended, or its time has: give the lease back."""
        if live.phase is Phase.ENDING:
            return
        if live.job.lease is None:
            self._live.pop(live.job.job, None)
            self._keep()
            return
        live.job = msgspec.structs.replace(live.job, why=fit_text(why))
        self._move(live, Phase.ENDING)
        self._keep()
        live.again_us = 0

    def _step_ending(self, live: _Live, now: Now) -> None:
        """Wait until the gate has let go, so that what is left is charged; then say the last word."""
        if self._gate is not None and live.gated:
            if now.mono_us < live.again_us or self._errands.busy(f"gate {live.job.job}"):
                return
            live.again_us = now.mono_us + _SECOND // 2
            gate, job, why = self._gate, live.job.job, live.job.why

            def errand() -> GateStatus:
                gate.stop(job, why)
                return gate.status(self._book.gate_seq)

            self._errands.run(f"gate {job}", errand)
            return
        if live.job.place is not None and scope.alive(_target(live.job.place)):
            self._degraded("survivors", f"job {live.job.job[:16]}: processes are left of it after its lease")
        self._final(live, live.job.why)

    def _final(self, live: _Live, why: str) -> None:
        self._hands.flush()
        self._report(live, "final", why)
        subject = "" if live.lease is None else lease_subject(live.lease)
        flop = self.metering.charged_flop(subject)
        self._tell(live, Over(charged_flop=str(flop), detail=fit_text(why)))
        self._live.pop(live.job.job, None)
        self._keep()

    def _refuse(self, live: _Live, error: Exception) -> None:
        """A job that can't begin, or can't go on."""
        if live.visitor is not None:
            _tell_refusal(live.visitor, error)
        if live.stub is not None:
            _tell_refusal(live.stub, error)
            live.stub = None
        live.visitor = None
        self._end(live, str(error))

    # -- errands that ended

    def _done(self, done: Done) -> None:
        kind, _, job = done.key.partition(" ")
        if kind == "watch":
            self._saw_gate(done)
            return
        live = self._live.get(job)
        if live is None:
            return
        try:
            match kind:
                case "permit":
                    self._done_permit(live, done)
                case "lease":
                    self._done_lease(live, done)
                case _:
                    self._done_gate(live, done)
        except (RefusedError, ProtocolError) as error:
            if live.lease is None or live.phase is Phase.STARTING:
                self._refuse(live, error)
            else:
                # A run that goes on isn't stopped by a verifier that talks nonsense: its lease is what holds.
                logger.error("%s", error)

    def _done_permit(self, live: _Live, done: Done) -> None:
        now = self._now()
        if done.error is None:
            # A verifier that has nothing new, and doesn't wait until it has, is asked at leisure.
            live.news_us = now.mono_us + _SECOND
            if done.value is None:
                live.again_us = live.news_us
            self._seen(live, done.value)
            return
        live.news_us = live.again_us = now.mono_us + _RETRY_S * _SECOND
        if not isinstance(done.error, RefusedError | ProtocolError):
            self._tell(live, Told(text=fit_text(f"the verifier doesn't answer: {done.error}; still waiting")))
            return
        raise done.error

    def _done_lease(self, live: _Live, done: Done) -> None:
        if done.error is None:
            self._answered(live, done.value)
            return
        self._again(live, f"the verifier doesn't answer: {done.error}; still waiting")

    def _done_gate(self, live: _Live, done: Done) -> None:
        if live.phase is Phase.ENDING:
            if isinstance(done.value, GateStatus):
                self._saw(done.value)
                live.gated = any(held.job == live.job.job for held in done.value.grants)
            elif done.error is not None and live.gated:
                logger.error("%s", done.error)
            return
        if done.error is None:
            self._granted(live)
            return
        live.granted_us = None
        if live.phase is Phase.STARTING:
            # What it may have kept all the same ends with the process that never begins.
            live.gated = False
            raise done.error if isinstance(done.error, RefusedError) else RefusedError("gate", str(done.error))
        logger.error("%s", done.error)

    # -- the gate

    def _look_at_gate(self) -> None:
        now_us = self._now().mono_us
        if self._gate is None or now_us < self._gate_us:
            return
        self._gate_us = now_us + _GATE_S * _SECOND
        gate, after = self._gate, self._book.gate_seq
        self._errands.run("watch", lambda: gate.status(after))

    def _saw_gate(self, done: Done) -> None:
        if done.error is not None:
            if self._gate_seen is not None:
                logger.error("%s", done.error)
            self._gate_seen = None
            return
        self._saw(done.value)
        held = {grant.job for grant in done.value.grants}
        for live in self._live.values():
            if live.phase is Phase.RUNNING and live.job.job not in held:
                # A gate that lost its state is told again; one that ended the run is not.
                live.granted_us = None

    def _saw(self, status: GateStatus) -> None:
        """What happened at the gate that the log has to say."""
        for event in status.events:
            if event.seq <= self._book.gate_seq:
                continue
            match event.kind:
                case "released":
                    self._degraded("gate_released", event.detail)
                case "survivors":
                    self._degraded("survivors", f"job {(event.job or '')[:16]}: {event.detail}")
                case "would_stop":
                    self._degraded("would_stop", f"job {(event.job or '')[:16]}: {event.detail}")
                case _:
                    pass
        self._gate_seen = status
        seq = max(self._book.gate_seq, *(event.seq for event in status.events), 0)
        if seq != self._book.gate_seq:
            self._book = msgspec.structs.replace(self._book, gate_seq=seq)
            self._keep()

    # -- small things

    def _report(
        self,
        live: _Live,
        event: Literal["adopted", "report", "final"],
        reason: str | None,
        gaps: Sequence[LeaseGap] = (),
    ) -> None:
        """Say what was charged, which the writer fills in; signed at once."""
        holding = live.job.lease
        if holding is None or holding.origin != self._store.log.name.origin:
            return
        now_us = self._now().mono_us
        body = LeaseBody(
            charged_flop="0",
            event=event,
            gaps=list(gaps),
            lease=holding.sha256,
            reason=None if reason is None else fit_text(reason),
        )
        live.job = msgspec.structs.replace(live.job, reported_us=now_us)
        self._hands.write([body])
        self._hands.checkpoint()
        self._hurry()

    def _degraded(self, cause: str, detail: str) -> None:
        logger.warning("%s: %s", cause, detail)
        self._hands.write([DegradedBody(cause=cause, interval_us=None, detail=fit_text(detail))])

    def _move(self, live: _Live, phase: Phase) -> None:
        live.job = msgspec.structs.replace(live.job, phase=phase.value)

    def _keep(self) -> None:
        jobs = [live.job for live in self._live.values() if live.job.lease is not None]
        book = msgspec.structs.replace(self._book, jobs=jobs)
        if book != self._book or not (self._store.folder / lease_files.NAME).exists():
            self._book = book
            lease_files.keep(self._store.folder, book)

    def _now(self) -> Now:
        now = self._clock.now()
        return Now(now.mono_us, now.time_us)

    def _tell(self, live: _Live, message: ToExec) -> None:
        if live.visitor is not None:
            live.visitor.tell(message)


def _permit(job: Job, nonce: str) -> PermitBody:
    """The entry that asks for a lease."""
    return PermitBody(
        chips=job.chips,
        group=job.group,
        hosts=job.hosts,
        kind=job.kind,
        lineage=job.lineage,
        nonce=nonce,
        run=job.run,
        spec=job.spec,
    )


def _renew_us(holding: Holding, lease: Lease) -> int:
    """When to ask for the next one."""
    return holding.drawn_us + min(lease.renew_s, max(1, lease.ttl_s // 2)) * _SECOND


def _target(place: Place) -> Target:
    return Target(place.pid, place.start, place.cgroup, place.session)


def _tell_refusal(visitor: Visitor, error: Exception) -> None:
    code = error.code if isinstance(error, AgentError) else str(getattr(error, "code", "refused"))
    hint = error.hint if isinstance(error, AgentError) else None
    visitor.tell(
        Refused(code=code, detail=fit_text(str(error)), hint=None if hint is None else fit_text(hint), retry=False)
    )
