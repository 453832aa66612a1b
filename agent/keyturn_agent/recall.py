"""Logs before the newest one that the verifier has lost: what it had receipted of them is sent again.

A verifier whose database went back takes a node's logs in their order: it opens none before one that it knows, and no
log under a key that the end of the one before has yet to name. So it is asked log by log, the newest first, until one
is whole there; what is missing is sent oldest first, in the pieces in which it was receipted, each with its receipt.

Everything here is one exchange at a time, so that others come in between, and rests on nothing but the files and what
the verifier says: cut short, it goes on where it was. The segments that are there bound it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keyturn_agent.errors import DamagedError, StoreError, UnreachableError
from keyturn_agent.ports import Verifier
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
from keyturn_protocol.keys import VerifierKey

logger = logging.getLogger(__name__)

TIRED: Final = 8
"""After so many answers in a row that bring nothing forward, in ten minutes or more, the newest log waits no longer."""


@dataclass(slots=True)
class _Lost:
    """A log of which the verifier lacks receipted entries, and where that stands."""

    spool: Spool
    keys: Keys
    progress: Progress


class Recall:
    """What is asked and sent again of older logs. Used by one thread."""

    def __init__(self, verifier: Verifier, receipt_key: VerifierKey) -> None:
        self._verifier = verifier
        self._receipt_key = receipt_key
        self._unasked: list[Older] = []
        self._lost: list[_Lost] = []
        self._failed = Progress(0)
        self._answered = 0
        """Answers in a row that brought nothing forward."""
        self.why = ""
        """What failed last."""

    def begin(self, older: Sequence[Older]) -> None:
        """Look anew at these logs, given oldest first."""
        self._unasked, self._lost = list(older), []
        self._failed, self._answered = Progress(0), 0

    @property
    def going_on(self) -> bool:
        return bool(self._unasked or self._lost)

    @property
    def holds(self) -> bool:
        """Whether the newest log, where the verifier hasn't opened it, should wait: it would shut these out."""
        return self.going_on and self._answered < TIRED

    def step(self, fraction_ppm: int) -> float:
        """One exchange, if there is one to make; returns after how many seconds there may be the next one."""
        try:
            if self._unasked:
                outcome = self._ask(self._unasked[-1])
            elif self._lost:
                outcome = self._send(self._lost[-1])
            else:
                return 0
        except UnreachableError as error:
            return self._fail(str(error), 0, fraction_ppm)
        except DamagedError as error:
            logger.error("what the verifier lost can't be given back: %s", error)
            (self._unasked or self._lost).pop()
            return 0
        except StoreError as error:
            outcome = Retry(str(error), 0, alarm=True)
        if isinstance(outcome, Retry):
            self._answered += 1
            return self._fail(outcome.why, outcome.after_s, fraction_ppm)
        self._failed, self._answered = Progress(0), 0
        return 0

    def _fail(self, why: str, after_s: int, fraction_ppm: int) -> float:
        self.why = why
        self._failed = Progress(0, self._failed.failures + 1)
        return max(self._failed.wait_s(fraction_ppm), after_s)

    def _ask(self, older: Older) -> Retry | None:
        """Compare the verifier's head of one log with the receipts for it; None where that is settled."""
        spool, keys = Spool(older.folder, older.key), Keys(older.key, self._receipt_key)
        if not spool.receipted:
            self._unasked.pop()
            return None
        match judge_head(self._verifier.head(older.key.name), keys, spool.root_at, spool.end):
            case Retry() as retry:
                return retry
            case Resume(size=size) if size < spool.receipted:
                here = spool.upload(size) is not None
                self._unasked.pop()
                what = f"{keys.node.name}: the verifier lost entries {size} … {spool.receipted - 1}"
                if here:
                    logger.warning("%s; sending them again", what)
                    self._lost.append(_Lost(spool, keys, Progress(size)))
                else:
                    logger.error("%s, of which the first were removed here", what)
            case _:
                # It has all that it receipted, or more than this folder knows of: so it has of the logs before.
                self._unasked.clear()
        return None

    def _send(self, lost: _Lost) -> Retry | None:
        """One piece; None where there is no reason to wait."""
        upload = None
        if lost.progress.position < lost.spool.receipted:
            upload = lost.spool.upload(lost.progress.position)
        if upload is None:
            logger.info("%s: the verifier has %d entries again", lost.keys.node.name, lost.progress.position)
            self._lost.pop()
            return None
        answer = self._verifier.send_segment(upload.frame(), upload.receipt)
        return self._settle(lost, upload, judge(answer, upload.text, lost.keys, lost.spool.root_at, lost.spool.end))

    def _settle(self, lost: _Lost, upload: Upload, outcome: Outcome) -> Retry | None:
        lost.progress = progress = lost.progress.after(outcome, upload.end)
        match outcome:
            case Receipted(receipt=receipt):
                if receipt != upload.receipt:
                    lost.spool.add_receipt(upload.start, upload.end, receipt)
            case Resume(size=size) if progress.failures:
                return Retry(f"the verifier says again that it has {size} entries", 0, alarm=False)
            case Retry():
                return outcome
            case Ended(why=why) if not progress.is_final(outcome):
                return Retry(why, 0, alarm=True)
            case Ended(why=why) | RolledBack(why=why):
                logger.error("%s: the verifier lost entries and doesn't take them back: %s", lost.keys.node.name, why)
                self._lost.pop()
            case Resume():
                pass
        return None
