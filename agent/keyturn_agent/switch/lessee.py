"""The agent's side of leases, in the daemon's thread: hears who asks, and takes each job from one step to the next.

Nothing here waits. What takes time (the verifier, the gate) is an errand; what the log has to say goes through the
daemon's hands. Each step is durable before the next one rests on it: the nonce in a signed entry, the lease on disk
before a chip is opened for it, what was charged in signed reports.
"""

import logging
import secrets
from collections.abc import Callable
from typing import Any, Final

from keyturn_agent.errors import LOST, RefusedError, StoreError
from keyturn_agent.ports import Clock, Sample, SwitchVerifier
from keyturn_agent.status import LiveGate, LiveLease
from keyturn_agent.store import Store
from keyturn_agent.switch import scope
from keyturn_agent.switch.asking import Ask, Attach, Begin, Begun, Ended, Stopping, Told
from keyturn_agent.switch.door import Door, Heard, Visitor
from keyturn_agent.switch.ending import Ending, alive, tell_refusal
from keyturn_agent.switch.errands import Done, Errands
from keyturn_agent.switch.gate_word import Driver
from keyturn_agent.switch.gatelink import GateLink
from keyturn_agent.switch.gating import Gating
from keyturn_agent.switch.jobs import Hands, Jobs, Live, pick
from keyturn_agent.switch.lease_state import SECOND, Job, Moment, Now, Phase, Place, Stop, renew_us, stopped_by
from keyturn_agent.switch.leasing import Leasing, request
from keyturn_agent.switch.metering import Metering
from keyturn_agent.switch.permits import Permits
from keyturn_agent.switch.pin import Pin
from keyturn_agent.switch.programs import Programs
from keyturn_agent.switch.spec import NOTHING
from keyturn_agent.switch.strangers import Strangers
from keyturn_agent.switch.timers import Timers
from keyturn_protocol.canonical import fit_text
from keyturn_protocol.entry_log import DegradedBody
from keyturn_protocol.entry_switch import check_permit
from keyturn_protocol.errors import ProtocolError

logger = logging.getLogger(__name__)

_LOOK_S: Final = 2


