"""The way of an upload into the queue, and who has to come back later.

A log has one place there (:mod:`keyturn_verifier.lanes`). Which log an upload is of stands at the end of its segment,
so that it is known only once that is decompressed: small ones on the event loop, in a few microseconds, big ones in
a thread. Nothing is verified on the way, unless the place is taken.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Final

from keyturn_protocol.api import ProblemCode
from keyturn_verifier.budget import Budget
from keyturn_verifier.config import Limits
from keyturn_verifier.heads import Heads
from keyturn_verifier.lanes import BIG_BYTES, Item, Lanes
from keyturn_verifier.problems import Refusal
from keyturn_verifier.upload import claimed_log, follows, segment_size

_PAUSE_S: Final = 1.0
"""How long a client waits to be told that its log has an upload waiting: one that comes again at once, whatever it is
told, must not cost more than one that waits in the queue.
"""


class Intake:
    """The queue with a lock around it. :meth:`submit` belongs to the event loop, :meth:`next` to the ingest thread."""

    def __init__(self, limits: Limits, heads: Heads) -> None:
        self._heads = heads
        self._queue = Lanes(limits.batch_segments, limits.batch_bytes)
        self._wake = threading.Condition()
        self._stopping = False
        self.budget = Budget(limits.queue_bytes)
        """Holds what is read and not answered yet."""

    def __len__(self) -> int:
        return len(self._queue)

    def stop(self) -> None:
        """Take nothing more."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    async def submit(self, body: bytes, *, plain: bool, shown: bytes | None = None) -> bytes:
        """Queue an upload whose bytes are in the budget, and leave them to the queue; returns its receipt.

        :raises Refusal: why there is none; ``busy`` also where another upload of its log waits, ``overloaded`` where
            the server is shutting down.
        """
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        item = Item(body, plain, segment_size(body, plain=plain), shown, [future])
        size = len(body)
        try:
            queued = self._join(item)
            if not queued:
                await self._look(item)
                queued = self._join(item) or self._add(item)
        except BaseException:
            self.budget.give(size)
            raise
        if not queued:
            self.budget.give(size)
            detail = f"an upload of {item.log} waits already; send this one later"
            del item, body
            await asyncio.sleep(_PAUSE_S)
            raise Refusal(ProblemCode.BUSY, detail)
        return await future

    def next(self, due_s: Callable[[], float | None]) -> list[Item] | None:
        """The next batch; empty when there is something else to do, None at the end.

        :param due_s: after how long that is; None: not before an upload was stored.
        """
        with self._wake:
            while not self._queue:
                if self._stopping:
                    return None
                wait_s = due_s()
                if not self._wake.wait(timeout=wait_s) and wait_s is not None:
                    return []
            return self._queue.take()

    def _join(self, item: Item) -> bool:
        """Whether these very bytes wait already, so that this is only one more client of their answer."""
        with self._wake:
            joined = self._queue.join(item)
        if joined:
            self.budget.give(len(item.body))
        return joined

    def _add(self, item: Item) -> bool:
        """Queue an upload, unless its place is taken."""
        with self._wake:
            if self._stopping:
                raise Refusal(ProblemCode.OVERLOADED, "this server is shutting down; nothing was stored")
            added = self._queue.add(item)
            self._wake.notify()
        return added

    async def _look(self, item: Item) -> None:
        """Find out whose place an upload wants."""
        if item.size <= BIG_BYTES:
            item.log = claimed_log(item.body, plain=item.plain)
            if not self._taken(item.log):
                return
        await asyncio.to_thread(self._look_closely, item)

    def _look_closely(self, item: Item) -> None:
        item.log = item.log or claimed_log(item.body, plain=item.plain)
        if item.log is not None and self._taken(item.log):
            head = self._heads.peek(item.log)
            item.signed = head is not None and follows(item.body, head, plain=item.plain)

    def _taken(self, log: str | None) -> bool:
        with self._wake:
            return self._queue.taken(log)
