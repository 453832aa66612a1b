"""A run in words: what is asked, what is known of its program, who has spoken, what may still happen to it."""

import shlex
from collections.abc import Mapping

from keyturn_cli import switch_text
from keyturn_cli.lines import Lines
from keyturn_cli.output import clean, named
from keyturn_cli.permits import Event, View
from keyturn_cli.switch_text import groups, short, short_of
from keyturn_cli.units import Rounding, count, duration, flop_of, moment, scientific, span
from keyturn_protocol.api_switch import RUN_FINDINGS, RunView
from keyturn_protocol.entry_switch import WORDS
from keyturn_protocol.lifecycle import ALIVE, Open, Run, State, progress, state
from keyturn_protocol.openings import Openings
from keyturn_protocol.policy import Policy
from keyturn_protocol.root import Root, Standing
from keyturn_protocol.root_expiry import ends_soon, expires_in
from keyturn_protocol.runs import Amend, Decision, Request, Resume, Revoke, Suspend, Withdraw
from keyturn_protocol.simulate import worst_stop_s
from keyturn_protocol.statements import Statement, kind_of
from keyturn_protocol.values import SPEC_PARTS, SpecPart

FINDINGS = 5
"""Of the gravest, so many are shown."""


def screen(view: View, openings: Openings | None, served: RunView | None) -> Lines:
    """Where a run stands, in one screen; where a bundle is of no run, what it says of roots and policies.

    :param served: what only the verifier knows: it holds for nothing but what it says itself.
    """
    lines = Lines()
    if view.opened.run is None:
        in_force(lines, view)
        return lines
    run, standing = view.run, view.standing
    at = state(run, view.at_us, 0 if served is None else served.charged_tflop)
    lines.add("run", f"{short(run.hash)}  {named(run.request.label)}  {at.upper()}{_since(run, view.at_us)}")
    lines.add("hash", groups(run.hash), f"for programs {run.hash}")
    lines.add("asked by", f"{switch_text.person(run.request.requester, standing)}, {moment(run.time_us)}")
    lines.add("purpose", clean(run.request.purpose, 2_000) or "none given")
    lines.add("lineage", named(run.request.lineage))
    reasons = view.reasons
    _signed(lines, view, reasons)
    lines.extend("allowed" if run.permit else "asked", switch_text.scope(run.scope))
    spec(lines, run.spec, openings, run.tier.verified)
    for digest, one in run.proposals.items():
        lines.extend("open", proposal(digest, one, standing))
    for call in run.calls:
        who = switch_text.person(call.person, standing)
        lines.add("suspended", f"by {who}, {moment(call.time_us)}{_because(reasons[call.hash])}  [{call.hash}]")
    if run.voided is not None:
        lines.add("suspended", f"by root sha256:{run.voided[0]}: keys that the permit rests on are compromised")
    if run.ended is not None:
        lines.add("ended", moment(run.ended.time_us) + _because(run.ended.why))
    if served is not None and run.permit is not None:
        charged(lines, served, view.at_us)
    if run.stop_at_us is not None and run.ended is None:
        lines.add("stopped" if run.stop_at_us <= view.at_us else "stops", stops(run, run.stop_at_us))
        lines.add("to resume", to_resume(run, view.at_us))
    elif at in ALIVE or at is State.EXHAUSTED:
        lines.add("to stop", to_stop(run))
    if served is not None:
        findings(lines, served)
    in_force(lines, view)
    lines.add("note", switch_text.alone(run.tier), style="yellow")
    return lines


def charged(lines: Lines, served: RunView, at_us: int) -> None:
    """Adds what the verifier says was charged and is out on leases."""
    budget, used, left = served.scope.budget_tflop, served.charged_tflop, served.left_tflop
    text = f"{flop(used)} of {flop(budget)} FLOP ({100 * used / budget:.0f} %, high end) · {flop(left, 'down')} left"
    if served.committed_tflop > used:
        text += f" · {flop(served.committed_tflop - used)} out on leases"
    if served.state is State.ACTIVE and served.started_us is not None and used and at_us > served.started_us:
        remaining_s = max(0, budget - used) * (at_us - served.started_us) // used // 1_000_000
        text += f" · at the rate so far exhausted in {duration(remaining_s * 1_000_000)}"
    lines.add("charged", text, "as the verifier adds it up; keyturn audit recomputes it")
    level = "level 0: self-reported"
    lines.add(
        "chips", f"{served.leased_chips:,} of {served.scope.chips:,} in {count(served.leases, 'lease')} · {level}"
    )
    if served.checked:
        said = {word: [part for part in SPEC_PARTS if served.checked.get(part) == word] for word in WORDS}
        text = " · ".join(f"{', '.join(parts)} {word}" for word, parts in said.items() if parts)
        lines.add("", f"{text}, by the word of the hosts: of all of them the weakest")


