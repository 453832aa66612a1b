"""The end of a job: its gate lets go, what it used is charged, and the last word is said."""

from keyturn_agent.errors import AgentError
from keyturn_agent.switch import scope
from keyturn_agent.switch.asking import Over, Refused
from keyturn_agent.switch.door import Visitor
from keyturn_agent.switch.gating import Gating, target_of
from keyturn_agent.switch.jobs import Jobs, Live
from keyturn_agent.switch.lease_state import Now, Phase, Place, Stop
from keyturn_protocol.canonical import fit_text


class Ending:
    """How jobs end."""

    def __init__(self, jobs: Jobs, gating: Gating) -> None:
        self._jobs = jobs
        self._gating = gating

    def end(self, live: Live, why: str) -> None:
        """The command has ended, or its time has: give the lease back."""
        if live.phase is Phase.ENDING:
            return
        if live.job.lease is None:
            self._jobs.drop(live)
            return
        live.change(why=fit_text(why))
        live.move(Phase.ENDING)
        self._jobs.keep()
        live.again_us = 0

    def stopped(self, live: Live, stop: Stop) -> None:
        """The moment has come. Where a gate enforces, it stops the run; elsewhere the log says that it would be."""
        if not self._gating.enforces:
            self._jobs.degraded("would_stop", f"job {live.job.job[:16]}: {stop.why}")
        self.end(live, stop.why)

    def refuse(self, live: Live, error: Exception) -> None:
        """A job that can't begin, or can't go on."""
        if live.visitor is not None:
            tell_refusal(live.visitor, error)
        if live.stub is not None:
            tell_refusal(live.stub, error)
            live.stub = None
            # It never becomes the command: that it still goes away isn't work that is left after a lease.
            live.change(place=None)
        live.visitor = None
        self.end(live, str(error))

    def step(self, live: Live, now: Now) -> None:
        """Wait until the gate has let go, so that what is left is charged; then say the last word."""
        if not self._gating.let_go(live, now):
            return
        if live.job.place is not None and alive(live.job.place):
            self._jobs.degraded("survivors", f"job {live.job.job[:16]}: processes are left of it after its lease")
        self.final(live, live.job.why)

    def final(self, live: Live, why: str) -> None:
        """The last word on a lease; after this the job is forgotten."""
        self._jobs.hands.flush()
        self._jobs.report(live, "final", why)
        flop = self._jobs.metering.charged_flop(live.subject)
        live.tell(Over(charged_flop=str(flop), detail=fit_text(why)))
        self._jobs.drop(live)


def alive(place: Place) -> bool:
    """Whether anything of a run is left."""
    return scope.alive(target_of(place))


def tell_refusal(visitor: Visitor, error: Exception) -> None:
    """The last word to somebody."""
    code = error.code if isinstance(error, AgentError) else str(getattr(error, "code", "refused"))
    hint = error.hint if isinstance(error, AgentError) else None
    visitor.tell(
        Refused(code=code, detail=fit_text(str(error)), hint=None if hint is None else fit_text(hint), retry=False)
    )
