"""Where a run stands: what the log says about it up to a leaf, and what follows from that at a moment.

    pending → denied | withdrawn | lapsed | approved → active ⇄ suspended → completed | exhausted | expired | revoked

What nobody signs (a lapse, an expiry) is no event: :func:`state` derives it from the moment that it is asked for.
:mod:`keyturn_protocol.advance` says how statements change a run.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from keyturn_protocol.authority import Authority, Why, refuse
from keyturn_protocol.policy import Policy, Tier
from keyturn_protocol.quorum import Tally, tally
from keyturn_protocol.root import Standing
from keyturn_protocol.runs import Narrowing, Proposal, Request, Scope
from keyturn_protocol.values import SpecPart

SECOND: Final = 1_000_000


class State(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"
    LAPSED = "lapsed"
    APPROVED = "approved"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    EXHAUSTED = "exhausted"
    EXPIRED = "expired"
    REVOKED = "revoked"


ALIVE: Final = frozenset({State.PENDING, State.APPROVED, State.ACTIVE, State.SUSPENDED})
"""States in which everything may be said about a run that its rules allow."""


class Vote(msgspec.Struct, frozen=True):
    """A person's last word on something."""

    person: str
    key_id: str
    hash: str
    time_us: int
    verdict: Literal["approve", "deny", "veto"]
    narrowing: Narrowing | None


@dataclass(frozen=True, slots=True)
class Ground:
    """Approvals that what is allowed rests on: of the permit, of each amendment, of the last resumption."""

    tier: Tier
    votes: tuple[Vote, ...]


@dataclass(frozen=True, slots=True)
class Permit:
    """What the quorum allowed, at the leaf at which it was first met."""

    index: int
    time_us: int
    scope: Scope
    votes: tuple[Vote, ...]
    """The approvals that it rests on."""
    start_by_us: int


@dataclass(frozen=True, slots=True)
class Call:
    """One veto-holder's suspension."""

    hash: str
    person: str
    party: str
    organisation: str
    time_us: int
    wanted_us: int
    """When the signer wants the run to stop."""
    alone_us: int
    """When it does if nobody else suspends: not before the notice is over."""


class Alone(msgspec.Struct, frozen=True):
    """How long a party has kept a run suspended, or narrowed, by its own word."""

    since_us: int
    """When it would have begun, had it never been interrupted."""
    ended_us: int | None = None
    """When the last of it was taken back or undone; None while it is in force."""
    left: Mapping[str, Scope] = msgspec.field(default_factory=dict)
    """Part of the scope that it narrowed → the scope as it left it: what goes no further undoes nothing of that."""


class Open(msgspec.Struct, frozen=True):
    """A proposal that is being decided on."""

    statement: Proposal
    tier: Tier
    time_us: int
    votes: Mapping[str, Vote]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended by somebody's word."""

    state: State
    time_us: int
    hash: str
    why: str


class Run(msgspec.Struct, frozen=True):
    """All that the log says about a run, up to a leaf. A struct, since a fold makes one for each statement."""

    hash: str
    request: Request
    policy: Policy
    tier: Tier
    time_us: int
    scope: Scope
    spec: Mapping[SpecPart, str | None]
    organisation: str
    """The requester's, when it asked."""
    key_id: str
    """By which the requester signed."""
    votes: Mapping[str, Vote] = msgspec.field(default_factory=dict)
    permit: Permit | None = None
    ended: Ended | None = None
    calls: tuple[Call, ...] = ()
    """Suspensions in force."""
    voided: tuple[str, int] | None = None
    """A root that took the ground from under the permit: its hash, and when the run stops."""
    epoch: int = 0
    """Raised by every suspension; hosts refuse a lease of a lower one."""
    after: tuple[str, ...] = ()
    """Every event since the permit, oldest first, the last ANSWERED of them: what a proposal must answer."""
    grounds: tuple[Ground, ...] = ()
    """All that a root which calls keys compromised may take away."""
    said: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Bytes by each person, as a permit bundle has them."""
    granted: Scope | None = None
    """What the quorum allowed last, before anybody narrowed it alone."""
    suspended: Mapping[str, Alone] = msgspec.field(default_factory=dict)
    """Party → how long by its suspensions; kept when they are over, so that they don't begin anew."""
    narrowed: Mapping[str, Alone] = msgspec.field(default_factory=dict)
    """Party → how long by its narrowings."""
    overruled: frozenset[str] = frozenset()
    """Parties of which the quorum undid, without them, what they did alone: they do it no more in this run."""
    proposals: Mapping[str, Open] = msgspec.field(default_factory=dict)
    started_us: int | None = None
    """When the first lease was issued."""

    @property
    def stop_at_us(self) -> int | None:
        """The one moment at which every host stops; None while the run may go on."""
        moments = [call.alone_us for call in self.calls]
        sooner: dict[str, int] = {}
        for call in self.calls:
            sooner[call.organisation] = min(call.wanted_us, sooner.get(call.organisation, call.wanted_us))
        if len(sooner) > 1:
            moments.append(sorted(sooner.values())[1])
        if self.voided is not None:
            moments.append(self.voided[1])
        return min(moments, default=None)