def findings(lines: Lines, served: RunView) -> None:
    """Adds what someone should look at, the gravest first."""
    for at, one in enumerate(served.findings[:FINDINGS]):
        label = "findings" if at == 0 else ""
        lines.add(label, f"{one.severity}: {one.code}: {clean(one.detail)}", style="yellow")
    if len(served.findings) > FINDINGS:
        left = len(served.findings) - FINDINGS
        text = f"{left:,} more: --json lists them"
        if len(served.findings) >= RUN_FINDINGS:
            text = f"{left:,} or more: --json lists so many, keyturn findings all of them"
        lines.add("", f"and {text}")


def flop(tflop: int, rounding: Rounding = "up") -> str:
    """TFLOP as FLOP, three digits."""
    return scientific(tflop * 10**12, rounding)


def in_force(lines: Lines, view: View) -> None:
    """Adds the root and the policy, and up to which leaf all of it holds."""
    root = view.standing.root
    lines.add("root", f"version {root.version} of {view.deployment}, sha256:{view.standing.hash}")
    if ends_soon(root, view.at_us):
        when = "any more" if root.expires_us <= view.at_us else "after that"
        text = f"it {expires_in(root, view.at_us)}, {moment(root.expires_us)}: no host is enrolled under it {when}"
        lines.add("", text, style="yellow")
    if view.policy is None:
        lines.add("policy", "none yet")
    else:
        digest, policy = view.policy
        lines.add("policy", f"version {policy.version}, {named(policy.name)}, sha256:{digest}")
    lines.add("as of", f"leaf {view.bundle.index} of the verifier's log, {moment(view.bundle.time_us)}")


def _since(run: Run, at_us: int) -> str:
    return "" if run.started_us is None else f", day {(at_us - run.started_us) // 86_400_000_000 + 1}"


def _signed(lines: Lines, view: View, reasons: Mapping[str, str]) -> None:
    """Adds who has spoken, what it takes, and who is missing."""
    run, standing = view.run, view.standing
    lines.add("tier", f"{run.tier.name}: takes {switch_text.threshold(run.tier.approve)}")
    if run.permit is not None:
        persons = [vote.person for vote in run.permit.votes]
        text = f"{len(persons)} of {run.tier.approve.persons}: {switch_text.persons(persons, standing)}"
        lines.add("signed", text, f"permit {moment(run.permit.time_us)}, leaf {run.permit.index}")
        return
    so_far = progress(run, view.opened.authority, view.opened.switch.index + 1, view.at_us)
    text = switch_text.persons(so_far.persons, standing) or "by nobody that counts"
    lines.add("signed", f"{len(so_far.persons)} of {run.tier.approve.persons}: {text}")
    for vote in run.votes.values():
        if vote.verdict != "approve":
            lines.add("", f"{switch_text.person(vote.person, standing)}: {vote.verdict}{_because(reasons[vote.hash])}")
    if state(run, view.at_us) is State.PENDING:
        lines.add("missing", f"{so_far}, until {moment(deadline_us(run.time_us, run.tier.decide_s))}", style="yellow")


def asked(lines: Lines, run: Run, standing: Standing) -> None:
    """Adds what the request asks for, whatever became of it."""
    request = run.request
    lines.add("run", f"{short(run.hash)}  {named(request.label)}", groups(run.hash))
    lines.add("asked by", f"{switch_text.person(request.requester, standing)}, {moment(run.time_us)}")
    lines.add("purpose", clean(request.purpose, 2_000) or "none given")
    lines.add("lineage", named(request.lineage), *(_ancestor(*one) for one in _ancestors(request)))


def _ancestors(request: Request) -> list[tuple[str, int | None, str]]:
    return [(one.run, one.tflop, one.basis) for one in request.ancestors]


def _ancestor(run: str, tflop: int | None, basis: str) -> str:
    much = "compute not known, which counts as unbounded" if tflop is None else flop_of(tflop)
    return f"  builds on {named(run)}: {much} ({clean(basis)})"


