"""The life of a run, from its request to its end: a pure function of the log up to a leaf, and of a moment.

    pending → denied | withdrawn | lapsed | approved → active ⇄ suspended → completed | exhausted | expired | revoked

Order is the leaf index, time the leaf's. What nobody signs (a lapse, an expiry) is no event: :func:`state` derives
it from the moment that it is asked for. The verifier refuses to log what :func:`advance` refuses; an auditor who finds
such a leaf has found a verifier that lies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Literal, assert_never

from keyturn_protocol.authority import Authority, Logged, Why, refuse, signed_by
from keyturn_protocol.limits import ANSWERED, CALLS, SAID_BYTES
from keyturn_protocol.policy import Policy, Tier, tier_for
from keyturn_protocol.quorum import Tally, shared_with, tally
from keyturn_protocol.root import Standing
from keyturn_protocol.runs import (
    Amend,
    Decision,
    Narrowing,
    Proposal,
    Request,
    Resume,
    Revoke,
    RunStatement,
    Scope,
    Suspend,
    Withdraw,
    compose,
    lineage_tflop,
    widens,
)
from keyturn_protocol.values import SpecPart

_SECOND: Final = 1_000_000


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
"""States in which something may still be said about a run."""


@dataclass(frozen=True, slots=True)
class Vote:
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


@dataclass(frozen=True, slots=True)
class Open:
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


@dataclass(frozen=True, slots=True)
class Run:
    """All that the log says about a run, up to a leaf."""

    hash: str
    request: Request
    policy: Policy
    tier: Tier
    time_us: int
    scope: Scope
    spec: Mapping[SpecPart, str | None]
    votes: Mapping[str, Vote] = field(default_factory=dict)
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
    said: Mapping[str, int] = field(default_factory=dict)
    """Bytes by each person, SAID_BYTES at most."""
    overruled: frozenset[str] = frozenset()
    """Parties whose suspension the quorum lifted without them: the next one takes another party."""
    proposals: Mapping[str, Open] = field(default_factory=dict)
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


def open_run(authority: Authority, logged: Logged) -> Run:
    """The run that a request begins.

    :raises Refused: with what the request breaks.
    """
    request = logged.statement
    if not isinstance(request, Request):
        raise refuse(Why.WRONG_KIND, "not a request", got=type(request).__name__)
    standing = authority.standing_for(logged)
    policy_hash, policy = authority.policy_at(logged.index)
    signed_by(standing, request.requester, logged)
    if request.policy != policy_hash:
        raise refuse(Why.OTHER_POLICY, "under another policy", expected=policy_hash, got=request.policy)
    if standing.party_of(request.requester).class_ not in policy.requesters:
        raise refuse(Why.NOT_ENTITLED, "may not ask for runs", got=request.requester)
    if request.scope.not_after_us <= logged.time_us:
        raise refuse(Why.TOO_LATE, "the window is over", got=request.scope.not_after_us)
    tier = _tier(policy, request.scope, request)
    for part in tier.verified:
        if request.spec.get(part) is None:
            raise refuse(Why.BROKEN, f"tier {tier.name} asks for a commitment to {part}")
    return Run(logged.hash, request, policy, tier, logged.time_us, request.scope, request.spec)


def advance(run: Run, authority: Authority, logged: Logged) -> Run:
    """The run after one more statement about it.

    :raises Refused: nothing changes then.
    """
    statement = logged.statement
    if not isinstance(statement, RunStatement) or isinstance(statement, Request):
        raise refuse(Why.WRONG_KIND, "not about a run that there is", got=type(statement).__name__)
    standing = authority.standing_for(logged)
    key_id = signed_by(standing, statement.person, logged)
    if statement.policy != run.request.policy:
        raise refuse(Why.OTHER_POLICY, "under another policy", expected=run.request.policy, got=statement.policy)
    _alive(run, logged.time_us)
    run = _counted(run, logged, statement)
    match statement:
        case Decision():
            return _decide(run, standing, logged, statement, key_id)
        case Withdraw():
            return _withdraw(run, logged, statement)
        case Suspend():
            return _suspend(run, standing, logged, statement)
        case Resume() | Revoke() | Amend():
            return _propose(run, standing, logged, statement)
        case _:
            assert_never(statement)


def under_root(run: Run, authority: Authority, index: int, time_us: int) -> Run:
    """The run after another root came into force: approvals by keys that it calls compromised no longer carry it."""
    if run.permit is None or run.ended is not None or run.voided is not None:
        return run
    standing = authority.standing_at(index)
    if all(_holds(ground, standing) for ground in run.grounds):
        return run
    stop_at_us = time_us + run.policy.stop.notice_s * _SECOND
    return _event(replace(run, voided=(standing.hash, stop_at_us), epoch=run.epoch + 1), standing.hash)


def _holds(ground: Ground, standing: Standing) -> bool:
    held = [vote.person for vote in ground.votes if not _compromised(standing, vote)]
    return len(held) == len(ground.votes) or tally(ground.tier.approve, held, standing).met


def under_policy(run: Run, policy_hash: str, time_us: int) -> Run:
    """The run after another policy came into force: what isn't decided yet is asked for again, under that one."""
    if run.permit is not None or run.ended is not None:
        return run
    return replace(run, ended=Ended(State.LAPSED, time_us, policy_hash, "another policy came into force"))


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
        return State.LAPSED if at_us > run.time_us + run.tier.decide_s * _SECOND else State.PENDING
    if charged_tflop >= run.scope.budget_tflop:
        return State.EXHAUSTED
    if at_us > run.scope.not_after_us or (run.started_us is None and at_us > run.permit.start_by_us):
        return State.EXPIRED
    if run.stop_at_us is not None:
        return State.SUSPENDED
    return State.APPROVED if run.started_us is None else State.ACTIVE


