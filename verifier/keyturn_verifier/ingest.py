"""Ingest: one thread that decides and commits what is queued, batch by batch.

There is no timer: a batch forms while the last one commits, so that an idle server answers at once and a busy
one shares each fsync among many segments. The same thread publishes the verifier's log between batches; a
publication that fails or lags never holds back a receipt.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, assert_never

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.ids import NodeId
from keyturn_protocol.receive import Accepted, Behind, Fork, Invalid, Refused, Stored, decide
from keyturn_verifier.chores import Chores
from keyturn_verifier.clock import Clock
from keyturn_verifier.config import Config
from keyturn_verifier.db.commit import Change, Committer, Moved, Written
from keyturn_verifier.db.engine import reading, rolled_back
from keyturn_verifier.db.history import history
from keyturn_verifier.enrolment import Joining
from keyturn_verifier.errors import OutcomeUnknown, StaleHead
from keyturn_verifier.heads import Expected, Heads, Known
from keyturn_verifier.intake import Intake
from keyturn_verifier.keyfiles import Keys
from keyturn_verifier.lanes import Answer, Item
from keyturn_verifier.problems import Refusal
from keyturn_verifier.rates import Rates
from keyturn_verifier.upload import Upload, open_upload

log = logging.getLogger(__name__)

_AGAIN: Final = 3
"""How often a batch is tried again that the database rolled back."""
_ROUNDS: Final = 5
"""How often a segment is decided again because another replica moved its log."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An upload that could be parsed."""

    item: Item
    upload: Upload


class Ingest:
    """The thread, and the queue that it empties: ``intake`` is what the event loop has to do with."""

    def __init__(self, config: Config, engine: Engine, keys: Keys, clock: Clock) -> None:
        self._limits = config.limits
        self._engine = engine
        self._clock = clock
        self._heads = Heads(config.deployment, config.limits.cached_heads)
        self._committer = Committer(engine, keys.receipt, clock)
        self.intake = Intake(config.limits, self._heads)
        self.batches = 0
        """Transactions that stored segments."""
        self._rates = Rates(config.limits, time.monotonic)
        self._chores = Chores(engine, keys.log, clock, config.limits.publish_interval_ms)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; answers are delivered on ``loop``."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Answer what is queued, publish, and end. Blocks."""
        self.intake.stop()
        self._thread.join()

    def _run(self) -> None:
        while True:
            items = self.intake.next(self._chores.due_s)
            if items is None:
                break
            for group in self._opened(items):
                self._process(group)
            self._release(items)
            self._chores.run()
        self._chores.run(last=True)

    def _release(self, items: Sequence[Item]) -> None:
        """Hand every answer to the event loop at once."""
        self.intake.budget.give(sum(len(item.body) for item in items))
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, items)

    def _opened(self, items: Sequence[Item]) -> Iterator[list[Opened]]:
        """Decompress and parse, in groups whose decoded bytes together stay within the limit."""
        group: list[Opened] = []
        size = 0
        for item in items:
            try:
                upload = open_upload(item.body, plain=item.plain)
            except Exception as error:
                item.answer = error
                continue
            if group and size + len(upload.data) > self._limits.batch_decoded_bytes:
                yield group
                group, size = [], 0
            group.append(Opened(item, upload))
            size += len(upload.data)
        if group:
            yield group

    def _process(self, group: Sequence[Opened], again: int = _AGAIN) -> None:
        """Answer a group. An error that one of its segments caused must not hit the others: they go one by one.

        The one place where an error of any kind is caught: the thread has to go on for everybody else, and
        problems.py turns what it doesn't know into `internal`.
        """
        try:
            self._until_settled(group)
        except Exception as error:
            self._heads.forget(opened.upload.segment.origin for opened in group)
            waiting = [opened for opened in group if opened.item.answer is None]
            if rolled_back(error) and again:
                return self._process(waiting, again - 1)
            # A locked, full or broken disk is everybody's; all else may be one segment's doing.
            shared = isinstance(error, OutcomeUnknown | OperationalError)
            if not shared and len(group) > 1:
                for opened in waiting:
                    self._process([opened])
                return
            if isinstance(error, StaleHead):
                error = Refusal(ProblemCode.BUSY, "this log moved at the same time; send it again")
            for opened in waiting:
                opened.item.answer = error

    def _until_settled(self, group: Sequence[Opened]) -> None:
        """Decide and commit until every item has its answer: a log that another replica moved is decided again."""
        for _ in range(_ROUNDS):
            self._batch(group)
            group = [opened for opened in group if opened.item.answer is None]
            if not group:
                return
            self._heads.forget(opened.upload.segment.origin for opened in group)
        for opened in group:
            opened.item.answer = Refusal(ProblemCode.BUSY, "this log moved at the same time; send it again")

    def _batch(self, group: Sequence[Opened]) -> None:
        """Decide and commit; when this returns every item has its answer, but for those whose log has moved."""
        changes = self._decide(group)
        if not changes:
            return
        answers = self._committer.commit([change for _, change in changes])
        # From here on every receipt is durable.
        self.batches += 1
        for (item, change), answer in zip(changes, answers, strict=True):
            match answer:
                case Moved():
                    continue
                case Refusal():
                    item.answer = answer
                case Written(known=known):
                    self._heads.put(change.upload.segment.origin, known)
                    item.answer = _receipt(change, known)
        self._chores.appended()

    def _decide(self, group: Sequence[Opened]) -> list[tuple[Item, Change]]:
        """The changes of a group, at most one a node; everything else is answered here."""
        changes: list[tuple[Item, Change]] = []
        changed: set[NodeId] = set()
        with reading(self._engine) as connection:
            now_us = self._clock()
            heads = self._heads.load(connection, [o.upload.segment.name for o in group], now_us)
            for item, upload in ((o.item, o.upload) for o in group):
                name = upload.segment.name
                if name.node_id in changed:
                    item.answer = Refusal(
                        ProblemCode.BUSY, "a segment of this node is being stored; send this one later"
                    )
                    continue
                decided = _decide_one(connection, upload, heads[name.origin])
                accepted = isinstance(decided, Change) and isinstance(decided.decision, Accepted)
                if not accepted and not isinstance(decided, bytes):
                    # What is cached may be behind another replica, and this is not looked at again under the lock.
                    # A receipt was just read where it is stored: hosts that lost patience ask for many.
                    stored = self._heads.load(connection, [name], now_us, stored=True)
                    decided = _decide_one(connection, upload, stored[name.origin])
                if isinstance(decided, Change) and isinstance(decided.decision, Accepted):
                    # Only now is it known that the log's own key signed this.
                    decided = self._rates.take(name.origin, len(upload.data)) or decided
                if isinstance(decided, Change):
                    changes.append((item, replace(decided, shown=item.shown)))
                    changed.add(name.node_id)
                else:
                    item.answer = decided
        return changes


