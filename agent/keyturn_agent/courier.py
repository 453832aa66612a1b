"""Carries sealed segments to the verifier, in a thread of its own: a network that hangs never delays metering."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from keyturn_agent.errors import DamagedError, StoreError, UnreachableError
from keyturn_agent.ports import Answer, Random, Verifier
from keyturn_agent.recall import Recall
from keyturn_agent.retention import Retention
from keyturn_agent.spool import Spool, Upload
from keyturn_agent.trail import Older
from keyturn_agent.uploader import (
    Ended,
    Keys,
    Outcome,
    Progress,
    Receipted,
    Resume,
    Retry,
    RolledBack,
    judge,
    judge_head,
)
from keyturn_protocol.api import ProblemCode
from keyturn_protocol.checkpoint import open_checkpoint
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.keys import VerifierKey
from keyturn_protocol.note import Note, find, parse_note

logger = logging.getLogger(__name__)

_CHECKPOINT_EVERY_S = 60.0
_READ_AGAIN_S = 5.0
"""Until a segment of our own is tried again that the disk didn't give back."""
_FORGOTTEN = frozenset({ProblemCode.BAD_SIGNATURE, ProblemCode.UNKNOWN_LOG})
"""What a verifier that went back says of a log whose opening, or whose key, it has forgotten."""
_QUOTE_BYTES = 16 * 1024
"""A heartbeat quotes a larger note only with the log's own signature."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The daemon should leave the log ``origin`` for the next incarnation."""

    origin: str
    reason: Literal["rejected", "rollback", "damaged"]
    why: str