def progress(run: Run, authority: Authority, index: int, at_us: int) -> Tally:
    """How far the approvals of a pending run get."""
    standing = authority.standing_at(index)
    return _tally(run, run.tier, run.votes, standing, at_us)[0]


def _alive(run: Run, time_us: int) -> None:
    at = state(run, time_us)
    if at not in ALIVE:
        raise refuse(Why.OVER, f"the run is {at}", got=run.hash)


def _counted(run: Run, logged: Logged, statement: RunStatement) -> Run:
    """The run with the bytes of one more statement: nobody makes others keep more than so much."""
    match statement:
        case Suspend():
            if sum(call.person == statement.person for call in run.calls) >= CALLS:
                raise refuse(Why.TOO_MUCH, "has so many suspensions in force", expected=f"<= {CALLS}")
            return run
        case Request():
            return run
        case Decision() if statement.verdict == "veto":
            return run
        case _:
            person = statement.person
    size = run.said.get(person, 0) + logged.size
    if size > SAID_BYTES:
        raise refuse(Why.TOO_MUCH, f"{person} said too much about this run", expected=f"<= {SAID_BYTES}", got=size)
    return replace(run, said={**run.said, person: size})


def _decide(run: Run, standing: Standing, logged: Logged, decision: Decision, key_id: str) -> Run:
    proposal = run.proposals.get(decision.subject)
    if proposal is None and (decision.subject != run.hash or run.permit is not None):
        raise refuse(Why.DECIDED, "decided already, or no longer what the run's events are", got=decision.subject)
    tier = run.tier if proposal is None else proposal.tier
    asked_us = run.time_us if proposal is None else proposal.time_us
    if logged.time_us > asked_us + tier.decide_s * _SECOND:
        raise refuse(Why.TOO_LATE, "after the deadline", expected=asked_us + tier.decide_s * _SECOND)
    if decision.person in _excluded(run, tier, standing):
        raise refuse(Why.REQUESTER, "who asks never counts", got=decision.person)
    scope = proposal.statement.scope if proposal and isinstance(proposal.statement, Amend) else run.scope
    _check_decision(decision, scope, standing, tier, narrowable=proposal is None)
    vote = Vote(decision.person, key_id, logged.hash, logged.time_us, decision.verdict, decision.narrowing)
    votes = {**(run.votes if proposal is None else proposal.votes), decision.person: vote}
    refused = _refused(votes, tier)
    met, approvals = _tally(run, tier, votes, standing, logged.time_us)
    if proposal is not None:
        return _decided(run, logged, decision.subject, replace(proposal, votes=votes), refused, met, approvals)
    run = replace(run, votes=votes)
    if refused is not None:
        return replace(run, ended=Ended(State.DENIED, logged.time_us, logged.hash, refused))
    if not met.met:
        return run
    scope_left = compose(run.scope, [vote.narrowing for vote in approvals])
    if scope_left is None:
        return replace(run, ended=Ended(State.DENIED, logged.time_us, logged.hash, "the narrowings leave nothing"))
    start_by_us = logged.time_us + tier.start_s * _SECOND
    permit = Permit(logged.index, logged.time_us, scope_left, approvals, start_by_us)
    return replace(run, permit=permit, scope=scope_left, grounds=(Ground(tier, approvals),))


