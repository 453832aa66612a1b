"""What one party does to a run alone: it suspends it, takes that back, narrows it. None of it is for good.

For ``alone_s`` it takes the party's own consent to undo it, then the quorum does so without. That time counts while a
suspension or a narrowing is in force, and goes on from where it stood when the party does it again: neither taking it
back nor agreeing to undo it begins it anew. Only as long a time without it does.
"""

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from keyturn_protocol.authority import Logged, Why, refuse
from keyturn_protocol.lifecycle import SECOND, Alone, Call, Run, Vote, party_in
from keyturn_protocol.limits import ANSWERED
from keyturn_protocol.root import Party, Standing
from keyturn_protocol.runs import Amend, Proposal, Resume, Revoke, Scope, Suspend, Withdraw, widens, wider_parts


def suspend(run: Run, standing: Standing, logged: Logged, said: Suspend) -> Run:
    """The run after a suspension.

    :raises Refused: ``no_permit``, ``not_entitled``, ``overruled``, ``broken``.
    """
    if run.permit is None:
        raise refuse(Why.NO_PERMIT, "not approved yet: veto it instead", got=run.hash)
    party, at_us = standing.party_of(said.person), logged.time_us
    _check_veto(run, party, said.person)
    mine = _begun(run, run.suspended.get(party.id), at_us)
    if not _lasts(run, mine, at_us):
        # Else a party could end every resumption that is being decided, and begin its time alone anew, for ever.
        raise refuse(Why.OVERRULED, "suspended by this party, and long enough: more takes another", got=party.id)
    wanted_us = notice_us = at_us + run.policy.stop.notice_s * SECOND
    if said.stop_at_us is not None:
        wanted_us = said.stop_at_us
        # Nothing is leased meanwhile: hosts would stop one by one, each when its lease ends.
        if wanted_us > (latest_us := at_us + run.policy.stop.alone_s * SECOND):
            raise refuse(Why.BROKEN, "stops too late to be one party's word", expected=f"<= {latest_us}", got=wanted_us)
    call = Call(logged.hash, said.person, party.id, party.organisation, at_us, wanted_us, max(wanted_us, notice_us))
    suspended = {**run.suspended, party.id: mine}
    run = replace(run, calls=(*run.calls, call), epoch=run.epoch + 1, suspended=suspended)
    return event(run, logged.hash, Revoke, undoing=True)


def take_back(run: Run, logged: Logged, said: Withdraw) -> Run:
    """The run after a suspension was withdrawn.

    :raises Refused: ``unknown``, ``not_entitled``, ``too_late``.
    """
    call = next((call for call in run.calls if call.hash == said.subject), None)
    if call is None:
        raise refuse(Why.UNKNOWN, "nothing of this run that can be withdrawn", got=said.subject)
    if said.person != call.person:
        raise refuse(Why.NOT_ENTITLED, "only who suspended withdraws a suspension", got=said.person)
    if run.stop_at_us is not None and logged.time_us >= run.stop_at_us:
        raise refuse(Why.TOO_LATE, "the suspension has taken effect: resuming takes the quorum")
    run = replace(run, calls=tuple(one for one in run.calls if one is not call))
    if all(one.party != call.party for one in run.calls):
        run = replace(run, suspended=over(run.suspended, logged.time_us, {call.party}))
    # Who agreed to resume in spite of all suspensions did so of fewer; where none is left there is nothing to resume.
    kept = (Revoke,) if run.stop_at_us is None else (Resume, Revoke)
    return event(run, logged.hash, *kept, undoing=True)


def narrow(run: Run, standing: Standing, logged: Logged, said: Amend) -> Run:
    """The run after an amendment that only narrows.

    :raises Refused: ``not_entitled``, ``overruled``, ``broken``.
    """
    party, at_us, asked = standing.party_of(said.person), logged.time_us, said.person == run.request.requester
    if not asked:
        _check_veto(run, party, said.person)
    soonest_us = at_us + run.policy.stop.notice_s * SECOND
    if said.scope.not_after_us < min(soonest_us, run.scope.not_after_us):
        expected = f">= {soonest_us}"
        raise refuse(Why.BROKEN, "ends sooner than a suspension would", expected=expected, got=said.scope.not_after_us)
    if asked:
        # Who asked may end it altogether: there is nobody to be held against.
        return event(replace(run, scope=said.scope), logged.hash, Resume, Revoke)
    before = run.narrowed.get(party.id)
    mine = _begun(run, before, at_us)
    lasts = _lasts(run, mine, at_us)
    if before is not None and before.ended_us is not None and not lasts:
        raise refuse(Why.OVERRULED, "narrowed by this party, and long enough: more takes another", got=party.id)
    mine = replace(mine, left={**mine.left, **dict.fromkeys(wider_parts(run.scope, said.scope), said.scope)})
    run = replace(run, scope=said.scope, narrowed={**run.narrowed, party.id: mine})
    return event(run, logged.hash, Resume, Revoke, undoing=not lasts)


