"""How full the spool is, and what follows from that. Pure.

below 80 %     all is written
from 80 %      usage entries get longer, and an entry says so
from 100 %     a gap with its cause; no usage is written, and nothing that has no receipt is ever written over

The spool is as full as the larger of two parts: bytes without a receipt, and the age of the oldest of them. A disk
with hardly any room, and nothing receipted left that may go, counts as full, whoever filled it. What was left is
entered again only some way below, so that a spool at the edge doesn't go back and forth.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from keyturn_agent.config import Config
from keyturn_protocol.values import Slug

FILLING: Final[Slug] = "spool_filling"
SPOOL_FULL: Final[Slug] = "spool_full"
DISK_FULL: Final[Slug] = "disk_full"
DISK_FILLING: Final[Slug] = "disk_filling"

_FILLING_PPM: Final = 800_000
_FULL_PPM: Final = 1_000_000
_BACK_PPM: Final = 100_000
"""So far below its mark a level is left again."""


class Level(Enum):
    ROOM = 0
    FILLING = 1
    FULL = 2


@dataclass(frozen=True, slots=True)
class Room:
    """What waits for receipts, and what the disk has left. ``oldest_s``: the age of the oldest of it."""

    waiting_bytes: int
    oldest_s: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Pressure:
    """The level, and why it isn't :attr:`Level.ROOM`."""

    level: Level
    cause: Slug | None = None


def full_ppm(room: Room, config: Config) -> int:
    """How full the spool is: of its bytes or of its time, whichever is more."""
    return max(
        room.waiting_bytes * 1_000_000 // config.spool_bytes, max(0, room.oldest_s) * 1_000_000 // config.spool_s
    )


def follow(before: Pressure, room: Room, config: Config) -> Pressure:
    """The pressure now, after ``before``."""
    full = before.level is Level.FULL
    free_needed = config.free_bytes * 5 // 4 if before.cause == DISK_FULL else config.free_bytes
    if room.free_bytes < free_needed:
        return Pressure(Level.FULL, DISK_FULL)
    ppm = full_ppm(room, config)
    if ppm >= _FULL_PPM - (_BACK_PPM if full and before.cause == SPOOL_FULL else 0):
        return Pressure(Level.FULL, SPOOL_FULL)
    if ppm >= _FILLING_PPM - (0 if before.level is Level.ROOM else _BACK_PPM):
        return Pressure(Level.FILLING, FILLING)
    return Pressure(Level.ROOM)