def started(run: Run, time_us: int) -> Run:
    """The run after its first lease."""
    return run if run.started_us is not None else replace(run, started_us=time_us)


def state(run: Run, at_us: int, charged_tflop: int = 0) -> State:
    """Where the run stands at a moment no earlier than its last event.

    :param charged_tflop: what its leases have used by then.
    """
    if run.ended is not None:
        return run.ended.state
    if run.permit is None:
        return State.LAPSED if at_us > run.time_us + run.tier.decide_s * SECOND else State.PENDING
    if charged_tflop >= run.scope.budget_tflop:
        return State.EXHAUSTED
    if at_us > run.scope.not_after_us or (run.started_us is None and at_us > run.permit.start_by_us):
        return State.EXPIRED
    if run.stop_at_us is not None:
        return State.SUSPENDED
    return State.APPROVED if run.started_us is None else State.ACTIVE


def is_over(run: Run, at_us: int) -> bool:
    """Whether nothing may be said about the run any more. One whose window is over can still be widened: the window may
    have been narrowed by one person, and what one person does isn't for good."""
    at = state(run, at_us)
    if at is State.EXPIRED and run.permit is not None:
        return run.started_us is None and at_us > run.permit.start_by_us
    return at not in ALIVE


def excluded(run: Run, tier: Tier, standing: Standing) -> frozenset[str]:
    """Persons who can't count: the requester, and, unless the tier lets colleagues, all of its organisation."""
    return frozenset(person for person in standing.persons if is_excluded(run, tier, standing, person)) | {
        run.request.requester
    }


def is_excluded(run: Run, tier: Tier, standing: Standing, person: str) -> bool:
    """Whether a person of the root is one of :func:`excluded`."""
    return person == run.request.requester or (
        not tier.colleagues and standing.party_of(person).organisation == run.organisation
    )


def counted(run: Run, tier: Tier, votes: Iterable[Vote], standing: Standing, at_us: int) -> list[Vote]:
    """The approvals among votes that count: by persons who are in the root now, with keys that are theirs and were
    valid when they signed and are now."""
    found = []
    for vote in votes:
        if vote.verdict != "approve":
            continue
        key = standing.keys.get(vote.key_id)
        if key is None or key.person.id != vote.person or is_excluded(run, tier, standing, vote.person):
            continue
        if key.refusal(vote.time_us, at_us) is None:
            found.append(vote)
    return sorted(found, key=lambda vote: vote.person)


def progress(run: Run, authority: Authority, index: int, at_us: int, subject: str | None = None) -> Tally:
    """How far the approvals of a request get, or of an open proposal about the run.

    :param index: of the leaf for which it is asked, usually the next one.
    :param subject: hash of the proposal.
    :raises Refused: ``decided``: no such proposal is open.
    """
    standing = authority.standing_at(index)
    tier, votes = run.tier, run.votes
    if subject is not None and subject != run.hash:
        proposal = run.proposals.get(subject)
        if proposal is None:
            raise refuse(Why.DECIDED, "no such proposal is open", got=subject)
        tier, votes = proposal.tier, proposal.votes
    approvals = counted(run, tier, votes.values(), standing, at_us)
    return tally(tier.approve, [vote.person for vote in approvals], standing)


def party_in(person: str) -> str:
    """The party in a person's id."""
    return person.partition("/")[0]
