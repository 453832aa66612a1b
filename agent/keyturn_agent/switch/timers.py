"""When each job stops: the earliest end of what its lease, its permit and somebody's word leave it."""

from typing import Final

from keyturn_agent.switch.jobs import Jobs, Live
from keyturn_agent.switch.lease_state import (
    SECOND,
    Now,
    Stop,
    Times,
    bounds_of,
    moved,
    sooner,
    spent_us,
    stop_of,
    times_of,
)
from keyturn_protocol.lease import Lease, lease_subject

MOVE_US: Final = 500_000
"""A stop that moves by less than this isn't told to the gate, and not kept."""


class Timers:
    """The stops of jobs. ``usage_us``: length of a usage entry."""

    def __init__(self, jobs: Jobs, usage_us: int) -> None:
        self._jobs = jobs
        self._usage_us = usage_us
        self._flush_us = 0

    def times(self, live: Live) -> Times:
        """How a job is stopped, by the policy that its lease stands on."""
        return times_of(live.opened, live.job.bounds)

    def stop(self, live: Live, lease: Lease, drawn_us: int, now: Now) -> Stop:
        """The one moment at which a job stops; what its permit says of it is kept."""
        run = None if live.opened is None else live.opened.run
        stop = stop_of(lease, drawn_us, run, self.spent_us(live, lease, now), now, live.heard)
        kept = live.job.bounds
        self.keep(live, now)
        if live.opened is None and kept is not None and kept.ends_us is not None and kept.ends_us < stop.at_us:
            # Until the permit is seen again, what was kept holds.
            return Stop(kept.ends_us, "the run's window ends")
        return stop

    def meanwhile(self, live: Live, last: Stop, now: Now) -> Stop:
        """When a job stops whose log was left: at its last stop, or sooner by what is said of its run since."""
        self.keep(live, now)
        return sooner([last], None if live.opened is None else live.opened.run, now, live.heard)

    def keep(self, live: Live, now: Now) -> None:
        """Keep what the permit says of the end; after this an agent that reaches nobody stops the run all the same."""
        if live.opened is None:
            return
        bounds = bounds_of(live.opened.run, live.heard, now, self.times(live))
        if moved(live.job.bounds, bounds, MOVE_US):
            live.change(bounds=bounds)
            self._jobs.keep()

    def spent_us(self, live: Live, lease: Lease, now: Now) -> int:
        """When the compute of a lease would be used up at peak, with room for what a stop takes.

        As that comes near, what was measured is written sooner, so that less of it counts at peak.
        """
        at_us = self._spent_us(live, lease, now)
        if at_us - now.mono_us < self._usage_us and now.mono_us - self._flush_us >= SECOND:
            self._flush_us = now.mono_us
            self._jobs.hands.flush()
            at_us = self._spent_us(live, lease, now)
        return at_us

    def _spent_us(self, live: Live, lease: Lease, now: Now) -> int:
        subject, metering = lease_subject(lease), self._jobs.metering
        return spent_us(
            lease,
            metering.charged_flop(subject),
            metering.point_us(subject) or now.mono_us,
            metering.rate(live.job.chips),
            self.times(live).kill_s,
        )
