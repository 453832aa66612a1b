"""How much one log may send: a bucket of requests and one of bytes that fill up again with time.

Only what a log's own key has signed and what follows from its head is counted, so that nobody can use up another
log's share, and never a source address, since a site's hosts share one.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.ids import Origin
from keyturn_verifier.config import Limits
from keyturn_verifier.problems import Refusal

KEPT: Final = 65_536
"""Logs that are remembered; one that was forgotten begins with full buckets."""
_MINUTE_S: Final = 60.0


@dataclass(slots=True)
class _Left:
    at_s: float
    requests: float
    size: float


class Rates:
    """The buckets of one process. Each holds what a minute allows.

    :param seconds: a monotonic clock.
    """

    def __init__(self, limits: Limits, seconds: Callable[[], float]) -> None:
        self._requests = float(limits.log_requests_per_minute)
        self._bytes = float(limits.log_bytes_per_minute)
        self._seconds = seconds
        self._left: OrderedDict[Origin, _Left] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, origin: Origin, size: int) -> Refusal | None:
        """Count one segment of ``size`` decoded bytes; returns why it must wait, having counted nothing then."""
        now_s = self._seconds()
        with self._lock:
            left = self._left.pop(origin, None) or _Left(now_s, self._requests, self._bytes)
            passed_s = max(now_s - left.at_s, 0.0)
            left.requests = min(self._requests, left.requests + passed_s * self._requests / _MINUTE_S)
            left.size = min(self._bytes, left.size + passed_s * self._bytes / _MINUTE_S)
            left.at_s = now_s
            self._left[origin] = left
            if len(self._left) > KEPT:
                self._left.popitem(last=False)
            # One segment is let through with whatever is left, and the next ones wait for it.
            if left.requests < 1 or left.size <= 0:
                wait_s = max(
                    (1 - left.requests) * _MINUTE_S / self._requests, (1 - left.size) * _MINUTE_S / self._bytes
                )
                detail = f"{origin} sends more than its share; wait {wait_s:.0f} s"
                return Refusal(ProblemCode.BUSY, detail, retry_after_s=max(1, round(wait_s + 0.5)))
            left.requests -= 1
            left.size -= size
            return None
