"""Uploads that wait for the ingest thread: in two lanes, one of each log, and none of them twice.

Hosts send small uploads all day; big ones are backlogs, or a host that floods. A big one takes a hundred times as
long, so that in one lane a few of them would hold up everybody. Here they ride along: with small ones waiting, a
batch has room for few big ones, and always for one.

A host that got no answer in time sends the same bytes again. While the first copy waits, more copies are only more
clients of one answer: what overload costs doesn't grow with the impatience of hosts.

A log has one place in the queue, so that a host that floods fills no more of it than any other. Whose an upload is
only its checkpoint says, and that isn't verified yet: bytes of anybody may have taken the place. So there is a second
one for each log, which only the next segment of that log gets, under its own key's signature.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

BIG_BYTES: Final = 256 * 1024
"""An upload whose segment is over this is big: 20 minutes of an 8-GPU host are as much, 5 minutes a quarter of it."""
_BESIDE_BYTES: Final = 4 * 1024 * 1024
"""Segments of big uploads in a batch with small ones."""

Answer = bytes | BaseException
"""A receipt, or why there is none."""


@dataclass(slots=True, eq=False)
class Item:
    """One upload, and all who wait for its answer.

    :param size: bytes of the segment, as the frame says: what storing it will cost.
    :param shown: the receipt that came with it, unread.
    :param log: what it says it is of; None where that is no segment: the thread refuses it then.
    :param signed: the log's own key says so too, and it is the log's next segment.
    """

    body: bytes
    plain: bool
    size: int
    shown: bytes | None = None
    futures: "list[asyncio.Future[bytes]]" = field(default_factory=list)
    answer: Answer | None = None
    log: str | None = None
    signed: bool = False

    @property
    def _same(self) -> tuple[bytes, bool, bytes | None]:
        return self.body, self.plain, self.shown


class Lanes:
    """The queue. Its user holds a lock around every call.

    :param segments: most uploads of a batch.
    :param size: most bytes of a batch, as they were sent; one upload may be over it.
    """

    def __init__(self, segments: int, size: int) -> None:
        self._segments = segments
        self._size = size
        self._small: deque[Item] = deque()
        self._big: deque[Item] = deque()
        self._waiting: dict[tuple[bytes, bool, bytes | None], Item] = {}
        self._places: set[tuple[str, bool]] = set()
        """A log, and whether it is the place of what its key has signed."""

    def __len__(self) -> int:
        return len(self._small) + len(self._big)

    def join(self, item: Item) -> bool:
        """Whether a copy of an upload waits, which those who wait for this one join then."""
        first = self._waiting.get(item._same)
        if first is None:
            return False
        first.futures += item.futures
        return True

    def taken(self, log: str | None) -> bool:
        """Whether the place of a log is taken that needs no signature."""
        return log is not None and (log, False) in self._places

    def add(self, item: Item) -> bool:
        """Queue an upload of which no copy waits; returns whether there was a place for it."""
        if item.log is not None:
            place = item.log, item.signed
            if place in self._places:
                return False
            self._places.add(place)
        self._waiting[item._same] = item
        (self._big if item.size > BIG_BYTES else self._small).append(item)
        return True

    def take(self) -> list[Item]:
        """The next batch, oldest first in each lane; empty if nothing waits."""
        items: list[Item] = []
        sent = size = 0

        def fits(item: Item) -> bool:
            return not items or (len(items) < self._segments and sent + len(item.body) <= self._size)

        while self._big and fits(self._big[0]):
            if items and self._small and size + self._big[0].size > _BESIDE_BYTES:
                break
            items.append(self._big.popleft())
            sent, size = sent + len(items[-1].body), size + items[-1].size
        while self._small and fits(self._small[0]):
            items.append(self._small.popleft())
            sent += len(items[-1].body)
        for item in items:
            del self._waiting[item._same]
            if item.log is not None:
                self._places.discard((item.log, item.signed))
        return items