def undoes(run: Run, proposal: Proposal) -> bool:
    """Whether an amendment stays within what the quorum allowed last, and so only undoes what was narrowed since."""
    if not isinstance(proposal, Amend) or run.granted is None:
        return False
    return proposal.spec == run.spec and widens(proposal.scope, run.granted) is None


def overrules(run: Run, proposal: Proposal, approvals: Iterable[Vote]) -> frozenset[str]:
    """Parties of which a proposal undoes what they did alone, and who don't approve it."""
    if isinstance(proposal, Amend) and not undoes(run, proposal):
        return frozenset()  # they had a veto
    return _against(run, proposal, approvals)


def holdouts(run: Run, proposal: Proposal, approvals: Iterable[Vote], at_us: int) -> frozenset[str]:
    """Parties without whom it can't be done yet, whatever else it asks for: a quorum that is quick leaves no time for a
    veto."""
    spells = run.suspended if isinstance(proposal, Resume) else run.narrowed
    return frozenset(party for party in _against(run, proposal, approvals) if _lasts(run, spells[party], at_us))


def over(spells: Mapping[str, Alone], at_us: int, parties: Iterable[str] | None = None) -> dict[str, Alone]:
    """The same after what was in force, of all or of some parties, is no longer."""
    ended = {
        party: replace(spells[party], ended_us=at_us, left={})
        for party in (spells if parties is None else parties)
        if spells[party].ended_us is None
    }
    return {**spells, **ended}


def event(run: Run, digest: str, *keep: type[Proposal], undoing: bool = False) -> Run:
    """The run after something that later proposals must answer; those that are open don't, and fall.

    :param keep: kinds that stay open: what one person does alone, again and again, must not keep others from ending
        the run, nor what only narrows from resuming it.
    :param undoing: whether amendments stay open that only undo what was narrowed.
    """
    kept = {
        subject: one
        for subject, one in run.proposals.items()
        if isinstance(one.statement, keep) or (undoing and undoes(run, one.statement))
    }
    return replace(run, after=(*run.after, digest)[-ANSWERED:], proposals=kept)


def _check_veto(run: Run, party: Party, person: str) -> None:
    if party.class_ not in run.tier.veto:
        raise refuse(Why.NOT_ENTITLED, "has no veto", expected=" or ".join(run.tier.veto), got=person)
    if party.id in run.overruled:
        raise refuse(Why.OVERRULED, "the quorum undid without this party what it did: it takes another", got=party.id)


def _against(run: Run, proposal: Proposal, approvals: Iterable[Vote]) -> frozenset[str]:
    """Parties that did alone what a proposal takes back, with or without more, and that don't approve it."""
    parties: set[str] = set()
    if isinstance(proposal, Resume):
        parties = {call.party for call in run.calls}
    elif isinstance(proposal, Amend):
        parties = {party for party, one in run.narrowed.items() if _goes_beyond(proposal.scope, one)}
    return frozenset(parties - {party_in(vote.person) for vote in approvals})


def _goes_beyond(scope: Scope, mine: Alone) -> bool:
    """Whether a scope gives back any of what a party narrowed, and not only what others did after it."""
    return any(part in wider_parts(scope, left) for part, left in mine.left.items())


def _begun(run: Run, before: Alone | None, at_us: int) -> Alone:
    """A party's time when it does something alone: that of before, if it is going on or wasn't long ago."""
    if before is None or before.ended_us is None:
        return before or Alone(at_us)
    if at_us >= before.ended_us + run.policy.stop.alone_s * SECOND:
        return Alone(at_us)
    return Alone(before.since_us + at_us - before.ended_us)


def _lasts(run: Run, mine: Alone, at_us: int) -> bool:
    """Whether what a party did still is its own matter."""
    return at_us < mine.since_us + run.policy.stop.alone_s * SECOND
