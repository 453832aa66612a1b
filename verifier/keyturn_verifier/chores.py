"""What a serving process does between batches: publish the verifier's log, and make months ahead.

Nothing here holds a receipt back, and everything is tried again.
"""

import logging
import time
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from keyturn_verifier import translog
from keyturn_verifier.clock import Clock
from keyturn_verifier.db.engine import is_postgres, reading, writing
from keyturn_verifier.db.partitions import make_ahead
from keyturn_verifier.errors import DamagedError, OutcomeUnknown
from keyturn_verifier.keyfiles import SigningKey

log = logging.getLogger(__name__)

_LOOK_S: Final = 10
"""How often a replica that has nothing to do looks for what another one, killed perhaps, did not publish."""
_PARTITIONS_S: Final = 6 * 3_600


class Chores:
    """Belongs to the batching thread."""

    def __init__(self, engine: Engine, key: SigningKey, clock: Clock, interval_ms: int) -> None:
        self._engine = engine
        self._key = key
        self._clock = clock
        self._interval_s = interval_ms / 1_000
        self._look_s = _LOOK_S if is_postgres(engine) else None
        self._unpublished = True
        self._looked_at = self._partitions_at = float("-inf")

    def appended(self) -> None:
        """There are new leaves."""
        self._unpublished = True

    def due_s(self) -> float | None:
        """How long there is nothing to do; None: until something is appended."""
        return self._interval_s if self._unpublished else self._look_s

    def run(self, *, last: bool = False) -> None:
        """Do what is due. ``last``: publish whatever is there, before the process ends."""
        now = time.monotonic()
        idle_s = self.due_s()
        if last or (idle_s is not None and now - self._looked_at >= idle_s):
            self._looked_at = now
            self._publish(last)
        if not last and now - self._partitions_at >= _PARTITIONS_S:
            self._partitions_at = now
            make_ahead(self._engine, self._clock())

    def _publish(self, last: bool) -> None:
        """Sign what was appended, unless any replica did so within the interval."""
        try:
            now_us = self._clock()
            with reading(self._engine) as connection:
                due = translog.publish_after(connection, now_us, round(self._interval_s * 1_000_000))
            if due or (last and due is not None):
                with writing(self._engine) as connection:
                    translog.publish(connection, self._key, now_us)
                due = None
        except (DBAPIError, OutcomeUnknown, DamagedError) as error:
            log.error("the verifier's log could not be published: %s", error)
        else:
            self._unpublished = due is not None
