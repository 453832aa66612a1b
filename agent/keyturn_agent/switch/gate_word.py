"""What the gate says of itself, held against what the configuration says of it. Pure.

The gate's own word is what evidence repeats: a configuration that promises locks doesn't lock anything. Until the gate
has said what it does, and once it has been silent for long, nothing of the start switch is known to be in force.
"""

from typing import Final, Literal

from keyturn_agent.config import Config
from keyturn_agent.switch.gatelink import GateStatus
from keyturn_agent.switch.lease_state import SECOND

Driver = Literal["none", "observe", "compute_mode"]

MISMATCH: Final = "gate_mismatch"
AWAY: Final = "gate_away"
AWAY_US: Final = 60 * SECOND
"""Silence up to here is a restart. Its locks and its grants outlive that, so that its last word holds meanwhile."""


def expected_of(config: Config) -> Driver:
    """What the configuration says that the gate does."""
    return "none" if config.gate is None else "observe" if config.gate == "observe" else "compute_mode"


class GateWord:
    """What is known of one gate.

    :param expected: what the configuration says that it does; ``none``: there is no gate.
    """

    def __init__(self, expected: Driver) -> None:
        self.expected: Driver = expected
        self.driver: Driver = "none"
        """What it does by its own word."""
        self.status: GateStatus | None = None
        """Its last answer; None while it doesn't answer."""
        self._silent_us: int | None = None
        self._away = False

    @property
    def enforces(self) -> bool:
        """Whether it stops runs by itself."""
        return self.driver == "compute_mode" and not (self.status is not None and self.status.released is not None)

    @property
    def wrong(self) -> tuple[str, str] | None:
        """Cause and detail of what isn't as configured, where the log has to say it."""
        if self._away:
            return AWAY, f"the gate doesn't answer: switch.gate says {self.expected}, and nothing is known to hold"
        if self.driver in ("none", self.expected):
            return None
        does = "locks nothing and stops nothing" if self.driver == "observe" else "locks chips and stops runs"
        return MISMATCH, f"switch.gate says {self.expected}, the gate says {self.driver}: it {does}"

    def answered(self, status: GateStatus) -> None:
        """It said how it stands."""
        self.status, self.driver = status, status.driver
        self._silent_us, self._away = None, False

    def silent(self, now_us: int) -> None:
        """It was asked and didn't answer (CLOCK_BOOTTIME)."""
        self.status = None
        self._silent_us = now_us if self._silent_us is None else self._silent_us
        if now_us - self._silent_us >= AWAY_US:
            self._away, self.driver = True, "none"
