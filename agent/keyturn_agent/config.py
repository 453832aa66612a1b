"""What a run of the agent can be told, as one frozen value. Times are in µs of the log's clock unless named."""

from dataclasses import dataclass

from keyturn_agent.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of ``keyturn-agent run``.

    ``drain_s``, ``jitter_s``, ``timeout_s`` and ``incarnation_s`` are seconds of real time.
    """

    interval_us: int = 10_000_000
    """Length of a usage entry."""
    checkpoint_us: int = 300_000_000
    heartbeat_us: int = 60_000_000
    clock_step_us: int = 500_000
    """A smaller difference between the wall clock and CLOCK_BOOTTIME is not written as a step."""
    jitter_s: int = 30
    """Each upload waits a random part of this, so that a fleet doesn't knock all at once."""
    timeout_s: int = 30
    """For one exchange with the verifier."""
    drain_s: int = 30
    """At the end, wait this long for receipts that are still owed."""
    incarnation_s: int = 600
    """At most one new incarnation in this time."""

    def __post_init__(self) -> None:
        for name in ("interval_us", "checkpoint_us", "heartbeat_us", "timeout_s"):
            if getattr(self, name) <= 0:
                raise UsageError("bad_flag", f"{name}: must be > 0 (got {getattr(self, name)})")
        for name in ("jitter_s", "drain_s", "incarnation_s"):
            if getattr(self, name) < 0:
                raise UsageError("bad_flag", f"{name}: must be >= 0 (got {getattr(self, name)})")
