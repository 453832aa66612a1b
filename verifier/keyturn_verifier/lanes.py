"""Uploads that wait for the ingest thread: in two lanes, and none of them twice.

Hosts send small uploads all day; big ones are backlogs, or a host that floods. A big one takes a hundred times as
long, so that in one lane a few of them would hold up everybody. Here they ride along: with small ones waiting, a
batch has room for few big ones, and always for one.

A host that got no answer in time sends the same bytes again. While the first copy waits, more copies are only more
clients of one answer: what overload costs doesn't grow with the impatience of hosts.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

BIG_BYTES: Final = 64 * 1024
"""An upload over this is big: an hour of an 8-GPU host has about as much, a minute a fiftieth of it."""
_BESIDE_BYTES: Final = 1024 * 1024
"""Big uploads in a batch with small ones."""

Answer = bytes | BaseException
"""A receipt, or why there is none."""


@dataclass(slots=True, eq=False)
class Item:
    """One upload, and all who wait for its answer. ``shown``: the receipt that came with it, unread."""

    body: bytes
    plain: bool
    shown: bytes | None = None
    futures: "list[asyncio.Future[bytes]]" = field(default_factory=list)
    answer: Answer | None = None

    @property
    def _same(self) -> tuple[bytes, bool, bytes | None]:
        return self.body, self.plain, self.shown


class Lanes:
    """The queue. Its user holds a lock around every call.

    :param segments: most uploads of a batch.
    :param size: most bytes of a batch; one upload may be over it.
    """

    def __init__(self, segments: int, size: int) -> None:
        self._segments = segments
        self._size = size
        self._small: deque[Item] = deque()
        self._big: deque[Item] = deque()
        self._waiting: dict[tuple[bytes, bool, bytes | None], Item] = {}

    def __len__(self) -> int:
        return len(self._small) + len(self._big)

    def add(self, item: Item) -> bool:
        """Queue an upload; returns whether it is new here: else those who wait for it join the first copy."""
        first = self._waiting.setdefault(item._same, item)
        if first is not item:
            first.futures += item.futures
            return False
        (self._big if len(item.body) > BIG_BYTES else self._small).append(item)
        return True

    def take(self) -> list[Item]:
        """The next batch, oldest first in each lane; empty if nothing waits."""
        items: list[Item] = []
        if self._big:
            items.append(self._big.popleft())
        limit = min(self._size, _BESIDE_BYTES) if self._small else self._size
        self._fill(items, self._big, limit)
        self._fill(items, self._small, self._size)
        for item in items:
            del self._waiting[item._same]
        return items

    def _fill(self, items: list[Item], lane: deque[Item], limit: int) -> None:
        size = sum(len(item.body) for item in items)
        while lane and len(items) < self._segments:
            size += len(lane[0].body)
            if size > limit and items:
                return
            items.append(lane.popleft())
