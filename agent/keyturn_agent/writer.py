"""Writes entries into the log, and goes on living where there is no room for them.

A spool that fills up, a spool that is full and a full disk differ in how they begin; what follows is one rule, see
:mod:`~keyturn_agent.pressure`. After a write that failed only a fresh look at the disk says what is there: the log
is opened again, as after a crash, once there is room. What must not be lost meanwhile is held in memory, usage and
heartbeats aren't; a gap says from when to when.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from keyturn_agent.config import Config
from keyturn_agent.courier import Courier
from keyturn_agent.errors import NoSpaceError
from keyturn_agent.ports import Clock, Stamp
from keyturn_agent.pressure import DISK_FILLING, DISK_FULL, FILLING, Level, Pressure, Room, follow, full_ppm
from keyturn_agent.store import Store
from keyturn_protocol.entries import Body
from keyturn_protocol.entry_inventory import InventoryBody
from keyturn_protocol.entry_log import DegradedBody, GapBody, HeartbeatBody
from keyturn_protocol.entry_switch import LeaseBody
from keyturn_protocol.entry_usage import UsageBody
from keyturn_protocol.values import Slug

logger = logging.getLogger(__name__)

_TRY_US: Final = 10_000_000
"""Between two tries to open the log again."""
_BEAT_US: Final = 3_600_000_000
"""Between two heartbeats while the spool is full: silence must differ from deletion."""
_MARGIN: Final = 1024 * 1024
"""The least that a full disk is relieved by, whatever the configuration leaves free."""
_HELD: Final = 1000
"""Bodies that are held in memory while nothing can be written."""


def free_bytes(folder: Path) -> int:
    """What an unprivileged process may still write there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class Ledger(Protocol):
    """Who counts what is written, see :mod:`keyturn_agent.switch.metering`."""

    def finish(self, body: LeaseBody, stamp: Stamp) -> LeaseBody:
        """The same word on a lease with what is charged at these clocks."""
        ...

    def wrote(self) -> None:
        """The log has grown."""
        ...


@dataclass(slots=True)
class _Failed:
    """A write that failed: the size of the log before it, and what has to come after it."""

    size: int
    held: list[Body]
    tried_us: int


