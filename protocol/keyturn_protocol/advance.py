"""How statements change a run, one leaf after the other.

Order is the leaf index, time the leaf's. The verifier refuses to log what :func:`advance` refuses; an auditor who finds
such a leaf has found a verifier that lies.
"""

from collections.abc import Mapping
from typing import assert_never

from msgspec.structs import replace

from keyturn_protocol.alone import event, holdouts, narrow, over, overrules, suspend, take_back, undoes
from keyturn_protocol.authority import Authority, Logged, Why, refuse, signed_by
from keyturn_protocol.lifecycle import (
    ALIVE,
    SECOND,
    Ended,
    Ground,
    Open,
    Permit,
    Run,
    State,
    Vote,
    counted,
    is_excluded,
    is_over,
    state,
)
from keyturn_protocol.policy import Policy, Tier, tier_for
from keyturn_protocol.quorum import tally
from keyturn_protocol.root import Standing
from keyturn_protocol.runs import (
    Amend,
    Decision,
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
from keyturn_protocol.saying import said_more
from keyturn_protocol.values import SpecPart


def open_run(authority: Authority, logged: Logged) -> Run:
    """The run that a request begins.

    :raises Refused: with what the request breaks.
    """
    request = logged.statement
    if not isinstance(request, Request):
        raise refuse(Why.WRONG_KIND, "not a request", got=type(request).__name__)
    standing = authority.standing_for(logged)
    policy_hash, policy = authority.policy_at(logged.index)
    key_id = signed_by(standing, request.requester, logged)
    if request.policy != policy_hash:
        raise refuse(Why.OTHER_POLICY, "under another policy", expected=policy_hash, got=request.policy)
    party = standing.party_of(request.requester)
    if party.class_ not in policy.requesters:
        raise refuse(Why.NOT_ENTITLED, "may not ask for runs", got=request.requester)
    if request.scope.not_after_us <= logged.time_us:
        raise refuse(Why.TOO_LATE, "the window is over", got=request.scope.not_after_us)
    tier = _tier(policy, request.scope, request)
    _check_spec(request.spec, tier)
    return Run(
        hash=logged.hash,
        request=request,
        policy=policy,
        tier=tier,
        time_us=logged.time_us,
        scope=request.scope,
        spec=request.spec,
        organisation=party.organisation,
        key_id=key_id,
    )


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
    _check_open(run, statement, authority.policy_at(logged.index)[0], logged.time_us)
    run = said_more(run, standing, logged, statement)
    match statement:
        case Decision():
            return _decide(run, standing, logged, statement, key_id)
        case Withdraw():
            return _withdraw(run, logged, statement)
        case Suspend():
            return suspend(run, standing, logged, statement)
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
    stop_at_us = time_us + run.policy.stop.notice_s * SECOND
    return event(replace(run, voided=(standing.hash, stop_at_us), epoch=run.epoch + 1), standing.hash)


def _holds(ground: Ground, standing: Standing) -> bool:
    held = [vote.person for vote in ground.votes if not _compromised(standing, vote)]
    return len(held) == len(ground.votes) or tally(ground.tier.approve, held, standing).met


def under_policy(run: Run, policy_hash: str, time_us: int) -> Run:
    """The run after another policy came into force: what isn't decided yet is asked for again, under that one."""
    if run.permit is not None or run.ended is not None:
        return run
    return replace(run, ended=Ended(State.LAPSED, time_us, policy_hash, "another policy came into force"))


def _check_open(run: Run, statement: RunStatement, in_force: str, time_us: int) -> None:
    """:param in_force: hash of the policy."""
    at = state(run, time_us)
    if at in ALIVE:
        return
    wider = None if is_over(run, time_us) else _widening(run, statement)
    if wider is None:
        raise refuse(Why.OVER, f"the run is {at}", got=run.hash)
    if run.request.policy != in_force and not undoes(run, wider):
        # Else every run that ever was would be a way around each stricter policy after it, for good.
        raise refuse(Why.OVER, f"the run is {at}, and its policy was replaced: only what was allowed is given back")


def _widening(run: Run, statement: RunStatement) -> Amend | None:
    """The amendment that a statement is, or is about, if it asks for more than the run has."""
    match statement:
        case Amend() if statement.spec != run.spec or widens(statement.scope, run.scope) is not None:
            return statement
        case Decision() | Withdraw():
            proposal = run.proposals.get(statement.subject)
            return proposal.statement if proposal is not None and isinstance(proposal.statement, Amend) else None
        case _:
            return None


def _decide(run: Run, standing: Standing, logged: Logged, decision: Decision, key_id: str) -> Run:
    proposal = run.proposals.get(decision.subject)
    if proposal is None and (decision.subject != run.hash or run.permit is not None):
        raise refuse(Why.DECIDED, "decided already, or no longer what the run's events are", got=decision.subject)
    tier = run.tier if proposal is None else proposal.tier
    asked_us = run.time_us if proposal is None else proposal.time_us
    if logged.time_us > asked_us + tier.decide_s * SECOND:
        raise refuse(Why.TOO_LATE, "after the deadline", expected=asked_us + tier.decide_s * SECOND)
    if key_id == run.key_id or is_excluded(run, tier, standing, decision.person):
        raise refuse(Why.REQUESTER, "who asks never counts", got=decision.person)
    _check_decision(run, decision, standing, tier, proposal)
    vote = Vote(decision.person, key_id, logged.hash, logged.time_us, decision.verdict, decision.narrowing)
    votes = {**(run.votes if proposal is None else proposal.votes), decision.person: vote}
    refused = _refused(decision, votes, tier)
    approvals = _quorum(run, tier, votes, standing, logged.time_us) if decision.verdict == "approve" else ()
    if proposal is not None:
        return _decided(run, logged, decision.subject, replace(proposal, votes=votes), refused, approvals)
    if refused is not None:
        return replace(run, votes=votes, ended=Ended(State.DENIED, logged.time_us, logged.hash, refused))
    return replace(run, votes=votes) if not approvals else _permitted(replace(run, votes=votes), logged, approvals)


def _permitted(run: Run, logged: Logged, approvals: tuple[Vote, ...]) -> Run:
    scope = compose(run.scope, [vote.narrowing for vote in approvals])
    if scope is None:
        return replace(run, ended=Ended(State.DENIED, logged.time_us, logged.hash, "the narrowings leave nothing"))
    start_by_us = logged.time_us + run.tier.start_s * SECOND
    permit = Permit(logged.index, logged.time_us, scope, approvals, start_by_us)
    return replace(run, permit=permit, scope=scope, granted=scope, grounds=(Ground(run.tier, approvals),))


def _check_decision(run: Run, decision: Decision, standing: Standing, tier: Tier, proposal: Open | None) -> None:
    if decision.verdict == "veto":
        if standing.party_of(decision.person).class_ not in tier.veto:
            raise refuse(Why.NOT_ENTITLED, "has no veto", expected=" or ".join(tier.veto), got=decision.person)
        if proposal is not None and not _can_be_refused(run, proposal):
            raise refuse(Why.NOT_ENTITLED, "no veto keeps a run stopped, or narrowed", got=decision.person)
    if decision.narrowing is not None:
        if proposal is not None:
            raise refuse(Why.BROKEN, "only the approval of a request narrows")
        part = widens(decision.narrowing, run.scope)
        if part is not None:
            raise refuse(Why.WIDENS, "a narrowing that widens", got=part)


def _refused(decision: Decision, votes: Mapping[str, Vote], tier: Tier) -> str | None:
    """How one more decision ends its subject, if it does."""
    if decision.verdict == "veto":
        return "vetoed"
    if decision.verdict == "deny" and sum(vote.verdict == "deny" for vote in votes.values()) >= tier.deny:
        return f"{tier.deny} said no"
    return None


def _quorum(run: Run, tier: Tier, votes: Mapping[str, Vote], standing: Standing, at_us: int) -> tuple[Vote, ...]:
    """The approvals that count, if they meet the threshold; else none."""
    if len(votes) < tier.approve.persons:
        return ()  # most decisions: nothing to count yet
    approvals = counted(run, tier, votes.values(), standing, at_us)
    return tuple(approvals) if tally(tier.approve, [vote.person for vote in approvals], standing).met else ()


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
    return take_back(run, logged, withdraw)


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
                return narrow(run, standing, logged, proposal)
            tier = max(tier, _tier(run.policy, proposal.scope, run.request), key=run.policy.tiers.index)
            _check_spec(proposal.spec, tier)
        case _:
            pass
    return replace(run, proposals={**run.proposals, logged.hash: Open(proposal, tier, logged.time_us, {})})


def _decided(
    run: Run, logged: Logged, subject: str, proposal: Open, refused: str | None, approvals: tuple[Vote, ...]
) -> Run:
    """A proposal after one more vote: dropped, still open, or done."""
    others = {digest: one for digest, one in run.proposals.items() if digest != subject}
    statement = proposal.statement
    if refused is not None and _can_be_refused(run, proposal):
        return replace(run, proposals=others)
    if not approvals or holdouts(run, statement, approvals, logged.time_us):
        return replace(run, proposals={**others, subject: proposal})
    ground = Ground(proposal.tier, approvals)
    run = replace(run, overruled=run.overruled | overrules(run, statement, approvals))
    match statement:
        case Resume():
            suspended = over(run.suspended, logged.time_us)
            return event(replace(run, calls=(), voided=None, suspended=suspended, grounds=(ground,)), subject)
        case Revoke():
            return replace(run, ended=Ended(State.REVOKED, logged.time_us, subject, statement.reason))
        case Amend():
            fields = {"scope": statement.scope, "spec": statement.spec, "tier": proposal.tier}
            narrowed = over(run.narrowed, logged.time_us)
            run = replace(run, **fields, granted=statement.scope, narrowed=narrowed, grounds=(*run.grounds, ground))
            return event(run, subject)
        case _:
            assert_never(statement)


def _can_be_refused(run: Run, proposal: Open) -> bool:
    """Whether vetoes and denials end it. Else who stopped or narrowed a run alone could keep it so for good, and
    two could keep it from being ended."""
    return isinstance(proposal.statement, Amend) and not undoes(run, proposal.statement)


def _tier(policy: Policy, scope: Scope, request: Request) -> Tier:
    """The tier of a scope; below all of them it is the lowest one: a permit can always be asked for."""
    total = lineage_tflop(scope, request.ancestors)
    return tier_for(policy, budget_tflop=scope.budget_tflop, chips=scope.chips, lineage_tflop=total) or policy.tiers[0]


def _check_spec(spec: Mapping[SpecPart, str | None], tier: Tier) -> None:
    for part in tier.verified:
        if spec.get(part) is None:
            raise refuse(Why.BROKEN, f"tier {tier.name} asks for a commitment to {part}")
