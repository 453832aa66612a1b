"""Clocks, and the wish to stop that cuts a wait short."""

import os
import secrets
import select
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from keyturn_agent.errors import UsageError
from keyturn_agent.ports import Clock, Moment, Stop

MADE_US: Final = 1_735_689_600_000_000
"""2025-01-01: no clock that is right says less."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class StopFlag:
    """A :class:`~keyturn_agent.ports.Stop` that a signal handler may set.

    A pipe rather than a ``threading.Event``: setting an event takes a lock, and a handler runs in the very
    thread that may hold it.
    """

    def __init__(self) -> None:
        self._requested = False
        self._out, self._in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @property
    def requested(self) -> bool:
        return self._requested

    def request(self) -> None:
        """Ask for the end; safe in a signal handler and more than once."""
        if not self._requested:
            self._requested = True
            os.write(self._in, b"\0")

    def wait(self, seconds: float) -> None:
        if not self._requested and seconds > 0:
            poll = select.poll()
            poll.register(self._out, select.POLLIN)
            poll.poll(seconds * 1000)


_SPREAD_US: Final = 20_000
_READS: Final = 10


class Reading(NamedTuple):
    """Both clocks, and how far apart in time they may have been read, in µs."""

    moment: Moment
    spread_us: int


def read_clocks() -> Reading:
    """Both clocks once."""
    before_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
    time_us = time.time_ns() // 1000
    spread_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000 - before_us
    return Reading(Moment(before_us, time_us), spread_us)


class SystemClock:
    """The host's clocks: CLOCK_BOOTTIME, which counts while the host sleeps, and the wall clock."""

    def __init__(self, read: Callable[[], Reading] = read_clocks) -> None:
        self._read = read

    @property
    def boot_id(self) -> str:
        return _BOOT_ID.read_text().strip()

    def now(self) -> Moment:
        best = self._read()
        for _ in range(_READS):
            if best.spread_us <= _SPREAD_US:
                break
            # The host was busy with something else between the two: that would look like a step of one of them.
            best = min(best, self._read(), key=lambda reading: reading.spread_us)
        return best.moment

    def wait_until(self, mono_us: int, stop: Stop) -> None:
        stop.wait((mono_us - self.now().mono_us) / 1e6)


def sane(clock: Clock) -> Clock:
    """The clock, if it can be right: a host's first entry is dated with it, and nobody can take that back.

    :raises UsageError: ``bad_clock``: it is before this program was made.
    """
    now_us = clock.now().time_us
    if now_us < MADE_US:
        shown = datetime.fromtimestamp(now_us // 1_000_000, UTC).isoformat()
        raise UsageError(
            "bad_clock",
            f"this host's clock says {shown}, which is before this program was made",
            hint="set it first: is NTP or PTP running?",
        )
    return clock


class SimulatedClock:
    """A clock that advances only by waiting, for replays.

    :param time_us: where the wall clock starts; CLOCK_BOOTTIME starts at 0.
    :param boot_id: a fresh one for each start, as a simulated boot is.
    :param speed: simulated seconds in a real one; None doesn't wait at all.
    """

    def __init__(self, time_us: int, boot_id: str, speed: int | None = None) -> None:
        self._start_us = time_us
        self._boot_id = boot_id
        self._speed = speed
        self._mono_us = 0

    @property
    def boot_id(self) -> str:
        return self._boot_id

    def now(self) -> Moment:
        return Moment(self._mono_us, self._start_us + self._mono_us)

    def wait_until(self, mono_us: int, stop: Stop) -> None:
        if mono_us <= self._mono_us or stop.requested:
            return
        if self._speed is not None:
            stop.wait((mono_us - self._mono_us) / 1e6 / self._speed)
            if stop.requested:
                return
        self._mono_us = mono_us


class SystemRandom:
    """Randomness of the operating system."""

    def uuid4(self) -> str:
        return str(uuid.uuid4())

    def fraction_ppm(self) -> int:
        return secrets.randbelow(1_000_000)
