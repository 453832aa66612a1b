"""What a policy comes to: whether it can approve and refuse, and what one request would take."""

from collections.abc import Collection
from dataclasses import dataclass

from keyturn_protocol.policy import Policy, Tier, policy_faults, tier_for, worst_tolerance
from keyturn_protocol.quorum import Tally, able, census, compare, shared_with, tally, tolerance
from keyturn_protocol.root import Standing
from keyturn_protocol.runs import Request, lineage_tflop
from keyturn_protocol.values import SpecPart


@dataclass(frozen=True, slots=True)
class TierReport:
    """One tier under a root."""

    tier: Tier
    may_be_away: int
    """Persons, whoever they are, without whom every request still can be approved; -1: some never can."""
    vetoers: tuple[str, ...]
    """Persons with a valid key who can end a request, or suspend a run, alone."""
    outage_s: int
    """A verifier that is away for so long ends no run."""
    stop_reachable_s: int
    """From a suspension to the end of the run, on hosts that hear of it, and"""
    stop_latest_s: int
    """on all others: their leases run out."""


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """What ``policy check`` says."""

    faults: tuple[str, ...]
    """Why the policy is refused: what can never or always be approved, and every other reason. Empty: it is good."""
    tiers: tuple[TierReport, ...]


def check(policy: Policy, standing: Standing, at_us: int) -> PolicyReport:
    """A policy under a root, by the keys that are valid at a moment."""
    people = able(standing, at_us)
    reports = [
        TierReport(
            tier=tier,
            may_be_away=worst_tolerance(policy, tier, standing, at_us),
            vetoers=tuple(person for person in people if standing.party_of(person).class_ in tier.veto),
            outage_s=tier.lease_s,
            stop_reachable_s=policy.stop.notice_s,
            stop_latest_s=worst_stop_s(policy, tier),
        )
        for tier in policy.tiers
    ]
    return PolicyReport(tuple(policy_faults(policy, standing, at_us)), tuple(reports))


def worst_stop_s(policy: Policy, tier: Tier) -> int:
    """The longest that a run goes on after a suspension: on a host that hears nothing, until its lease is over.

    A lease that is issued in the last moment before the suspension lives for ``lease_s``; no verifier issues one after.
    """
    return policy.stop.notice_s + tier.lease_s


def root_faults(standing: Standing, at_us: int) -> tuple[str, ...]:
    """Thresholds of a root that all who could sign together don't meet."""
    everybody = census(able(standing, at_us), standing)
    found = []
    for name, threshold in (
        ("root", standing.root.thresholds.root),
        ("policy", standing.root.thresholds.policy),
    ):
        count = compare(threshold, everybody)
        if not count.met:
            found.append(f"thresholds.{name}: can never be met: with all who could sign, {count} would be missing")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound of a tier that a request is above."""

    name: str
    above: int
    value: int | None
    """None: not known, which is above every bound."""

    def __str__(self) -> str:
        value = "unknown" if self.value is None else f"{self.value:,}"
        return f"{self.name} {value} is above {self.above:,}"


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a request would take."""

    tier: Tier
    why: tuple[Bound, ...]
    """The bounds that put it into this tier; none: it is below all of them, and the lowest decides."""
    faults: tuple[str, ...]
    """Why it would be refused as it is."""
    approvers: tuple[str, ...]
    """Who could approve: persons with a valid key that aren't excluded."""
    vetoers: tuple[str, ...]
    excluded: tuple[str, ...]
    """The requester, and, where policy says so, its colleagues."""
    signed: Tally
    """How far those get who have approved."""
    possible: Tally
    """How far all approvers together get: what is missing here, nobody can give."""
    may_be_away: int
    stop_reachable_s: int
    stop_latest_s: int


def simulate(
    policy: Policy, standing: Standing, request: Request, at_us: int, approved: Collection[str] = ()
) -> Simulation:
    """What a request would take under a policy and a root, by the keys that are valid at a moment.

    :param approved: persons who have approved already.
    """
    tier, why = tier_of(policy, request)
    people = able(standing, at_us)
    if request.requester in standing.persons:
        excluded = shared_with(standing, request.requester, colleagues=not tier.colleagues)
    else:
        excluded = frozenset({request.requester})
    approvers = tuple(person for person in people if person not in excluded)
    vetoers = tuple(person for person in approvers if standing.party_of(person).class_ in tier.veto)
    return Simulation(
        tier=tier,
        why=why,
        faults=tuple(_faults(policy, standing, request, tier, people, at_us)),
        approvers=approvers,
        vetoers=vetoers,
        excluded=tuple(sorted(excluded)),
        signed=tally(tier.approve, [person for person in approved if person in approvers], standing),
        possible=tally(tier.approve, approvers, standing),
        may_be_away=tolerance(tier.approve, census(approvers, standing)),
        stop_reachable_s=policy.stop.notice_s,
        stop_latest_s=worst_stop_s(policy, tier),
    )


def tier_of(policy: Policy, request: Request) -> tuple[Tier, tuple[Bound, ...]]:
    """The tier of a request, and the bounds of it that the request is above."""
    scope = request.scope
    lineage = lineage_tflop(scope, request.ancestors)
    tier = tier_for(policy, budget_tflop=scope.budget_tflop, chips=scope.chips, lineage_tflop=lineage)
    if tier is None:
        return policy.tiers[0], ()
    values = {"budget_tflop": scope.budget_tflop, "chips": scope.chips, "lineage_tflop": lineage}
    bounds = []
    for name, value in values.items():
        above: int | None = getattr(tier.above, name)
        if above is not None and (value is None or value > above):
            bounds.append(Bound(name, above, value))
    return tier, tuple(bounds)


def _faults(
    policy: Policy, standing: Standing, request: Request, tier: Tier, people: Collection[str], at_us: int
) -> list[str]:
    found = []
    if request.requester not in standing.persons:
        found.append(f"requester: {request.requester} is no person of the root")
    elif standing.party_of(request.requester).class_ not in policy.requesters:
        found.append(f"requester: only {' or '.join(policy.requesters)} may ask for runs")
    elif request.requester not in people:
        found.append(f"requester: {request.requester} has no key that is valid")
    missing: list[SpecPart] = [part for part in tier.verified if request.spec.get(part) is None]
    found += [f"spec.{part}: tier {tier.name} asks for a commitment" for part in missing]
    if request.scope.not_after_us <= at_us:
        found.append("scope.not_after_us: the window is over")
    return found