def _check_decision(decision: Decision, scope: Scope, standing: Standing, tier: Tier, *, narrowable: bool) -> None:
    if decision.verdict == "veto" and standing.party_of(decision.person).class_ not in tier.veto:
        raise refuse(Why.NOT_ENTITLED, "has no veto", expected=" or ".join(tier.veto), got=decision.person)
    if decision.narrowing is not None:
        if not narrowable:
            raise refuse(Why.BROKEN, "only the approval of a request narrows")
        part = widens(decision.narrowing, scope)
        if part is not None:
            raise refuse(Why.WIDENS, "a narrowing that widens", got=part)


def _refused(votes: Mapping[str, Vote], tier: Tier) -> str | None:
    verdicts = [vote.verdict for vote in votes.values()]
    if "veto" in verdicts:
        return "vetoed"
    return f"{tier.deny} said no" if verdicts.count("deny") >= tier.deny else None


def _tally(
    run: Run, tier: Tier, votes: Mapping[str, Vote], standing: Standing, at_us: int
) -> tuple[Tally, tuple[Vote, ...]]:
    """Approvals whose key is valid when they were made and now, by persons that are in the root now."""
    approvals = []
    excluded = _excluded(run, tier, standing)
    for person, vote in sorted(votes.items()):
        key = standing.keys.get(vote.key_id)
        if vote.verdict != "approve" or person in excluded or key is None or key.person.id != person:
            continue
        if key.refusal(vote.time_us, at_us) is None:
            approvals.append(vote)
    return tally(tier.approve, [vote.person for vote in approvals], standing), tuple(approvals)


def _excluded(run: Run, tier: Tier, standing: Standing) -> frozenset[str]:
    if run.request.requester not in standing.persons:
        return frozenset({run.request.requester})
    return shared_with(standing, run.request.requester, colleagues=not tier.colleagues)


def _compromised(standing: Standing, vote: Vote) -> bool:
    key = standing.keys.get(vote.key_id)
    since = None if key is None else key.validity.compromised_since_us
    return since is not None and vote.time_us >= since


def _withdraw(run: Run, logged: Logged, withdraw: Withdraw) -> Run:
    if withdraw.subject == run.hash:
        if withdraw.person != run.request.requester:
            raise refuse(Why.NOT_ENTITLED, "only the requester withdraws a run", got=withdraw.person)
        ended = State.WITHDRAWN if run.permit is None else State.COMPLETED
        return replace(run, ended=Ended(ended, logged.time_us, logged.hash, withdraw.reason))
    proposal = run.proposals.get(withdraw.subject)
    if proposal is not None:
        if withdraw.person != proposal.statement.person:
            raise refuse(Why.NOT_ENTITLED, "only who proposed it withdraws a proposal", got=withdraw.person)
        return replace(run, proposals={k: v for k, v in run.proposals.items() if k != withdraw.subject})
    call = next((call for call in run.calls if call.hash == withdraw.subject), None)
    if call is None:
        raise refuse(Why.UNKNOWN, "nothing of this run that can be withdrawn", got=withdraw.subject)
    if withdraw.person != call.person:
        raise refuse(Why.NOT_ENTITLED, "only who suspended withdraws a suspension", got=withdraw.person)
    if run.stop_at_us is not None and logged.time_us >= run.stop_at_us:
        raise refuse(Why.TOO_LATE, "the suspension has taken effect: resuming takes the quorum")
    return _event(replace(run, calls=tuple(one for one in run.calls if one is not call)), logged.hash)


