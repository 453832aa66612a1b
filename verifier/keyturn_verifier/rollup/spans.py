"""Hours, days and months in UTC, and ranges cut into the fewest of them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

from keyturn_protocol.usage import HOUR_S

DAY_S: Final = 24 * HOUR_S
LAST_S: Final = 253_402_300_800
"""The year 10000."""


class Level(IntEnum):
    """What a stored sum is over."""

    HOUR = 0
    DAY = 1
    MONTH = 2


class Span(NamedTuple):
    """One hour, day or month."""

    level: Level
    from_s: int

    @property
    def to_s(self) -> int:
        return span_of(self.level, self.from_s)[1]


@lru_cache(maxsize=4_096)
def _month(day_s: int) -> tuple[int, int]:
    at = datetime.fromtimestamp(day_s, UTC)
    first = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    after = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return int(first.timestamp()), int(after.timestamp())


def span_of(level: Level, time_s: int) -> tuple[int, int]:
    """The span that holds a time, as POSIX seconds from … to."""
    if level is Level.MONTH:
        day_s = min(max(time_s, 0), LAST_S - DAY_S * 32) // DAY_S * DAY_S
        return _month(day_s)
    width = HOUR_S if level is Level.HOUR else DAY_S
    start = time_s // width * width
    return start, start + width


def cut(from_s: int, to_s: int) -> Iterator[Span]:
    """The fewest spans that are exactly ``from_s`` … ``to_s``, in order; both are whole hours."""
    at = from_s
    while at < to_s:
        for level in (Level.MONTH, Level.DAY, Level.HOUR):
            start, end = span_of(level, at)
            if start == at and (end <= to_s or level is Level.HOUR):
                yield Span(level, at)
                at = end
                break
