"""Time as a port: everything that needs the wall clock is given one of these."""

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""UTC in microseconds."""


def wall_clock() -> int:
    """The machine's clock."""
    return time.time_ns() // 1_000