def _decide_one(connection: Connection, upload: Upload, against: Known | Expected | None) -> Change | Answer:
    """One segment against its log's head."""
    segment = upload.segment
    if against is None:
        return Refusal(ProblemCode.UNKNOWN_LOG, f"{segment.origin} is not enrolled here")
    log_id = against.log_id if isinstance(against, Known) else None
    decision = decide(against.head, segment, upload.data, history(connection, log_id))
    match decision:
        case Accepted():
            return Change(upload, against, decision)
        case Fork(detail=detail) | Invalid(detail=detail):
            if isinstance(against, Expected) and isinstance(against.opening, Joining):
                # Nobody is enrolled yet: nothing is kept, and the token stays good.
                return Refusal(ProblemCode.INVALID_ENTRIES, detail)
            return Change(upload, against, decision)
        case Stored(receipt=receipt):
            return receipt
        case Behind(size=size, checkpoint=checkpoint):
            sent = f"the segment has {segment.start} … {segment.end - 1}"
            return Refusal(ProblemCode.BEHIND, f"{segment.origin} has {size} entries; {sent}", checkpoint=checkpoint)
        case Refused(code=code, detail=detail):
            return Refusal(code, detail)
        case _:
            assert_never(decision)


def _receipt(change: Change, known: Known) -> Answer:
    """What the client is told about a change that is durable."""
    match change.decision:
        case Accepted():
            return known.head.receipt or b""
        case Fork(detail=detail):
            return Refusal(ProblemCode.FORK, detail)
        case Invalid(detail=detail):
            return Refusal(ProblemCode.INVALID_ENTRIES, detail)


def _deliver(items: Sequence[Item]) -> None:
    """On the event loop: resolve the futures of clients that still wait."""
    for item in items:
        for future in item.futures:
            if future.done():
                continue
            match item.answer:
                case bytes():
                    future.set_result(item.answer)
                case None:
                    future.set_exception(Refusal(ProblemCode.INTERNAL, "this upload was not answered"))
                case error:
                    future.set_exception(error)
