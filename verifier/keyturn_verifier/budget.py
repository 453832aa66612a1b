"""A bound on memory: how many bytes of uploads may be held at one time, read in part or waiting for an answer.

A part of it is for small uploads alone, so that one host with big ones can't use it up for all.
"""

import threading

from keyturn_protocol.api import ProblemCode
from keyturn_verifier.problems import Refusal


class Budget:
    """Bytes that are taken as they arrive and given back with the answer. Any thread may use it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        return self._used

    def take(self, count: int, *, big: bool = False) -> None:
        """Count bytes in. ``big``: of an upload that has no right to the last quarter.

        :raises Refusal: ``overloaded``: they don't fit, and nothing was counted.
        """
        with self._lock:
            if self._used + count > (self._limit * 3 // 4 if big else self._limit):
                raise Refusal(ProblemCode.OVERLOADED, "too many uploads are waiting; nothing was stored")
            self._used += count

    def give(self, count: int) -> None:
        """Count bytes out."""
        with self._lock:
            self._used -= count