def _suspend(run: Run, standing: Standing, logged: Logged, suspend: Suspend) -> Run:
    if run.permit is None:
        raise refuse(Why.NO_PERMIT, "not approved yet: veto it instead", got=run.hash)
    party = standing.party_of(suspend.person)
    if party.class_ not in run.tier.veto:
        raise refuse(Why.NOT_ENTITLED, "has no veto", expected=" or ".join(run.tier.veto), got=suspend.person)
    if party.id in run.overruled:
        raise refuse(
            Why.OVERRULED, "the quorum resumed without this party: suspending again takes another", got=party.id
        )
    notice_us = logged.time_us + run.policy.stop.notice_s * _SECOND
    wanted_us = notice_us if suspend.stop_at_us is None else suspend.stop_at_us
    call = Call(
        logged.hash, suspend.person, party.id, party.organisation, logged.time_us, wanted_us, max(wanted_us, notice_us)
    )
    return _event(replace(run, calls=(*run.calls, call), epoch=run.epoch + 1), logged.hash)


def _propose(run: Run, standing: Standing, logged: Logged, proposal: Proposal) -> Run:
    if run.permit is None:
        raise refuse(Why.NO_PERMIT, "not approved yet", got=run.hash)
    if tuple(proposal.after) != run.after:
        raise refuse(Why.STALE, "answers other events than there were", expected=run.after, got=proposal.after)
    tier = run.tier
    match proposal:
        case Resume() if run.stop_at_us is None:
            raise refuse(Why.NOT_SUSPENDED, "not suspended", got=run.hash)
        case Amend():
            if proposal.spec == run.spec and widens(proposal.scope, run.scope) is None:
                vetoes = standing.party_of(proposal.person).class_ in run.tier.veto
                if not vetoes and proposal.person != run.request.requester:
                    raise refuse(Why.NOT_ENTITLED, "neither has a veto nor asked for the run", got=proposal.person)
                return _event(replace(run, scope=proposal.scope), logged.hash)
            tier = max(tier, _tier(run.policy, proposal.scope, run.request), key=run.policy.tiers.index)
        case _:
            pass
    return replace(run, proposals={**run.proposals, logged.hash: Open(proposal, tier, logged.time_us, {})})


def _decided(
    run: Run, logged: Logged, subject: str, proposal: Open, refused: str | None, met: Tally, approvals: tuple[Vote, ...]
) -> Run:
    """A proposal after one more vote: dropped, still open, or done."""
    others = {hash_: one for hash_, one in run.proposals.items() if hash_ != subject}
    if refused is not None:
        return replace(run, proposals=others)
    statement = proposal.statement
    behind = {vote.person.partition("/")[0] for vote in approvals}
    missing = set()
    if isinstance(statement, Resume):
        alone_us = run.policy.stop.alone_s * _SECOND
        missing = {c.party for c in run.calls if c.party not in behind and logged.time_us < c.time_us + alone_us}
    if not met.met or missing:
        return replace(run, proposals={**others, subject: proposal})
    match statement:
        case Resume():
            overruled = run.overruled | {call.party for call in run.calls if call.party not in behind}
            run = replace(run, calls=(), voided=None, overruled=overruled, grounds=(Ground(proposal.tier, approvals),))
            return _event(run, subject)
        case Revoke():
            return replace(run, ended=Ended(State.REVOKED, logged.time_us, subject, statement.reason))
        case Amend():
            grounds = (*run.grounds, Ground(proposal.tier, approvals))
            amended = replace(run, scope=statement.scope, spec=statement.spec, tier=proposal.tier, grounds=grounds)
            return _event(amended, subject)
        case _:
            assert_never(statement)


def _event(run: Run, digest: str) -> Run:
    """The run after something that later proposals must answer; those that are open don't, and fall."""
    return replace(run, after=(*run.after, digest)[-ANSWERED:], proposals={})


def _tier(policy: Policy, scope: Scope, request: Request) -> Tier:
    """The tier of a scope; below all of them it is the lowest one: a permit can always be asked for."""
    total = lineage_tflop(scope, request.ancestors)
    return tier_for(policy, budget_tflop=scope.budget_tflop, chips=scope.chips, lineage_tflop=total) or policy.tiers[0]
