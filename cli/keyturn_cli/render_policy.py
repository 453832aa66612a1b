"""What a policy comes to, and what one request would take."""

from keyturn_cli import switch_text
from keyturn_cli.lines import Lines
from keyturn_cli.output import named
from keyturn_cli.switch_text import short
from keyturn_cli.units import count, span
from keyturn_protocol.policy import Policy
from keyturn_protocol.root import Standing
from keyturn_protocol.runs import Request
from keyturn_protocol.simulate import PolicyReport, Simulation


def report(policy: Policy, found: PolicyReport) -> Lines:
    """Every tier, and every reason against the policy."""
    lines = Lines()
    lines.add("policy", f"{named(policy.name)}, version {policy.version}")
    for one in found.tiers:
        lines.add(
            "tier",
            f"{one.tier.name}: above {switch_text.above(one.tier.above)}",
            f"  takes {switch_text.threshold(one.tier.approve)}",
            "  can't be approved, whoever signs"
            if one.may_be_away < 0
            else f"  {_away(one.may_be_away, 'every request can still be approved')}",
            f"  stopped alone by {', '.join(one.vetoers) or 'nobody'}",
            f"  a verifier that is away for {span(one.outage_s)} ends no run",
            f"  a stop takes {span(one.stop_reachable_s)} on hosts that hear of it, "
            f"{span(one.stop_latest_s)} at the worst",
        )
        lines.add("", f"  {switch_text.alone(one.tier)}", style="yellow")
    lines.extend("refused", found.faults, style="red")
    if not found.faults:
        lines.add("verdict", "it can approve, and it can refuse", style="green")
    return lines


def _away(many: int, then: str) -> str:
    """How many may be out of reach, whoever they are."""
    return f"any {count(many, 'person')} may be away, and {then}" if many else "nobody that it takes may be away"


def report_json(found: PolicyReport) -> dict[str, object]:
    """The same as plain values."""
    tiers = [
        {
            "name": one.tier.name,
            "may_be_away": one.may_be_away,
            "vetoers": list(one.vetoers),
            "outage_s": one.outage_s,
            "stop_reachable_s": one.stop_reachable_s,
            "stop_latest_s": one.stop_latest_s,
            "watchers": one.tier.watchers,
        }
        for one in found.tiers
    ]
    return {"faults": list(found.faults), "tiers": tiers}


def simulation(request: Request, digest: str, found: Simulation, standing: Standing) -> Lines:
    """Tier, reasons, people, what is missing."""
    lines = Lines()
    lines.add("request", f"{short(digest)}  {named(request.label)}")
    lines.add("tier", found.tier.name, *(map(str, found.why) if found.why else ["below all tiers: the lowest decides"]))
    lines.add("takes", switch_text.threshold(found.tier.approve))
    lines.add("could", switch_text.persons(found.approvers, standing) or "nobody")
    lines.add("could veto", switch_text.persons(found.vetoers, standing) or "nobody")
    lines.add("never", switch_text.persons(found.excluded, standing))
    lines.add("signed", switch_text.persons(found.signed.persons, standing) or "by nobody")
    lines.add("missing", str(found.signed))
    if not found.possible.met:
        lines.add("", f"{found.possible}: nobody in the root can give that", style="red")
    else:
        lines.add("away", _away(found.may_be_away, "it can still be approved"))
    lines.add("to stop", f"{span(found.stop_reachable_s)}, {span(found.stop_latest_s)} at the worst")
    lines.extend("refused", found.faults, style="red")
    lines.add("note", switch_text.alone(found.tier), style="yellow")
    return lines


def simulation_json(found: Simulation) -> dict[str, object]:
    """The same as plain values."""
    return {
        "tier": found.tier.name,
        "why": [{"name": one.name, "above": one.above, "value": one.value} for one in found.why],
        "faults": list(found.faults),
        "approvers": list(found.approvers),
        "vetoers": list(found.vetoers),
        "excluded": list(found.excluded),
        "signed": list(found.signed.persons),
        "missing": str(found.signed),
        "possible": found.possible.met,
        "may_be_away": found.may_be_away,
        "stop_reachable_s": found.stop_reachable_s,
        "stop_latest_s": found.stop_latest_s,
        "watchers": found.tier.watchers,
    }
