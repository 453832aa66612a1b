"""What an operator has the log say while the agent is stopped: that its key is rolled, that chips are retired.

A running agent does the same itself, see :mod:`~keyturn_agent.operator`.

Each of these first brings the verifier up to date, so that nothing is signed by a folder that was rolled back, and
returns once the verifier has receipted it. Cut short, it goes on where it was: when it is run again, or when the
agent is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from keyturn_agent.clock import SimulatedClock, SystemClock
from keyturn_agent.courier import Courier
from keyturn_agent.errors import RefusedError, UnreachableError, UsageError
from keyturn_agent.keyring import refuse_sealed
from keyturn_agent.ports import Clock, Random, Verifier
from keyturn_agent.status import mark_retired, read_listed, write_listed
from keyturn_agent.store import Store, read_enrolment
from keyturn_protocol.entries import Inventory, Retired, parse_entry
from keyturn_protocol.entry_log import RetiredBody


class Session:
    """A stopped host's folder, open for a last word, and the upload beside it."""

    def __init__(self, store: Store, clock: Clock, courier: Courier, patience_s: float, now_s: int) -> None:
        self.store = store
        self._clock = clock
        self._courier = courier
        self._patience_s = patience_s
        self._now_s = now_s

    def deliver(self, *, ask: bool, what: str) -> None:
        """Sign what no head covers yet, as a crash may have left it, and have all of it receipted.

        :param ask: whether the verifier is asked for its newest head first: nothing is signed before it has answered.
        :raises RefusedError: the verifier doesn't take this log any more.
        :raises UnreachableError: ``no_receipt``.
        """
        log = self.store.log
        self._courier.carry(log.spool, log.key, ask=ask, before=self.store.before, older=self.store.older())
        self._courier.wait_asked(self._patience_s)
        told = not ask or self._courier.told
        if told and self._courier.leave() is None:
            # After this the last word survives, signed, whoever wrote it.
            log.seal()
        done = told and self._courier.drain(self._patience_s)
        if (leave := self._courier.leave()) is not None:
            raise RefusedError(
                leave.reason, f"this log can't go on: {leave.why}", hint="start the agent: it opens the next one"
            )
        if not done:
            raise UnreachableError(
                "no_receipt",
                f"{what}: {self._courier.last_error or 'no answer from the verifier yet'}",
                hint="run the same command again once the verifier answers",
            )
        self.store.settle_keys()

    def roll(self) -> None:
        self.store.roll_key(self.store.stamp(self._clock), self._now_s)

    def said(self, word: RetiredBody) -> bool:
        """Whether the log says so already: a try that was cut short, before its receipt or just after, has left it.

        What an inventory follows was said of chips that were listed anew since.
        """
        log = self.store.log
        if log.chain.closed == "retired":
            return True
        start = log.spool.start_of(log.spool.receipted)
        for line in reversed(log.lines(log.spool.receipted if start is None else start)):
            match parse_entry(line):
                case Inventory():
                    return False
                case Retired(body=body) if body == word:
                    return True
        return False

    def retire(self, word: RetiredBody) -> None:
        # After this the word survives; a try that is cut short before it is signed finds it, and signs it.
        self.store.log.append([word], self.store.stamp(self._clock))


@contextmanager
def session(
    folder: Path, verifier_at: Callable[[str], Verifier], random: Random, patience_s: float, now_s: int
) -> Iterator[Session]:
    """Open a stopped host's folder, also one that was retired.

    :raises RefusedError: ``locked``: the agent runs.
    """
    enrolment, pinned = read_enrolment(folder)

    def make_clock(newest_us: int) -> Clock:
        if enrolment.source != "replay":
            return SystemClock()
        # A replay's log may be ahead of the clock.
        return SimulatedClock(max(SystemClock().now().time_us, newest_us), random.uuid4())

    store, clock = Store.open(folder, make_clock, now_s, retired=True)
    courier = Courier(verifier_at(enrolment.verifier), pinned.receipt_key, pinned.log_key, random, jitter_s=0)
    courier.start()
    try:
        yield Session(store, clock, courier, patience_s, now_s)
    finally:
        courier.stop()
        store.close()


def roll_key(
    folder: Path, verifier_at: Callable[[str], Verifier], random: Random, patience_s: float, now_s: int
) -> str:
    """Let a new key take over; returns the new log's origin. The old key is removed once its log's end is receipted.

    A roll that was cut short is finished, and that is all that is done then.
    """
    with session(folder, verifier_at, random, patience_s, now_s) as work:
        store = work.store
        if store.log.chain.closed == "retired":
            raise RefusedError("retired", "this host was retired: its log has ended")
        refuse_sealed(store.keyring)
        unfinished = store.before is not None
        work.deliver(ask=True, what="the key was not rolled" if not unfinished else "the roll is not receipted yet")
        if not unfinished:
            work.roll()
            work.deliver(ask=False, what="the roll is not receipted yet")
        return store.log.name.origin


def retire(
    folder: Path,
    chips: Sequence[str] | None,
    reason: str,
    verifier_at: Callable[[str], Verifier],
    random: Random,
    patience_s: float,
    now_s: int,
) -> None:
    """Say that chips (by uuid) won't report any more; None retires the host, and its log ends.

    :raises UsageError: ``no_chip``: the last inventory doesn't list one of them.
    """
    known = {chip.uuid for chip in read_listed(folder)}
    if (strange := sorted(set(chips or ()) - known)) and (folder / "chips.json").exists():
        raise UsageError("no_chip", f"--chips: not a chip of this host: {', '.join(strange)}")
    word = RetiredBody(chips=None if chips is None else sorted(set(chips)), reason=reason)
    with session(folder, verifier_at, random, patience_s, now_s) as work:
        said = work.said(word)
        work.deliver(ask=True, what="the retirement is not receipted yet" if said else "nothing was retired")
        if not said:
            work.retire(word)
            work.deliver(ask=False, what="the retirement is not receipted yet")
        if chips is None:
            mark_retired(folder)
        else:
            write_listed(folder, [], retired=chips)


def finish_retirement(
    folder: Path, verifier_at: Callable[[str], Verifier], random: Random, patience_s: float, now_s: int
) -> None:
    """Have the end of a retired host's log receipted, if it isn't, and leave the mark that it has ended."""
    with session(folder, verifier_at, random, patience_s, now_s) as work:
        if work.store.log.spool.receipted < work.store.log.size:
            work.deliver(ask=True, what="the retirement is not receipted yet")
    mark_retired(folder)
