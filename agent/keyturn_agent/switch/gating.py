"""The gate's side of jobs: what it is to hold and until when, what it lets go, and what happened at it."""

import logging
from typing import Final

from keyturn_agent.errors import AgentError, RefusedError
from keyturn_agent.status import LiveGate
from keyturn_agent.switch.asking import Go
from keyturn_agent.switch.errands import Done, Errands
from keyturn_agent.switch.gate_word import Driver, GateWord
from keyturn_agent.switch.gatelink import Event, GateLink, GateStatus, Grant, Target
from keyturn_agent.switch.jobs import Jobs, Live, degraded
from keyturn_agent.switch.lease_state import SECOND, Now, Phase, Place, Stop, Times
from keyturn_agent.switch.timers import MOVE_US
from keyturn_protocol.canonical import fit_text
from keyturn_protocol.entry_log import DegradedBody

logger = logging.getLogger(__name__)

_LOOK_S: Final = 10
_FIRST_S: Final = 2
"""How long the first inventory waits for the gate's word; a gate that is slower makes another inventory."""


class Gating:
    """What this host has with its gate.

    :param gate: None where there is none.
    :param expected: what the configuration says that it does.
    """

    def __init__(self, jobs: Jobs, errands: Errands, gate: GateLink | None, expected: Driver) -> None:
        self._jobs = jobs
        self._errands = errands
        self._gate = gate
        self._word = GateWord(expected)
        self._look_us = 0

    @property
    def there(self) -> bool:
        """Whether there is a gate at all."""
        return self._gate is not None

    @property
    def enforces(self) -> bool:
        """Whether it stops runs by itself, as far as is known."""
        return self._word.enforces

    @property
    def driver(self) -> Driver:
        """What the gate does, by its own word; ``none`` until that is known."""
        return self._word.driver

    def still(self) -> list[DegradedBody]:
        """What isn't as configured, for the start of an agent and of a log."""
        return [] if (wrong := self._word.wrong) is None else [degraded(*wrong)]

    def live(self) -> LiveGate | None:
        """The gate as it answered last."""
        if self._gate is None:
            return None
        seen = self._word.status
        return LiveGate(
            driver=self._word.driver,
            expected=self._word.expected,
            answers=seen is not None,
            released=None if seen is None or seen.released is None else seen.released.reason,
            trouble=None if seen is None else seen.trouble,
            chips={} if seen is None else {chip.uuid: chip.state for chip in seen.chips},
        )

    # -- a job's grant

    def grant(self, live: Live, stop: Stop, times: Times) -> None:
        """Tell the gate until when, where that is news."""
        job, lease = live.job, live.job.lease
        if lease is None:
            return
        if self._gate is None:
            self._opened(live)
            return
        moved = live.granted_us is None or abs(stop.at_us - live.granted_us) >= MOVE_US
        if not moved and live.granted_lease == lease.sha256:
            return
        grant = Grant(
            job=job.job,
            lease=lease.sha256,
            subject=live.subject[:1000],
            boot_id=job.boot_id,
            chips=job.chips,
            stop_at_us=stop.at_us,
            grace_s=times.grace_s,
            kill_s=times.kill_s,
            signal=job.signal,
            why=fit_text(stop.why),
            target=None if job.place is None else target_of(job.place),
        )
        gate = self._gate
        if self._errands.run(f"gate {job.job}", lambda: gate.grant(grant)):
            live.granted_us, live.granted_lease, live.gated = stop.at_us, lease.sha256, True

    def _opened(self, live: Live) -> None:
        """The chips are open: let the command begin."""
        if live.phase is Phase.STARTING:
            if live.stub is not None:
                live.stub.tell(Go(look=live.looked is not None))
                live.stub = None
            live.move(Phase.RUNNING)
            self._look_us = 0
            self._jobs.keep()

    def let_go(self, live: Live, now: Now) -> bool:
        """Whether the gate holds nothing of a job any more; asks it to let go, until it has."""
        if self._gate is None or not live.gated:
            return True
        if now.mono_us < live.again_us or self._errands.busy(f"gate {live.job.job}"):
            return False
        live.again_us = now.mono_us + SECOND // 2
        gate, job, why, after = self._gate, live.job.job, live.job.why, self._jobs.gate_seq

        def errand() -> GateStatus:
            gate.stop(job, why)
            return gate.status(after)

        self._errands.run(f"gate {job}", errand)
        return False

    def answered(self, live: Live, done: Done) -> None:
        """What came of a grant, or of its end.

        :raises RefusedError: the chips of a job that was to begin aren't open.
        """
        if live.phase is Phase.ENDING:
            if isinstance(done.value, GateStatus):
                self._see(done.value)
                live.gated = any(held.job == live.job.job for held in done.value.grants)
            elif done.error is not None and live.gated:
                logger.error("%s", done.error)
            return
        if done.error is None:
            self._opened(live)
            return
        live.granted_us = None
        if live.phase is Phase.STARTING:
            # What it may have kept all the same ends with the process that never begins.
            live.gated = False
            raise done.error if isinstance(done.error, RefusedError) else RefusedError("gate", str(done.error))
        logger.error("%s", done.error)

    # -- the gate itself

    def meet(self) -> None:
        """Ask once what the gate does, before the first inventory says so. What happened at it is asked for later."""
        if self._gate is None:
            return
        try:
            self._word.answered(self._gate.status(self._jobs.gate_seq, _FIRST_S))
        except AgentError as error:
            logger.warning("%s", error)
        if self._word.wrong is not None:
            logger.warning("%s: %s", *self._word.wrong)

    def look(self, now: Now) -> None:
        """Ask how it stands, now and then."""
        if self._gate is None or now.mono_us < self._look_us:
            return
        self._look_us = now.mono_us + _LOOK_S * SECOND
        gate, after = self._gate, self._jobs.gate_seq
        self._errands.run("watch", lambda: gate.status(after))

    def looked(self, done: Done) -> None:
        """How it stands."""
        if done.error is not None:
            if self._word.status is not None:
                logger.error("%s", done.error)
            before = self._holds()
            self._word.silent(self._jobs.now().mono_us)
            self._changed(before)
            return
        self._see(done.value)
        held = {grant.job for grant in done.value.grants}
        for live in self._jobs:
            if live.phase is Phase.RUNNING and live.job.job not in held:
                # A gate that lost its state is told again; one that ended the run is not.
                live.granted_us = None

    def _see(self, status: GateStatus) -> None:
        """What happened at the gate that the log has to say."""
        for event in status.events:
            if event.seq > self._jobs.gate_seq and (told := told_of(event)) is not None:
                self._jobs.degraded(*told)
        before = self._holds()
        self._word.answered(status)
        self._changed(before)
        self._jobs.gate_said(max(self._jobs.gate_seq, *(event.seq for event in status.events), 0))

    def _holds(self) -> tuple[Driver, bool, tuple[str, str] | None]:
        return self._word.driver, self._word.enforces, self._word.wrong

    def _changed(self, before: tuple[Driver, bool, tuple[str, str] | None]) -> None:
        """Say what the gate does now, where that is news: to whoever reads the log, and to whoever is to be stopped."""
        driver, enforces, wrong = self._holds()
        if wrong is not None and wrong != before[2]:
            self._jobs.degraded(*wrong)
        if driver != before[0]:
            logger.warning("the gate: %s (before: %s)", driver, before[0])
            self._jobs.hands.relist()
            self._jobs.seal()
        if enforces != before[1]:
            for live in self._jobs:
                live.warned = False


def told_of(event: Event) -> tuple[str, str] | None:
    """Cause and detail of what happened at the gate, where the log has to say it."""
    match event.kind:
        case "released":
            return "gate_released", event.detail
        case "survivors" | "would_stop":
            return event.kind, f"job {(event.job or '')[:16]}: {event.detail}"
        case _:
            return None


def target_of(place: Place) -> Target:
    """The processes of a run, as the gate takes them."""
    return Target(place.pid, place.start, place.cgroup, place.session)