class Writer:
    """The log's only writer while the agent runs.

    :param real_s: the host's real time, against which the age of waiting segments counts.
    """

    def __init__(
        self,
        store: Store,
        courier: Courier,
        clock: Clock,
        config: Config,
        real_s: Callable[[], int],
        free: Callable[[Path], int] = free_bytes,
        ledger: "Ledger | None" = None,
    ) -> None:
        self._store = store
        self._courier = courier
        self._clock = clock
        self._config = config
        self._real_s = real_s
        self._free = free
        self._ledger = ledger
        self._pressure = Pressure(Level.ROOM)
        self._full_since_us = 0
        self._beat_us: int | None = None
        self._failed: _Failed | None = None
        self.gaps = 0
        """Gap entries that were written."""

    @property
    def level(self) -> Level:
        return self._pressure.level

    @property
    def interval_us(self) -> int:
        """How long a usage entry should be now."""
        usual = self._config.interval_us
        return usual if self.level is Level.ROOM else max(usual, self._config.coarse_us)

    @property
    def failed(self) -> bool:
        """Whether the log has to be opened again before anything can be written."""
        return self._failed is not None

    def write(self, bodies: Sequence[Body]) -> None:
        """Add entries; where there is no room, without usage, or later.

        :raises StoreError: the disk failed in another way than by being full.
        """
        bodies = self._admit(bodies)
        if self._failed is not None:
            self._hold(self._failed, bodies)
            self._reopen(self._failed)
        elif bodies:
            self._append(bodies)

    def seal(self) -> bool:
        """Sign what is new; returns whether anything was."""
        if self._failed is not None:
            return False
        size = self._store.log.size
        try:
            return self._store.log.seal()
        except NoSpaceError as error:
            self._fail(error, size, [])
            return False

    def look(self) -> None:
        """Look at the spool and the disk, and write down what changes by that."""
        if self._failed is not None:
            self._reopen(self._failed)
            if self._failed is not None:
                return
        self._store.settle_keys()
        room, relieved = self._relieve(self._room(), self._config.free_bytes)
        before, self._pressure = self._pressure, follow(self._pressure, room, self._config)
        if before.level is self._pressure.level:
            self.write(relieved)
            return
        now_us = self._clock.now().time_us
        waiting = f"{room.waiting_bytes} bytes wait for receipts, the oldest for {room.oldest_s} s"
        detail = f"{waiting}; {full_ppm(room, self._config) // 10_000} % of what may; {room.free_bytes} bytes free"
        logger.warning("the spool is at level %s: %s", self.level.name.lower(), detail)
        bodies: list[Body] = [*relieved]
        if before.level is Level.FULL:
            bodies.append(_gap(self._full_since_us, now_us, before.cause, "there is room again"))
        if self.level is Level.FULL:
            self._full_since_us = now_us
            bodies.append(_gap(now_us, now_us, self._pressure.cause, f"from here on no usage is written: {detail}"))
        elif self.level is Level.FILLING:
            bodies.append(DegradedBody(cause=FILLING, interval_us=self.interval_us, detail=detail))
        self.write(bodies)

    # -- where there is no room

    def _admit(self, bodies: Sequence[Body]) -> Sequence[Body]:
        """What is written at this level."""
        if self.level is not Level.FULL:
            return bodies
        kept: list[Body] = []
        for body in bodies:
            if isinstance(body, UsageBody):
                continue
            if isinstance(body, HeartbeatBody):
                now_us = self._clock.now().mono_us
                if self._beat_us is not None and now_us - self._beat_us < _BEAT_US:
                    continue
                self._beat_us = now_us
            kept.append(body)
        return kept

    def _append(self, bodies: Sequence[Body]) -> None:
        log = self._store.log
        size, sealed = log.size, log.sealed
        try:
            if self._ledger is None:
                log.append(bodies, self._store.stamp(self._clock))
            else:
                for body in bodies:
                    self._one(body, self._ledger)
        except NoSpaceError as error:
            self._fail(error, size, list(bodies))
            return
        self.gaps += sum(isinstance(body, GapBody) for body in bodies)
        if log.sealed != sealed:
            self._courier.wake()

    def _one(self, body: Body, ledger: "Ledger") -> None:
        """One entry, of which a word on a lease says what is charged at the moment that it carries."""
        stamp = self._store.stamp(self._clock)
        if isinstance(body, LeaseBody):
            body = ledger.finish(body, stamp)
        self._store.log.append([body], stamp)
        ledger.wrote()

    def _fail(self, error: NoSpaceError, size: int, bodies: list[Body]) -> None:
        logger.error("%s; nothing is written until there is room", error)
        now = self._clock.now()
        if self.level is not Level.FULL:
            self._full_since_us = now.time_us
        self._pressure = Pressure(Level.FULL, DISK_FULL)
        self._failed = _Failed(size, bodies, now.mono_us)

    def _hold(self, failed: _Failed, bodies: Sequence[Body]) -> None:
        failed.held += (body for body in bodies if not isinstance(body, HeartbeatBody))
        if len(failed.held) > _HELD:
            # What follows refers to the last inventory, so that this one has to stay.
            logger.error("%d entries are lost: there is no room on the disk", len(failed.held))
            newest = [body for body in failed.held if isinstance(body, InventoryBody)][-1:]
            failed.held, failed.size = [*newest], -1

    def _reopen(self, failed: _Failed) -> None:
        """Open the log again if there is room, and write what was held."""
        now = self._clock.now()
        if now.mono_us - failed.tried_us < _TRY_US:
            return
        room, relieved = self._relieve(self._room(), max(self._config.free_bytes, _MARGIN))
        failed.held += relieved
        if room.free_bytes < self._config.free_bytes:
            return
        failed.tried_us = now.mono_us
        try:
            size = self._store.reopen(self._store.stamp(self._clock))
        except NoSpaceError as error:
            logger.error("%s; there is still no room", error)
            return
        finally:
            # The files are the same; whoever uploads has to see those of the log that is open now.
            log = self._store.log
            ask, before, older = not self._courier.asked, self._store.before, self._store.older()
            self._courier.carry(log.spool, log.key, ask=ask, before=before, older=older)
        # What the failed write did leave on the disk is not written again.
        left = failed.held if failed.size < 0 else failed.held[size - failed.size :]
        self._failed = None
        logger.warning("there is room on the disk again")
        if left:
            self._append(left)

    def _relieve(self, room: Room, least: int) -> tuple[Room, list[Body]]:
        """Where less than ``least`` bytes are free, let receipted segments go before their time.

        :returns: the room after that, and what the log has to say about it.
        """
        if room.free_bytes >= least:
            return room, []
        segments, size = self._courier.relieve(self._store.log.spool, max(2 * least, _MARGIN) - room.free_bytes)
        if not segments:
            return room, []
        detail = f"removed {segments} receipted segments ({size} bytes) early: {room.free_bytes} bytes were free"
        return self._room(), [DegradedBody(cause=DISK_FILLING, interval_us=self.interval_us, detail=detail)]

    def _room(self) -> Room:
        spool = self._store.log.spool
        _, waiting = spool.waiting()
        since_s = spool.waiting_since_s()
        oldest_s = 0 if since_s is None else max(0, self._real_s() - since_s)
        return Room(waiting, oldest_s, self._free(self._store.folder))


def _gap(from_us: int, to_us: int, cause: Slug | None, detail: str) -> GapBody:
    return GapBody(chips=None, from_us=from_us, to_us=max(from_us, to_us), cause=cause or DISK_FULL, detail=detail)
