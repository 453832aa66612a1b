"""What a person sees before signing, made from the bytes that are signed and from a bundle that was verified."""

from typing import assert_never

from keyturn_cli import consequence, render_run, switch_text
from keyturn_cli.consequence import Consequence, at_stake
from keyturn_cli.differences import differences
from keyturn_cli.lines import Lines
from keyturn_cli.output import clean, named
from keyturn_cli.permits import View, as_last_seen
from keyturn_cli.switch_text import groups, short, short_of
from keyturn_cli.units import moment, span
from keyturn_protocol.alone import holdouts
from keyturn_protocol.lifecycle import Run, counted, party_in
from keyturn_protocol.openings import Openings
from keyturn_protocol.policy import Tier
from keyturn_protocol.public_keys import PublicKey
from keyturn_protocol.runs import (
    Amend,
    Decision,
    Request,
    Resume,
    Revoke,
    RunStatement,
    Scope,
    Suspend,
    Withdraw,
    compose,
    lineage_tflop,
)
from keyturn_protocol.statements import kind_of


def of_run(
    view: View, said: RunStatement, digest: str, found: Consequence, openings: Openings | None, key: PublicKey | None
) -> Lines:
    """All that there is to know before signing a statement about a run.

    :param found: what it changes.
    :param key: who signs; None while that isn't known.
    """
    lines, run, standing = Lines(), found.before or found.after, view.standing
    person = said.requester if isinstance(said, Request) else said.person
    lines.add("sign", _what(said, run.hash), f"statement {groups(digest)}")
    lines.add("as", switch_text.person(person, standing), *([] if key is None else [f"with {key}"]))
    render_run.asked(lines, run, standing)
    stake = at_stake(said, run)
    tier = _tier_of(said, digest, found)
    _tier(lines, run, tier, run.request.scope if stake is None else stake.scope)
    lines.extend("allowed", switch_text.scope(_scope(view, said, run)))
    render_run.spec(lines, run.spec if stake is None else stake.spec, openings, tier.verified)
    if isinstance(stake, Amend):
        _amends(lines, run, stake)
    if not isinstance(said, Request):
        changed(lines, view)
    if isinstance(said, Decision):
        _counts(lines, view, said)
    elif not isinstance(said, Request) and said.reason:
        lines.add("reason", clean(said.reason, 2_000))
    lines.extend("then", _then(said, digest, found))
    if isinstance(said, (Request, Decision)) and found.after.ended is None:
        lines.add("to stop", render_run.to_stop(found.after))
    lines.add("note", switch_text.alone(tier), style="yellow")
    return lines


def _tier_of(said: RunStatement, digest: str, found: Consequence) -> Tier:
    """By whose rules it is decided: of an amendment, the tier of what it asks for, which may be a higher one."""
    before, after = found.before, found.after
    proposal = after.proposals.get(digest)
    if isinstance(said, Decision) and before is not None:
        proposal = before.proposals.get(said.subject)
    return (before or after).tier if proposal is None else proposal.tier


def _amends(lines: Lines, run: Run, stake: Amend) -> None:
    """Adds what is other than now, and what becomes of the program that runs."""
    lines.extend("amends", [str(one) for one in differences(run.scope, stake.scope, "scope")])
    spec = [str(one) for one in differences(dict(run.spec), stake.spec, "spec")]
    if spec and run.started_us is not None:
        spec.append(f"what runs by the old spec is stopped {span(run.policy.stop.notice_s)} after, and started anew")
    lines.extend("", spec)


def _what(said: RunStatement, run: str) -> str:
    match said:
        case Request():
            return f"a request for a run: {named(said.label)}"
        case Decision():
            return f"{said.verdict} {short_of(said.subject, run)}"
        case Withdraw():
            return f"withdraw {short_of(said.subject, run)}"
        case Suspend():
            return f"suspend {short(said.run)}"
        case Resume() | Revoke() | Amend():
            return f"a proposal to {kind_of(said)} {short(said.run)}"
        case _:
            assert_never(said)


def _tier(lines: Lines, run: Run, tier: Tier, scope: Scope) -> None:
    """Adds the tier and what of a scope puts the run into it."""
    bound = tier.above
    total = lineage_tflop(scope, run.request.ancestors)
    reasons = []
    if bound.budget_tflop is not None and scope.budget_tflop > bound.budget_tflop:
        reasons.append("its budget")
    if bound.chips is not None and scope.chips > bound.chips:
        reasons.append("its chips")
    if bound.lineage_tflop is not None and (total is None or total > bound.lineage_tflop):
        reasons.append("what it builds on")
    why = f"for {switch_text.either(reasons, 'and')}" if reasons else _otherwise(run, tier)
    lines.add("tier", f"{tier.name}, {why}", f"takes {switch_text.threshold(tier.approve)}")


def _otherwise(run: Run, tier: Tier) -> str:
    """Why a run is in a tier of which it passes no bound."""
    lowest = tier.name == run.policy.tiers[0].name
    return "the lowest: it is below all of them" if lowest else "as it was decided on"


def _scope(view: View, said: RunStatement, run: Run) -> Scope:
    """What is allowed with this statement: what was asked for, less what each counted approval takes away."""
    stake = at_stake(said, run)
    if stake is not None or run.permit is not None:
        return run.scope if stake is None else stake.scope
    person = said.person if isinstance(said, Decision) else ""
    votes = counted(run, run.tier, run.votes.values(), view.standing, view.at_us)
    own = said.narrowing if isinstance(said, Decision) else None
    return compose(run.scope, [*(vote.narrowing for vote in votes if vote.person != person), own]) or run.scope


