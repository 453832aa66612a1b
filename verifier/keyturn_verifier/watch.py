"""Waiting for news of runs: any number of requests on the event loop, and one thread that looks.

A request that waits holds a future and no thread. The thread looks twice a second while anybody waits, since another
replica may have said something, and at once after something was said here.
"""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from keyturn_protocol.api import ProblemCode
from keyturn_verifier import translog
from keyturn_verifier.db.engine import reading
from keyturn_verifier.errors import DamagedError
from keyturn_verifier.problems import Refusal
from keyturn_verifier.switch_state import SwitchState

log = logging.getLogger(__name__)

LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    run: str | None
    after: int
    future: "asyncio.Future[None]"


class Watch:
    """Who waits. :meth:`wait` belongs to the event loop; anybody may call :meth:`said`."""

    def __init__(self, engine: Engine, switch: SwitchState, most: int) -> None:
        self._engine = engine
        self._switch = switch
        self._most = most
        self._waiting: set[_Waiter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = threading.Condition()
        self._said = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; those who wait do so on ``loop``."""
        self._loop = loop
        self._thread.start()

    def close(self) -> None:
        """Answer everybody who waits, and let nobody wait any more: the server is about to end."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
            everybody = list(self._waiting)
        self._release(everybody)

    def stop(self) -> None:
        """:meth:`close`, and end the thread. Blocks."""
        self.close()
        if self._thread.is_alive():
            self._thread.join()

    def said(self) -> None:
        """Something was said here."""
        with self._wake:
            self._said = True
            self._wake.notify()

    async def wait(self, run: str | None, after: int, seconds: float) -> None:
        """Return when there may be something about a run in a leaf after ``after``, or the time is over.

        :raises Refusal: ``overloaded``: too many wait.
        """
        with self._waiter(run, after) as waiter:
            try:
                async with asyncio.timeout(seconds):
                    await waiter.future
            except TimeoutError:
                pass

    @contextmanager
    def _waiter(self, run: str | None, after: int) -> Iterator[_Waiter]:
        waiter = _Waiter(run, after, asyncio.get_running_loop().create_future())
        with self._wake:
            if len(self._waiting) >= self._most:
                raise Refusal(ProblemCode.OVERLOADED, f"{self._most} hosts wait for news here; ask again")
            if self._stopping:
                waiter.future.set_result(None)
            # What was said between the caller's own look and this is found by the next one.
            self._waiting.add(waiter)
            if len(self._waiting) == 1:
                self._wake.notify()
        try:
            yield waiter
        finally:
            with self._wake:
                self._waiting.discard(waiter)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._stopping):
                    self._wake.wait()
                if not self._said and not self._stopping:
                    self._wake.wait(timeout=LOOK_S)
                if self._stopping:
                    return
                self._said = False
                waiting = list(self._waiting)
            try:
                self._release(self._with_news(waiting))
            except (DBAPIError, PoolTimeout, DamagedError) as error:
                log.warning("hosts that wait for news: the database can't be read: %s", error)
                self._pause()
            except Exception:
                log.exception("hosts that wait for news: an error of the verifier")
                self._pause()

    def _pause(self) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._stopping, timeout=LOOK_S)

    def _with_news(self, waiting: list[_Waiter]) -> list[_Waiter]:
        with reading(self._engine) as connection, self._switch.caught_up(connection, translog.head(connection).size):
            pass
        newest = {run: self._switch.news(run) for run in {waiter.run for waiter in waiting}}
        return [waiter for waiter in waiting if newest[waiter.run] > waiter.after]

    def _release(self, waiters: list[_Waiter]) -> None:
        if waiters and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_wake_up, waiters)


def _wake_up(waiters: list[_Waiter]) -> None:
    for waiter in waiters:
        if not waiter.future.done():
            waiter.future.set_result(None)
