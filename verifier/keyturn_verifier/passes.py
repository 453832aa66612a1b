"""A thread that does a little at a time what nobody waits for: a tenth of a core at most, and it outlives errors."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from keyturn_verifier.errors import OutcomeUnknown

log = logging.getLogger(__name__)

_REST: Final = 9
"""How many times as long as a pass took there is none."""
_AFTER_ERROR_S: Final = 60.0


class Passes:
    """Calls ``step`` again and again until it is stopped."""

    def __init__(self, step: Callable[[], bool], interval_s: float, name: str, failed: str) -> None:
        """
        :param step: makes one pass; returns whether there is more to do at once.
        :param interval_s: between passes that leave nothing to do.
        :param name: of the thread.
        :param failed: what the log says when a pass raises.
        """
        self._step = step
        self._interval_s = interval_s
        self._failed = failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the pass that is under way. Blocks."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        wait_s = self._interval_s
        while not self._stop.wait(wait_s):
            began = time.monotonic()
            try:
                more = self._step()
            except (DBAPIError, OutcomeUnknown, PoolTimeout) as error:
                log.warning("%s: %s", self._failed, error)
                more = False
            except Exception:
                # The thread has to go on: answers are right without it, and only slower.
                log.exception("%s; see keyturn-verifier check", self._failed)
                more = False
                self._stop.wait(_AFTER_ERROR_S)
            took_s = time.monotonic() - began
            wait_s = took_s * _REST if more else max(self._interval_s, took_s * _REST)
