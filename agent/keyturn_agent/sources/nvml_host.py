"""NVML on this host while drivers come and go: opened when it is due, closed when it is over.

Lives in the worker's thread; what leaves it are values.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from keyturn_agent.ports import Clock
from keyturn_agent.sources import nvml
from keyturn_agent.sources.nvml_causes import LIB_RM_VERSION_MISMATCH, NvmlFailure
from keyturn_agent.sources.nvml_session import Answer, Backoff, Session, Versions
from keyturn_protocol.entry_inventory import Chip

T = TypeVar("T")


class _Pause:
    """A :class:`~keyturn_agent.ports.Stop` that nobody requests: the waits here are a tenth of a second."""

    requested = False

    def wait(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the worker saw, as values: its own state is never shared. ``opening`` counts openings of the library."""

    opening: int
    versions: Versions
    chips: tuple[Chip, ...]
    answers: dict[str, Answer]


class NvmlHost:
    """NVML on this host, over its openings and closings. Only the worker's thread calls its methods."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._session: Session | None = None
        self._backoff = Backoff()
        self._failure: NvmlFailure | None = None
        self._opening = 0

    @property
    def is_open(self) -> bool:
        return self._session is not None

    def look(self, now_us: int) -> Snapshot:
        """One sample of all chips, after opening the library if that is due.

        :raises NvmlFailure: what is wrong, or was when it was last tried.
        """
        session = self._opened(now_us)
        answers = self._guarded(lambda: session.read(now_us), now_us)
        self._guarded(lambda: session.look_again(now_us), now_us)
        self._backoff = Backoff()
        return self._snapshot(session, answers)

    def peek(self, now_us: int) -> Snapshot:
        """The chips, without a sample.

        :raises NvmlFailure: as :meth:`look`.
        """
        return self._snapshot(self._opened(now_us), {})

    def _snapshot(self, session: Session, answers: dict[str, Answer]) -> Snapshot:
        return Snapshot(self._opening, session.versions, tuple(session.chips), answers)

    def processes(self) -> dict[str, tuple[nvml.GpuProcess, ...] | None]:
        return {} if self._session is None else self._session.processes(self._clock.now().mono_us)

    def accounting(self) -> tuple[int, int]:
        return (0, 0) if self._session is None else self._session.accounting()

    def close(self) -> None:
        """Close the library; the next :meth:`look` opens it at once."""
        session, self._session = self._session, None
        self._failure, self._backoff = None, Backoff()
        if session is not None:
            session.close()

    def _opened(self, now_us: int) -> Session:
        if self._session is None:
            if self._failure is not None and not self._backoff.due(now_us):
                raise self._failure
            self._session = self._guarded(self._open, now_us)
            self._failure = None
            self._opening += 1
        return self._session

    def _open(self) -> Session:
        return Session(lambda: self._clock.now().mono_us, self._wait)

    def _guarded(self, ask: Callable[[], T], now_us: int) -> T:
        """The answer; when the session is over with it, it is closed and opened again later."""
        try:
            return ask()
        except NvmlFailure as failure:
            session, self._session = self._session, None
            if session is not None:
                session.close()
            if failure.code == LIB_RM_VERSION_MISMATCH:
                nvml.unload_library()
            self._failure = failure
            self._backoff.failed(now_us)
            raise

    def _wait(self, wait_us: int) -> None:
        self._clock.wait_until(self._clock.now().mono_us + wait_us, _Pause())