def spec(lines: Lines, of: Mapping[SpecPart, str | None], openings: Openings | None, verified: list[SpecPart]) -> None:
    """Adds what is known of the program, what is only committed to, and what isn't even that."""
    known = {} if openings is None else openings.parts
    for part in SPEC_PARTS:
        if part in known:
            opened = known[part].value
            text = shlex.join(opened) if isinstance(opened, list) else opened
            lines.add("spec", f"{part} {named(text, 20_000)}" + _checked(part, verified))
    hidden = [part + _checked(part, verified) for part in SPEC_PARTS if part not in known and of.get(part) is not None]
    free = [part for part in SPEC_PARTS if of.get(part) is None]
    if hidden:
        lines.add("not known", f"{', '.join(hidden)}: committed to, and not opened to you", style="yellow")
    if free:
        lines.add("not bound", f"{', '.join(free)}: nothing is committed to, so it may be anything", style="yellow")


def _checked(part: SpecPart, verified: list[SpecPart]) -> str:
    return " (checked by each host)" if part in verified else ""


def event(one: Event, standing: Standing, run: str) -> str:
    """One statement in a line: when, who, what.

    :param run: the hash of the run that it is about.
    """
    return f"{moment(one.time_us)}  {_said(one.statement, one.hash, standing, run)}  (leaf {one.index})"


def _said(statement: Statement, digest: str, standing: Standing, run: str) -> str:
    match statement:
        case Root():
            return f"root version {statement.version} came into force, sha256:{digest}"
        case Policy():
            return f"policy version {statement.version}, {named(statement.name)}, came into force, sha256:{digest}"
        case Request():
            return f"{switch_text.person(statement.requester, standing)} asked"
        case Decision():
            word = {"approve": "approved", "deny": "denied", "veto": "vetoed"}[statement.verdict]
            narrowed = switch_text.narrowing(statement.narrowing)
            text = f"{switch_text.person(statement.person, standing)} {word} {short_of(statement.subject, run)}"
            return text + (f", narrowed to: {narrowed}" if narrowed else "") + _because(statement.reason)
        case Withdraw():
            who = switch_text.person(statement.person, standing)
            return f"{who} withdrew {short_of(statement.subject, run)}{_because(statement.reason)}"
        case Suspend():
            when = "" if statement.stop_at_us is None else f", to stop at {moment(statement.stop_at_us)}"
            who = switch_text.person(statement.person, standing)
            return f"{who} suspended it{when}{_because(statement.reason)} [{short_of(digest, run)}]"
        case Resume() | Revoke() | Amend():
            who = switch_text.person(statement.person, standing)
            return f"{who} proposed to {kind_of(statement)} it{_because(statement.reason)} [{short_of(digest, run)}]"
        case _:
            return kind_of(statement)


def _because(reason: str) -> str:
    return f": {clean(reason, 2_000)}" if reason else ""


def proposal(digest: str, one: Open, standing: Standing) -> list[str]:
    """A proposal that is open, a line each."""
    statement = one.statement
    who = switch_text.person(statement.person, standing)
    votes = [f"{vote.person} {vote.verdict}" for vote in one.votes.values()]
    until = moment(deadline_us(one.time_us, one.tier.decide_s))
    return [
        f"{kind_of(statement)} {digest[:12]} by {who}{_because(statement.reason)}",
        f"  takes {switch_text.threshold(one.tier.approve)} until {until}",
        f"  so far: {', '.join(votes) or 'nobody'}; hash {digest}",
    ]


def deadline_us(asked_us: int, decide_s: int) -> int:
    """The last moment at which a decision counts."""
    return asked_us + decide_s * 1_000_000


def stops(run: Run, at_us: int) -> str:
    """When a suspended run stops, and how sure that is."""
    latest_us = at_us + run.tier.lease_s * 1_000_000
    return f"all hosts that can be reached at {moment(at_us)}; any other at the latest {moment(latest_us)}"


def to_resume(run: Run, at_us: int) -> str:
    """What it takes to let a suspended run go on, and until when who suspended it has to agree."""
    text = f"keyturn resume {short(run.hash)} · takes {switch_text.threshold(run.tier.approve)}"
    for party in sorted({call.party for call in run.calls}):
        until_us = run.suspended[party].since_us + run.policy.stop.alone_s * 1_000_000
        text += f", {party} among them until {moment(until_us)}" if at_us < until_us else ""
    return text


def to_stop(run: Run) -> str:
    """How a run is stopped, and how long that takes at the worst."""
    reached, worst = span(run.policy.stop.notice_s), span(worst_stop_s(run.policy, run.tier))
    how = "keyturn veto {} · once it runs, " if run.permit is None else "keyturn suspend {} · "
    return how.format(short(run.hash)) + f"at the latest in {worst}, reachable hosts in {reached}"
