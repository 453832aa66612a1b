"""A thread of its own for calls that may never come back."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class CallHungError(Exception):
    """A call didn't come back in time, or one before it hasn't yet."""


class Worker:
    """Runs one job at a time; whoever waits for it waits no longer than a deadline.

    Nothing can end a thread that hangs in a driver. So it is left alone: jobs are refused at once until it is
    back, and what it brings then is dropped. A daemon thread, so that it doesn't keep the process from ending.
    (``ThreadPoolExecutor`` joins its threads at exit, and would.)
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._last: Future[Any] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def hangs(self) -> bool:
        """Whether a job hasn't come back yet."""
        return self._last is not None and not self._last.done()

    @property
    def waiting(self) -> int:
        """Jobs that nobody has begun; more than one there never is."""
        return self._jobs.qsize()

    def call(self, job: Callable[[], T], deadline_s: float) -> T:
        """What ``job`` returns or raises; called by one thread only.

        :raises CallHungError: after ``deadline_s``, or at once while an earlier job hangs.
        """
        if self.hangs:
            raise CallHungError("an earlier call has not come back")
        future: Future[T] = Future()
        self._last = future
        self._jobs.put((job, future))
        try:
            return future.result(deadline_s)
        except TimeoutError:
            if future.done():
                raise
            raise CallHungError(f"no answer within {deadline_s} s") from None

    def stop(self) -> None:
        """End the thread once it is free; doesn't wait for it."""
        self._jobs.put(None)

    def join(self) -> None:
        """Wait for the end of the thread after :meth:`stop`."""
        self._thread.join()

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            try:
                future.set_result(job())
            except BaseException as error:
                # Not handled here: it is raised in the thread that waits.
                future.set_exception(error)
            del job, future, item
