"""What a verifier answers to a request for a lease, and what follows from it. Pure."""

from dataclasses import dataclass
from typing import Final

from keyturn_agent.ports import Answer
from keyturn_protocol.api import Problem
from keyturn_protocol.canonical import parse
from keyturn_protocol.errors import ProtocolError

RETRY_S: Final = 5


@dataclass(frozen=True, slots=True)
class Note:
    """Something that says it is a lease."""

    data: bytes


@dataclass(frozen=True, slots=True)
class TooLate:
    """The request was heard too long after it was written: another one has to be."""


@dataclass(frozen=True, slots=True)
class NoLease:
    """The rules refuse it; ``why`` is a code. Whoever has a lease may ask again, so many seconds from now."""

    why: str
    detail: str
    retry_s: int


@dataclass(frozen=True, slots=True)
class NotYet:
    """Ask again, so many seconds from now."""

    detail: str
    retry_s: int


Said = Note | TooLate | NoLease | NotYet


def said(answer: Answer) -> Said:
    """What an answer means; one that nobody understands says nothing about the lease."""
    if answer.status == 200:
        return Note(answer.body)
    try:
        problem: Problem | None = parse(answer.body, Problem)
    except ProtocolError:
        problem = None
    detail = f"HTTP {answer.status}" if problem is None else problem.detail
    retry_s = answer.retry_after_s or RETRY_S
    if answer.status == 422 and problem is not None and problem.code == "lease_refused":
        why = detail.partition(":")[0]
        return TooLate() if why == "too_late" else NoLease(why, detail, retry_s)
    return NotYet(detail, retry_s)