class Courier:
    """The upload of one log after another. ``carry`` starts on a log; ``wake`` says that there may be more."""

    def __init__(
        self,
        verifier: Verifier,
        receipt_key: VerifierKey,
        log_key: VerifierKey,
        random: Random,
        jitter_s: int,
        retention: Retention | None = None,
    ) -> None:
        self._verifier = verifier
        self._receipt_key = receipt_key
        self._log_key = log_key
        self._random = random
        self._jitter_s = jitter_s
        self._retention = retention
        self._recall = Recall(verifier, receipt_key)
        self._older: Sequence[Older] = ()
        self._recall_at: float | None = None
        """When there is a next exchange about older logs; None: it begins anew."""
        self._changed = threading.Condition()
        self._spool: Spool | None = None
        self._keys: Keys | None = None
        self._progress = Progress(0)
        self._next: tuple[Spool, VerifierKey] | None = None
        self._leave: Leave | None = None
        self._hurry = self._drains = self._stop = False
        self._more = False
        self._asked = True
        self._told = False
        self._last_error: str | None = None
        self._quote: tuple[int, str] | None = None
        self._quoted_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    # -- for the daemon's thread

    def carry(
        self,
        spool: Spool,
        node_key: VerifierKey,
        *,
        ask: bool,
        before: tuple[Spool, VerifierKey] | None = None,
        older: Sequence[Older] = (),
    ) -> None:
        """From here on upload this log, from the first entry that has no receipt.

        :param older: the logs before it, which the verifier may have lost.
        :param before: a log, and its key, whose end the verifier has to take first.
        :param ask: first ask the verifier for its newest head of the log, see :attr:`asked`.
        """
        with self._changed:
            self._asked, self._told = not ask, False
            self._next, self._older = None, older
            if before is not None:
                self._next = (spool, node_key)
                spool, node_key = before
            self._begin(spool, node_key)
            self._leave, self._more = None, True
            self._changed.notify_all()

    def _begin(self, spool: Spool, node_key: VerifierKey) -> None:
        self._spool, self._keys = spool, Keys(node_key, self._receipt_key)
        self._progress, self._recall_at = Progress(spool.receipted), None

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something was sealed."""
        with self._changed:
            self._more = True
            self._changed.notify_all()

    def hurry(self) -> None:
        """Somebody waits for the receipts of what is sealed: this once without jitter."""
        with self._changed:
            self._hurry = self._more = True
            self._changed.notify_all()

    @property
    def asked(self) -> bool:
        """Whether the verifier has said, or failed to say, which head of this log it has."""
        with self._changed:
            return self._asked

    @property
    def told(self) -> bool:
        """Whether the verifier has said which head of this log it has: nothing that is written here was forgotten."""
        with self._changed:
            return self._told

    def wait_asked(self, seconds: float) -> None:
        """Wait for :attr:`asked`, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._asked or self._stop, seconds)

    def leave(self) -> Leave | None:
        """Whether the log is to be left, and why."""
        with self._changed:
            return self._leave

    @property
    def alive(self) -> bool:
        """False when the thread met an error that nobody expected; it was printed."""
        return self._thread.is_alive()

    @property
    def last_error(self) -> str | None:
        with self._changed:
            return self._last_error

    @property
    def verifier_checkpoint(self) -> str | None:
        """The newest checkpoint of the verifier's log that was verified with the pinned key."""
        with self._changed:
            return None if self._quote is None else self._quote[1]

    def drain(self, seconds: float) -> bool:
        """Wait until everything sealed is receipted, at most so long; returns whether it is."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._hurry = self._drains = self._more = True
            self._changed.notify_all()
            while not self._done() and self._leave is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return self._done()

    def relieve(self, spool: Spool, wanted: int) -> tuple[int, int]:
        """Give receipted bytes of ``spool`` back to a full disk, see :class:`~keyturn_agent.retention.Retention`.

        At once, in the caller's thread: this one may be waiting for a verifier that is away.
        """
        return (0, 0) if self._retention is None else self._retention.relieve(spool, wanted)

    def stop(self) -> None:
        """End the thread; one exchange that hangs is left behind, it can't do harm."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=1)

    def _done(self) -> bool:
        return self._spool is not None and self._next is None and self._progress.position >= self._spool.end

    # -- the courier's thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._more and not self._stop and (idle_s := self._idle_s()) != 0:
                    self._changed.wait(idle_s)
                if self._stop:
                    return
                self._more = False
            while not self._ask():
                self._pause(_READ_AGAIN_S)
            self._pause(self._random.fraction_ppm() / 1e6 * self._jitter_s)
            while self._exchange():
                pass
            with self._changed:
                self._hurry = self._drains or self._more
            self._fetch_checkpoint()
            self._tidy()

    def _ask(self) -> bool:
        """Compare the verifier's newest head of the log with ours, once, before anything new is signed.

        :returns: False where our own can't be read: then nothing may be signed, and this is done again.
        """
        with self._changed:
            spool, keys = self._spool, self._keys
            if self._asked or self._stop or spool is None or keys is None:
                return True
        if not self._compare(spool, keys):
            return False
        with self._changed:
            self._asked = True
            self._changed.notify_all()
        return True

    def _compare(self, spool: Spool, keys: Keys) -> bool:
        """Hold the verifier's newest head of the log against ours; returns False where our own can't be read."""
        try:
            outcome = judge_head(self._verifier.head(keys.node.name), keys, spool.root_at, spool.end)
            match outcome:
                case RolledBack(why=why):
                    self._ask_to_leave(keys, "rollback", why)
                case Resume(size=size):
                    self._went_back(keys, size)
                case Retry(why=why):
                    logger.warning("the verifier didn't say which head of this log it has: %s", why)
        except UnreachableError as error:
            logger.warning("%s", error)
        except DamagedError as error:
            self._ask_to_leave(keys, "damaged", str(error))
        except StoreError as error:
            self._fail(str(error), logging.ERROR, _READ_AGAIN_S)
            return False
        return True

    def _went_back(self, keys: Keys, size: int) -> None:
        """The verifier has said how much it has; less than it receipted is sent again, before it is asked for."""
        with self._changed:
            if self._keys is not keys:
                return
            self._told = True
            if size < self._progress.position:
                self._progress, self._recall_at = Progress(size), None

    # -- older logs

    @property
    def _held(self) -> bool:
        """Whether this log waits for those before it: the verifier, which has nothing of it, takes them in order."""
        with self._changed:
            return self._recall.holds and not self._progress.position and not self._stop and self._leave is None

    def _older_step(self) -> bool:
        """One exchange about the logs before this one, if it is time; returns whether to go on."""
        with self._changed:
            if self._stop or self._leave is not None or self._keys is None:
                return False
            if self._recall_at is None:
                number = parse_origin(self._keys.node.name).incarnation
                self._recall.begin([one for one in self._older if parse_origin(one.key.name).incarnation < number])
                self._recall_at = 0
        if not self._recall.going_on or time.monotonic() < self._recall_at:
            return False
        wait_s = self._recall.step(self._random.fraction_ppm())
        if wait_s:
            self._fail(self._recall.why, logging.WARNING, wait_s)
        with self._changed:
            if self._recall_at is not None:
                self._recall_at = time.monotonic() + wait_s
        return not wait_s

    def _wait_held(self) -> bool:
        """Wait for the next exchange about older logs, where this one is held up by them; returns whether it is."""
        if not self._held:
            return False
        self._pause(self._idle_s() or 0, firm=True)
        return True

    def _idle_s(self) -> float | None:
        """Until the next exchange about older logs; None without one."""
        if self._recall_at is None or not self._recall.going_on:
            return None
        return max(0.0, self._recall_at - time.monotonic())

    def _exchange(self) -> bool:
        """One exchange about older logs and one about this one, where there are any; returns whether to go on."""
        older = self._older_step()
        this = not self._held and self._step()
        return older or this or self._wait_held()

    def _step(self) -> bool:
        """One exchange; returns whether to go on."""
        with self._changed:
            spool, keys, progress = self._spool, self._keys, self._progress
            if spool is None or keys is None or self._stop or self._leave is not None:
                return False
        upload: Upload | None = None
        try:
            upload = spool.upload(progress.position)
            if upload is None:
                if progress.position >= spool.end and self._go_on(keys):
                    return True
                if progress.position < spool.first:
                    why = f"the verifier has {progress.position} entries; those up to {spool.first} were removed here"
                    self._ask_to_leave(keys, "rejected", f"{why}, long after it had receipted them")
                elif progress.position < spool.end:
                    # Heads that we signed end where our segments end: somebody took this one away.
                    self._ask_to_leave(
                        keys, "damaged", f"the segment that begins with entry {progress.position} is gone"
                    )
                return False
            outcome = self._send(upload, spool, keys)
            outcome = self._keep(outcome, upload, spool)
        except DamagedError as error:
            self._ask_to_leave(keys, "damaged", str(error))
            return False
        except StoreError as error:
            outcome = Retry(str(error), 0, alarm=True)
        self._settle(outcome, progress.after(outcome, progress.position if upload is None else upload.end), keys)
        return True

    def _go_on(self, keys: Keys) -> bool:
        """After the end of one log, begin on the one that follows it; returns whether there is one."""
        with self._changed:
            if self._keys is not keys or self._next is None:
                return False
            self._begin(*self._next)
            self._next = None
            self._changed.notify_all()
            return True

    def _send(self, upload: Upload, spool: Spool, keys: Keys) -> Outcome:
        try:
            answer: Answer = self._verifier.send_segment(upload.frame(), upload.receipt)
        except UnreachableError as error:
            return Retry(str(error), 0, alarm=False)
        return judge(answer, upload.text, keys, spool.root_at, spool.end)

    def _keep(self, outcome: Outcome, upload: Upload, spool: Spool) -> Outcome:
        """Put the receipt on disk before it counts; if that fails it is asked for again."""
        try:
            match outcome:
                case Receipted(receipt=receipt):
                    spool.add_receipt(upload.start, upload.end, receipt)
                case Resume(size=size, receipt=bytes() as receipt):
                    if (start := spool.start_of(size)) is not None:
                        spool.add_receipt(start, size, receipt)
                case _:
                    pass
        except StoreError as error:
            return Retry(str(error), 0, alarm=True)
        return outcome

    def _settle(self, outcome: Outcome, progress: Progress, keys: Keys) -> None:
        wait_s = progress.wait_s(self._random.fraction_ppm())
        with self._changed:
            if self._keys is not keys:
                return
            self._progress = progress
            if isinstance(outcome, Receipted | Resume):
                self._last_error = None
            if isinstance(outcome, Resume) and self._spool is not None and outcome.size < self._spool.receipted:
                self._recall_at = None
            self._changed.notify_all()
        match outcome:
            case Receipted():
                return
            case Resume(size=size):
                logger.info("the verifier has %d entries; going on from there", size)
            case Retry(why=why, after_s=after_s, alarm=alarm):
                wait_s = max(wait_s, after_s)
                self._fail(why, logging.ERROR if alarm else logging.WARNING, wait_s)
            case RolledBack(why=why):
                self._ask_to_leave(keys, "rollback", why)
                return
            case Ended(code=code, why=why):
                if progress.is_final(outcome):
                    self._ask_to_leave(keys, "rejected", why)
                    return
                if code in _FORGOTTEN and self._older and (spool := self._spool) is not None:
                    self._compare(spool, keys)
                self._fail(why, logging.ERROR, wait_s)
        self._pause(wait_s)

    def _fail(self, why: str, level: int, wait_s: float) -> None:
        logger.log(level, "upload: %s; next try in %.0f s", why, wait_s)
        with self._changed:
            self._last_error = why

    def _ask_to_leave(self, keys: Keys, reason: Literal["rejected", "rollback", "damaged"], why: str) -> None:
        logger.error("this log has ended (%s): %s", reason, why)
        with self._changed:
            self._last_error = why
            self._leave = Leave(keys.node.name, reason, why)
            self._changed.notify_all()

    def _pause(self, seconds: float, *, firm: bool = False) -> None:
        """Wait; the end of the process cuts it short, and a drain cuts the jitter but not a backoff (or ``firm``)."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._stop and (left := deadline - time.monotonic()) > 0:
                if self._hurry and not self._progress.failures and not firm:
                    return
                self._changed.wait(left)

    def _tidy(self) -> None:
        """Remove receipted segments that were kept long enough."""
        with self._changed:
            spool = self._spool
        if self._retention is not None and spool is not None:
            self._retention.apply(spool)

    def _fetch_checkpoint(self) -> None:
        """Look at the head of the verifier's own log, now and then."""
        if time.monotonic() - self._quoted_at < _CHECKPOINT_EVERY_S:
            return
        try:
            answer = self._verifier.log_checkpoint()
            if answer.status != 200:
                return
            note = parse_note(answer.body)
            head = open_checkpoint(note, self._log_key)
        except UnreachableError:
            return
        except ProtocolError as error:
            logger.error("the checkpoint of the verifier's log is not valid under the pinned key: %s", error)
            return
        if len(answer.body) > _QUOTE_BYTES and (own := find(note, self._log_key)) is not None:
            note = Note(note.text, (own,))
        with self._changed:
            self._quoted_at = time.monotonic()
            if self._quote is None or self._quote[0] <= head.size:
                self._quote = (head.size, note.to_bytes().decode())
            else:
                logger.error("the verifier's log shrank: had %d leaves, now %d", self._quote[0], head.size)