def _counts(lines: Lines, view: View, said: Decision) -> None:
    slot = consequence.slot(view, said.subject, said.person, said.verdict)
    proposal = view.run.proposals.get(said.subject)
    if proposal is not None:
        lines.extend("on", render_run.proposal(said.subject, proposal, view.standing))
    lines.add("signed", switch_text.persons(slot.before.persons, view.standing) or "by nobody that counts")
    if said.narrowing is not None:
        lines.add("narrows", switch_text.narrowing(said.narrowing))
    if said.reason:
        lines.add("reason", clean(said.reason, 2_000))
    if slot.text:
        lines.add("fills", slot.text)
    lines.add("missing", f"{slot.after} after this" if slot.text else str(slot.after))
    if proposal is not None:
        agreed = [vote for vote in proposal.votes.values() if vote.verdict == "approve"]
        own = holdouts(view.run, proposal.statement, agreed, view.at_us)
        if others := sorted(own - {party_in(said.person)}):
            what = "suspensions" if isinstance(proposal.statement, Resume) else "narrowings"
            lines.add("", f"and, as long as their {what} are fresh, {switch_text.either(others, 'and')}")


def changed(lines: Lines, view: View) -> None:
    """Adds what is new since this machine was last shown it, and what that comes to."""
    if view.first_time:
        lines.add("changed", "seen here for the first time: all of it is new")
        return
    if not view.unseen:
        lines.add("changed", "nothing since it was last seen here")
        return
    lines.extend("changed", [render_run.event(one, view.standing, view.bundle.run or "") for one in view.unseen])
    before = as_last_seen(view)
    if before is None:
        return
    if before.run is not None and view.opened.run is not None:
        lines.extend("", [str(one) for one in differences(before.run.scope, view.run.scope, "scope")])
        lines.extend("", [str(one) for one in differences(dict(before.run.spec), dict(view.run.spec), "spec")])
    old = before.authority.roots[-1][1].root
    lines.extend("", [str(one) for one in differences(old, view.standing.root, "root")])
    if before.authority.policies and view.policy is not None:
        lines.extend("", [str(one) for one in differences(before.authority.policies[-1][2], view.policy[1], "policy")])


def _then(said: RunStatement, digest: str, found: Consequence) -> list[str]:
    run, after = found.before, found.after
    match said:
        case Request():
            until = moment(render_run.deadline_us(after.time_us, after.tier.decide_s))
            return [f"others decide until {until}; you never count for it", "nothing of it can be changed any more"]
        case Decision():
            return _decided(said, found)
        case Withdraw() if run is not None and said.subject == run.hash:
            if run.permit is None:
                return ["the request is withdrawn for good"]
            return ["the run is completed for good: nothing more is leased"]
        case Withdraw():
            return [f"{said.subject[:12]} is taken back, and the run is as if it had not been there"]
        case Suspend():
            return _suspended(said, digest, after)
        case Resume() | Revoke() | Amend():
            proposal = after.proposals.get(digest)
            if proposal is None:
                undo = f"the quorum can undo it, with your party among them for {span(after.policy.stop.alone_s)}"
                mine = said.person != after.request.requester
                return ["it only narrows: in force at once", *([undo] if mine else [])]
            until = moment(render_run.deadline_us(proposal.time_us, proposal.tier.decide_s))
            return [
                f"proposed, not done: takes {switch_text.threshold(proposal.tier.approve)} until {until}",
                "whatever happens to the run before that ends the proposal",
            ]
        case _:
            assert_never(said)


def _decided(said: Decision, found: Consequence) -> list[str]:
    run, after = found.before, found.after
    if run is None:
        return []
    if after.ended is not None and run.ended is None:
        return [f"{after.ended.state} for good: {after.ended.why}"]
    if said.subject != run.hash:
        if said.subject in after.proposals:
            return ["the proposal stays open"]
        return ["the proposal is dropped"] if said.verdict != "approve" else ["with this the proposal is in force"]
    if after.permit is not None and run.permit is None:
        start, end = moment(after.permit.start_by_us), moment(after.scope.not_after_us)
        return [f"APPROVED with this: it may start until {start}, and run until {end}"]
    until = moment(render_run.deadline_us(run.time_us, run.tier.decide_s))
    return [f"it stays pending, until {until} at the latest"]


def _suspended(said: Suspend, digest: str, after: Run) -> list[str]:
    stop_us = after.stop_at_us or 0
    latest_us = stop_us + after.tier.lease_s * 1_000_000
    lines = [
        f"all hosts that can be reached stop at {moment(stop_us)}; any other at the latest {moment(latest_us)}",
        f"until then you alone can take it back: keyturn withdraw {short(after.hash)} --on {digest}",
        f"after that resuming takes {switch_text.threshold(after.tier.approve)}, with your party among them for "
        f"{span(after.policy.stop.alone_s)}",
    ]
    if said.stop_at_us is not None and said.stop_at_us < stop_us:
        sooner = f"sooner, at {moment(said.stop_at_us)}, if a person of another organisation suspends too"
        lines.insert(1, sooner)
    return lines
