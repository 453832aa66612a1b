"""What to do about each answer to an upload. Pure: the agent's side of the receipt table of wire-formats.

200                     a valid receipt: go on after it; an invalid one: try again, loudly
409                     our own signed head that we have: go on from there
                        our own signed head that we lack: this folder was rolled back or cloned, leave the log
408, 429, 5xx           wait, then try again
any other 4xx           the log has ended
not a verifier's word   (a proxy's page, a redirect, a 4xx without a problem body) wait, then try again
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from keyturn_agent.ports import Answer
from keyturn_protocol.api import STATUS, Problem, ProblemCode
from keyturn_protocol.canonical import parse
from keyturn_protocol.checkpoint import open_checkpoint
from keyturn_protocol.cosignature import open_cosigned, parse_receipt, verify_cosignature
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.keys import VerifierKey
from keyturn_protocol.limits import NOTE_BYTES
from keyturn_protocol.note import find, parse_note

STRIKES: Final = 3
"""A refusal that damage in transfer could have caused has to be said this often in a row before it counts."""
_AT_ONCE: Final = frozenset(
    {ProblemCode.FORK, ProblemCode.LOG_FROZEN, ProblemCode.LOG_CLOSED, ProblemCode.INVALID_ENTRIES}
)
"""Refusals that a damaged copy can't cause: they rest on the log's own signature."""
_BACKOFF_S: Final = 5
_BACKOFF_MAX_S: Final = 900
_RETRY_AFTER_MAX_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Receipted:
    """The verifier holds everything up to what was sent. ``receipt`` is the line, verified."""

    time_s: int
    receipt: bytes


@dataclass(frozen=True, slots=True)
class Resume:
    """The verifier knows our head of ``size``: go on from there. ``receipt``: its line for that head, if valid."""

    size: int
    receipt: bytes | None


@dataclass(frozen=True, slots=True)
class Retry:
    """Try the same again later. ``after_s``: not earlier than the verifier asked. ``alarm``: someone should look."""

    why: str
    after_s: int
    alarm: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The verifier takes no more of this log."""

    code: ProblemCode
    why: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """We signed a head that this folder doesn't have."""

    why: str


Outcome = Receipted | Resume | Retry | Ended | RolledBack


@dataclass(frozen=True, slots=True)
class Keys:
    """Our log's key, and the verifier's pinned receipt key."""

    node: VerifierKey
    receipt: VerifierKey


def judge(answer: Answer, text: bytes, keys: Keys, root_at: Callable[[int], Hash | None], size: int) -> Outcome:
    """What an answer to an upload means.

    :param text: the checkpoint's text as it was sent.
    :param root_at: the root of our signed head of a size, None if we never signed one.
    :param size: of our newest signed head.
    """
    after_s = min(answer.retry_after_s or 0, _RETRY_AFTER_MAX_S)
    if answer.status == 200:
        try:
            time_s = verify_cosignature(text, parse_receipt(answer.body), keys.receipt)
        except ProtocolError as error:
            return Retry(f"the verifier's receipt is not valid under the pinned key: {error}", after_s, alarm=True)
        return Receipted(time_s, answer.body)
    problem = _problem(answer)
    if answer.status in (408, 429) or answer.status >= 500:
        return Retry(_say(answer, problem), after_s, alarm=False)
    if problem is None:
        return Retry(f"HTTP {answer.status} without a verifier's problem body", after_s, alarm=True)
    code = ProblemCode(problem.code)
    if code is ProblemCode.BEHIND:
        return _behind(problem, keys, root_at, size, after_s)
    if 400 <= answer.status < 500:
        return Ended(code, _say(answer, problem))
    return Retry(_say(answer, problem), after_s, alarm=True)


def _behind(problem: Problem, keys: Keys, root_at: Callable[[int], Hash | None], size: int, after_s: int) -> Outcome:
    if problem.checkpoint is None:
        # The verifier knows the log and has nothing of it: everything is sent again, which proves nothing wrong.
        return Resume(0, None)
    return _compare(problem.checkpoint.encode("utf-8", "replace"), keys, root_at, size, after_s)


def judge_head(answer: Answer, keys: Keys, root_at: Callable[[int], Hash | None], size: int) -> Outcome:
    """What the verifier's newest head of our log means for a folder whose newest signed head is ``size``.

    Asked before anything new is signed: a folder that was restored from a backup would otherwise sign a second
    head of a size that it has forgotten.
    """
    if answer.status != 200:
        problem = _problem(answer)
        if problem is not None and problem.code == ProblemCode.UNKNOWN_LOG:
            return Resume(0, None)
        return Retry(_say(answer, problem), 0, alarm=False)
    return _compare(answer.body, keys, root_at, size, 0)


def _compare(cosigned: bytes, keys: Keys, root_at: Callable[[int], Hash | None], size: int, after_s: int) -> Outcome:
    """Hold a head with our signature against what this folder has signed."""
    try:
        note = parse_note(cosigned)
        head = open_checkpoint(note, keys.node)
    except ProtocolError as error:
        return Retry(f"the verifier is behind a head that we didn't sign: {error}", after_s, alarm=True)
    ours = root_at(head.size)
    if ours is None or ours != head.root:
        what = "with another root" if ours is not None else f"while this folder's newest is {size}"
        return RolledBack(
            f"the verifier has a head of size {head.size} under our signature, {what}: "
            "this state folder was rolled back, or another host runs on a copy of it"
        )
    receipt = None
    try:
        open_cosigned(note, keys.receipt)
        if (line := find(note, keys.receipt)) is not None:
            receipt = line.to_bytes()
    except ProtocolError:
        # Our own signature is enough to go on; a receipt that isn't valid is not kept.
        pass
    return Resume(head.size, receipt)


def _problem(answer: Answer) -> Problem | None:
    """The problem body, if this is a verifier's: the right type, a known code, and the status that goes with it."""
    if answer.content_type.partition(";")[0].strip() != "application/problem+json" or len(answer.body) > 4 * NOTE_BYTES:
        return None
    try:
        problem: Problem = parse(answer.body, Problem)
        code = ProblemCode(problem.code)
    except (ProtocolError, ValueError):
        return None
    return problem if STATUS[code] == answer.status else None


def _say(answer: Answer, problem: Problem | None) -> str:
    return f"HTTP {answer.status}" if problem is None else f"{problem.code}: {problem.detail[:400]}"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an upload stands: what the verifier knows, and how it went lately."""

    position: int
    """Entries that the verifier has, as far as we know."""
    failures: int = 0
    strikes: int = 0

    def wait_s(self, fraction_ppm: int) -> float:
        """How long to wait after the last failure: doubling, and between half and the whole of it by chance."""
        if not self.failures:
            return 0.0
        whole = min(_BACKOFF_MAX_S, _BACKOFF_S << min(self.failures - 1, 20))
        return whole * (1_000_000 + fraction_ppm) / 2_000_000

    def after(self, outcome: Outcome, end: int) -> "Progress":
        """The progress after an outcome of an upload up to ``end``."""
        match outcome:
            case Receipted():
                return Progress(end)
            case Resume(size=size):
                # Going over the same ground again and again is a failure too, and slows down.
                return Progress(size, self.failures + 1 if size <= self.position else 0)
            case Retry():
                return Progress(self.position, self.failures + 1)
            case Ended() | RolledBack():
                return Progress(self.position, self.failures + 1, self.strikes + 1)

    def is_final(self, outcome: Ended) -> bool:
        """Whether a refusal counts. ``self`` is the progress after it."""
        return outcome.code in _AT_ONCE or self.strikes >= STRIKES
