"""Asks a verifier again that doesn't answer yet, for a bounded time: a host is often enrolled before it is up."""

import logging
import time
from collections.abc import Callable
from typing import Final

from keyturn_agent.errors import UnreachableError
from keyturn_agent.ports import Answer, Verifier

logger = logging.getLogger(__name__)

_FIRST_S: Final = 1.0
_MOST_S: Final = 15.0


class PatientVerifier:
    """A :class:`~keyturn_agent.ports.Verifier` that is asked to enrol a host again after 1, 2, 4, 8, 15, 15 … s.

    Announcing one key twice is one announcement, and so is showing one statement. Segments aren't tried again here:
    the courier does that.

    :param patience_s: no try begins later than this after the first; 0 tries once.
    """

    def __init__(
        self,
        verifier: Verifier,
        patience_s: float,
        wait: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verifier = verifier
        self._patience_s = patience_s
        self._wait = wait
        self._now = now

    def join(self, request: bytes) -> Answer:
        return self._patiently(lambda: self._verifier.join(request))

    def state(self, statement: bytes) -> Answer:
        return self._patiently(lambda: self._verifier.state(statement))

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        deadline, pause_s = self._now() + self._patience_s, _FIRST_S
        while True:
            last = self._now() + pause_s > deadline
            try:
                answer = ask()
                if last or (answer.status < 500 and answer.status not in (408, 429)):
                    return answer
                why, wait_s = f"HTTP {answer.status}", max(pause_s, min(answer.retry_after_s or 0, _MOST_S))
            except UnreachableError as error:
                if last:
                    raise
                why, wait_s = str(error), pause_s
            left_s = max(0, deadline - self._now())
            logger.warning("not enrolled yet: %s; again in %.0f s, for up to %.0f s", why, wait_s, left_s)
            self._wait(wait_s)
            pause_s = min(2 * pause_s, _MOST_S)

    def send_segment(self, frame: bytes, receipt: bytes | None = None) -> Answer:
        return self._verifier.send_segment(frame, receipt)

    def head(self, origin: str) -> Answer:
        return self._verifier.head(origin)

    def log_checkpoint(self) -> Answer:
        return self._verifier.log_checkpoint()

    def authority(self) -> Answer:
        return self._patiently(self._verifier.authority)
