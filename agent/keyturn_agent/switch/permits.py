"""What the verifier says about the run of a job: looked at before it starts, and followed while it goes on."""

from typing import Final

from keyturn_agent.errors import RefusedError, UnreachableError
from keyturn_agent.ports import SwitchVerifier
from keyturn_agent.switch.asking import Told
from keyturn_agent.switch.entitlement import check_allowance
from keyturn_agent.switch.errands import Done, Errands
from keyturn_agent.switch.jobs import Jobs, Live
from keyturn_agent.switch.lease_answer import RETRY_S
from keyturn_agent.switch.lease_check import AHEAD_US, check_place, check_run
from keyturn_agent.switch.lease_state import SECOND, Now, heard_stop
from keyturn_agent.switch.pin import Pin
from keyturn_agent.switch.spec import Start, check_spec, check_wanted, describe
from keyturn_agent.switch.timers import Timers
from keyturn_protocol.canonical import fit_text
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.permit import Opened

_WAIT_S: Final = 25
"""How long one request waits for news."""


class Permits:
    """The permits of jobs, under the root that this host pinned."""

    def __init__(self, jobs: Jobs, errands: Errands, pin: Pin, verifier: SwitchVerifier, timers: Timers) -> None:
        self._jobs = jobs
        self._errands = errands
        self._pin = pin
        self._verifier = verifier
        self._timers = timers

    def epoch(self, run: str | None) -> int:
        """The highest of a run that was seen; 0 where there is no run."""
        return 0 if run is None else self._pin.epoch(run)

    def look(self, live: Live, after: int | None = None) -> None:
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

    def follow(self, live: Live, now: Now) -> None:
        """Keep one request open that waits for what is said about the run."""
        if now.mono_us < live.news_us or self._errands.busy(f"permit {live.job.job}"):
            return
        self.look(live, None if live.opened is None else live.opened.bundle.index)

    def answered(self, live: Live, done: Done) -> bool:
        """Believe what was opened; returns whether it is news.

        :raises RefusedError, ProtocolError: it isn't believed.
        """
        now = self._jobs.now()
        if done.error is None:
            # A verifier that has nothing new, and doesn't wait until it has, is asked at leisure.
            live.news_us = now.mono_us + SECOND
            if done.value is None:
                live.again_us = live.news_us
                return False
            self._see(live, done.value)
            return True
        live.news_us = live.again_us = now.mono_us + RETRY_S * SECOND
        if not isinstance(done.error, RefusedError | ProtocolError):
            live.tell(Told(text=fit_text(f"the verifier doesn't answer: {done.error}; still waiting")))
            return False
        raise done.error

    def _see(self, live: Live, opened: Opened) -> None:
        """Remember what is said, and from when on this host knows of a stop."""
        self._pin.check(opened)
        live.opened = opened
        now = self._jobs.now()
        if opened.bundle.time_us > now.time_us + AHEAD_US:
            self._jobs.degraded("verifier_time_ahead", f"a leaf of {opened.bundle.time_us}, {now.time_us} here")
        if opened.run is not None:
            live.heard = heard_stop(opened.run, live.heard, opened.bundle.time_us, now, live.replaced)
        # The stop first: after a crash between the two nothing is known of a suspension by its epoch alone.
        self._timers.keep(live, now)
        self._pin.take(opened)

    def check_start(self, live: Live) -> None:
        """That the permit that was seen lets this job begin, here and with what it says that it starts; without a run,
        that this host has an allowance.

        :raises RefusedError: it doesn't.
        """
        ask, opened, here = live.ask, live.opened, self._jobs.store.enrolment
        if ask is None or opened is None:
            return
        run = opened.run
        if run is None:
            check_allowance(opened.standing, here.organisation)
            return
        check_run(run, self._jobs.now().time_us)
        check_place(run, here.site, tuple(live.job.chips))
        start = Start(ask.argv, live.digests, {p: d for p, d in ask.told.items() if p not in live.digests})
        checks = check_spec(run.spec, ask.openings, start)
        check_wanted(checks, run.tier.verified, run.spec)
        live.change(spec=checks, approved=dict(run.spec))
        live.tell(Told(text=fit_text(f"{run.request.label}: {describe(checks)}")))