class Lessee:
    """Jobs on this host.

    :param gate: the gate, or None where there is none.
    :param expected: what the configuration says that the gate does.
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
        expected: Driver,
        report_s: int,
        usage_us: int,
        hurry: Callable[[], None],
    ) -> None:
        self._store = store
        self._errands = errands
        self._door = door
        self._report_us = report_s * SECOND
        self._look_us = 0
        self._strangers = Strangers()
        self.metering = Metering(store)
        self._jobs = Jobs(store, clock, self.metering, hurry)
        self._timers = Timers(self._jobs, usage_us)
        self._permits = Permits(self._jobs, errands, pin, verifier, self._timers)
        self._gating = Gating(self._jobs, errands, gate, expected)
        self._ending = Ending(self._jobs, self._gating)
        self._programs = Programs(self._jobs, self._gating, self._ending, self._timers)
        self._leasing = Leasing(self._jobs, errands, verifier, self._permits, self._timers, notices=self._gating.there)

    # -- for the daemon

    def meet_gate(self) -> None:
        """Ask what the gate does, before the first inventory says so."""
        self._gating.meet()

    @property
    def gate(self) -> Driver:
        """What the gate does, by its own word."""
        return self._gating.driver

    def still(self) -> list[DegradedBody]:
        """What isn't as configured, for the start of an agent and of a log."""
        return self._gating.still()

    def begin(self, hands: Hands) -> None:
        """From here on requests are heard; jobs of the agent before this one go on or end."""
        self._jobs.hands = hands
        for live in self._jobs.take_up():
            self._take_up(live)
        self._jobs.keep()

    @property
    def busy(self) -> bool:
        """Whether somebody waits, so that the loop should come back at once."""
        return self._door.waiting or any(
            live.looked is not None or live.phase in (Phase.LOOKING, Phase.ASKING, Phase.STARTING, Phase.ENDING)
            for live in self._jobs
        )

    @property
    def running(self) -> bool:
        """Whether a command runs under a lease."""
        return any(live.phase is Phase.RUNNING for live in self._jobs)

    def leave(self, why: str) -> None:
        """The log ends, and what is open is written: so do its leases."""
        self._jobs.leave(why)

    @property
    def holds(self) -> bool:
        """Whether any lease is held."""
        return any(live.lease is not None for live in self._jobs)

    def sampled(self, sample: Sample) -> None:
        """A sample was read, and nothing is written of it yet."""
        if self._gating.there and len(sample.chips) == len(self.metering.chips()):
            leased = {chip for live in self._jobs if live.lease is not None for chip in live.job.chips}
            for cause, detail in self._strangers.see(self.metering.chips(), leased, sample):
                self._jobs.degraded(cause, detail)
        gaps = self.metering.sampled(sample, self._jobs.boot_id)
        for live in self._jobs:
            if mine := [gap for gap in gaps if gap.chip in live.job.chips]:
                self._jobs.report(live, "report", None, mine)

    def turn(self) -> None:
        """Do what is due."""
        for heard in self._door.heard():
            self._heard(heard)
        for done in self._errands.done():
            self._done(done)
        for live in self._jobs:
            try:
                self._step(live)
            except (RefusedError, ProtocolError) as error:
                self._ending.refuse(live, error)
        self._gating.look(self._jobs.now())

    def live_leases(self) -> list[LiveLease]:
        """What is held, for whoever looks."""
        return self._jobs.live_leases()

    def live_gate(self) -> LiveGate | None:
        """The gate as it answered last."""
        return self._gating.live()

    # -- who asks

    def _heard(self, heard: Heard) -> None:
        match heard.message:
            case Ask():
                try:
                    self._ask(heard.visitor, heard.message, heard.digests)
                except (RefusedError, ProtocolError) as error:
                    tell_refusal(heard.visitor, error)
            case Begin(token=token):
                self._begin_run(heard.visitor, token)
            case Attach(job=job):
                self._attach(heard.visitor, job)
            case Begun():
                self._programs.begun(heard.visitor)
            case Ended(status=status):
                self._programs.ended(heard.visitor, status)
                for live in self._jobs.of(heard.visitor):
                    why = stopped_by(live.stop, self._jobs.now())
                    self._ending.end(live, why or f"the command ended with {status}")
            case None:
                self._programs.left(heard.visitor)
                for live in self._jobs.of(heard.visitor):
                    live.visitor = None
                    if live.phase in (Phase.LOOKING, Phase.ASKING, Phase.LEASED):
                        self._ending.end(live, "whoever asked went away")

    def _ask(self, visitor: Visitor, ask: Ask, digests: dict[Any, str]) -> None:
        chips = pick(self._jobs.free(), ask.chips)
        what = (ask.kind, ask.run, ask.lineage)
        if any((live.job.kind, live.job.run, live.job.lineage) == what for live in self._jobs):
            raise RefusedError("busy", "this host runs something under that already: one command at a time for each")
        job = Job(
            job=secrets.token_hex(32),
            boot_id=self._jobs.boot_id,
            kind=ask.kind,
            run=ask.run,
            lineage=ask.lineage,
            group=ask.group,
            hosts=ask.hosts,
            chips=chips,
            spec=NOTHING,
            approved={},
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
        check_permit(request(job, "0" * 64, job.spec))
        live = Live(job, visitor=visitor, ask=ask, digests=digests)
        self._jobs.add(live)
        live.tell(Told(text="looking at the permit" if ask.kind == "run" else "looking at the policy"))

    def _begin_run(self, visitor: Visitor, token: str) -> None:
        live = next((each for each in self._jobs if each.token and secrets.compare_digest(each.token, token)), None)
        asker = None if live is None else live.visitor
        if (
            live is None
            or live.phase is not Phase.LEASED
            or asker is None
            or visitor.uid != asker.uid
            # A token may be stolen; whose child it is the kernel says, and whose lease it isn't keeps it waiting.
            or scope.parent_of(visitor.pid) != asker.pid
        ):
            tell_refusal(visitor, RefusedError("no_job", "no such command waits"))
            return
        live.token = ""
        try:
            target = scope.target_of(visitor.pid, visitor.uid)
            self._programs.begin(live, visitor)
        except RefusedError as error:
            tell_refusal(visitor, error)
            self._ending.refuse(live, error)
            return
        live.stub = visitor
        live.change(place=Place(pid=target.pid, start=target.start, cgroup=target.cgroup, session=target.session))
        live.move(Phase.STARTING)
        # After this an agent that is started again knows whose processes these are; nothing of theirs has begun.
        self._jobs.keep()

    def _attach(self, visitor: Visitor, job: str) -> None:
        """Whoever started a job under the agent before this one hears of it again, and may say that it has ended."""
        live = self._jobs.get(job)
        place = None if live is None else live.job.place
        # Its child is told by the kernel: the job's number is in the environment of the run, for anybody to read.
        if live is None or live.visitor is not None or place is None or scope.parent_of(place.pid) != visitor.pid:
            tell_refusal(visitor, RefusedError("no_job", "no such command runs under a lease here"))
            return
        live.visitor = visitor
        live.warned = False
        live.tell(Told(text="the agent is back"))
        if live.phase is Phase.ENDING:
            enforced, kill_s = self._gating.enforces, self._timers.times(live).kill_s
            live.tell(Stopping(in_ms=0, kill_s=kill_s, enforced=enforced, why=live.job.why))

    # -- one step of a job

    def _step(self, live: Live) -> None:
        now = self._jobs.now()
        match live.phase:
            case Phase.LOOKING:
                if now.mono_us >= live.again_us:
                    self._permits.look(live)
            case Phase.ASKING:
                self._leasing.step(live, now)
            case Phase.LEASED | Phase.STARTING | Phase.RUNNING:
                self._step_running(live, now)
            case Phase.ENDING:
                self._ending.step(live, now)

    def _step_running(self, live: Live, now: Now) -> None:
        holding = live.job.lease
        if live.lease is None or holding is None:
            return
        self._permits.follow(live, now)
        self._programs.step(live, now)
        if holding.origin != self._store.log.name.origin:
            self._moved(live, now)
            return
        live.last = None
        live.stop = stop = self._timers.stop(live, live.lease, holding.drawn_us, now)
        if self._stops(live, stop, now):
            return
        if live.phase is not Phase.LEASED:
            self._gating.grant(live, stop, self._timers.times(live))
        if now.mono_us - live.job.reported_us >= self._report_us:
            self._jobs.hands.flush()
            self._jobs.report(live, "report", None)
        self._leasing.renew(live, now)
        if live.phase is Phase.RUNNING and now.mono_us >= self._look_us and live.visitor is None:
            self._look_us = now.mono_us + _LOOK_S * SECOND
            if live.job.place is not None and not alive(live.job.place):
                self._ending.end(live, "the run ended")

    def _moved(self, live: Live, now: Now) -> None:
        """The log was left for another, in which there is no lease: ask for one, and keep to the last stop meanwhile,
        or to a sooner one that somebody says.

        That stop was computed at the peak of the chips, so that it holds whatever they do.
        """
        self._leasing.step(live, now)
        if live.lease is None or live.job.lease is None:
            return
        if live.last is None:
            live.last = live.stop or self._timers.stop(live, live.lease, live.job.lease.drawn_us, now)
        live.stop = stop = self._timers.meanwhile(live, live.last, now)
        if not self._stops(live, stop, now) and live.phase is Phase.RUNNING:
            self._gating.grant(live, stop, self._timers.times(live))

    def _stops(self, live: Live, stop: Stop, now: Now) -> bool:
        """Whether the moment has come; whoever asked is told before."""
        self._tell_stop(live, stop, now)
        if now.mono_us < stop.at_us:
            return False
        self._ending.stopped(live, stop)
        return True

    def _tell_stop(self, live: Live, stop: Stop, now: Now) -> None:
        times = self._timers.times(live)
        if live.warned or now.mono_us < stop.at_us - times.grace_s * SECOND:
            return
        live.warned = True
        in_ms = max(0, stop.at_us - now.mono_us) // 1000
        live.tell(Stopping(in_ms=in_ms, kill_s=times.kill_s, enforced=self._gating.enforces, why=fit_text(stop.why)))

    # -- errands that ended

    def _done(self, done: Done) -> None:
        kind, _, job = done.key.partition(" ")
        if kind == "watch":
            self._gating.looked(done)
            return
        live = self._jobs.get(job)
        if live is None:
            return
        try:
            match kind:
                case "permit":
                    if self._permits.answered(live, done) and live.phase is Phase.LOOKING:
                        self._permits.check_start(live)
                        self._leasing.ask(live)
                case "lease":
                    self._leasing.answered(live, done)
                case _:
                    self._gating.answered(live, done)
        except (RefusedError, ProtocolError) as error:
            if live.lease is None or live.phase is Phase.STARTING:
                self._ending.refuse(live, error)
            else:
                # A run that goes on isn't stopped by a verifier that talks nonsense: its lease is what holds.
                logger.error("%s", error)

    # -- what is left of an agent before this one

    def _take_up(self, live: Live) -> None:
        """A job of the agent before this one."""
        job, holding = live.job, live.job.lease
        if holding is None:
            return
        if job.bounds is not None and (said := job.bounds.said) is not None:
            live.heard = Moment(said.at_us, said.why, said.of_us)
        live.lease = self.metering.notes.get(holding.sha256)
        if live.lease is None:
            raise StoreError("bad_state", f"lease {holding.sha256} is gone from {self._store.folder}", hint=LOST)
        if self.metering.has_last_word(live.subject, holding.sha256):
            # The agent before this one died between saying it and forgetting the job: twice would be one too many.
            self._jobs.drop(live)
        elif job.boot_id != self._jobs.boot_id:
            self._ending.final(live, "the host was booted again")
        elif job.place is None or not alive(job.place):
            self._ending.final(live, "the run ended while the agent was down")
        else:
            logger.warning("job %s goes on under its lease", job.job[:16])
            live.renew_us = renew_us(holding, live.lease)
            live.move(Phase.RUNNING)
