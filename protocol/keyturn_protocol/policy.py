"""The policy: above which size a run needs whose consent, how long things take, what is free.

    tier "large": above 1e23 FLOP or 1,024 chips · 3 persons of 3 organisations, 1 operator and 1 regulator among them ·
    veto: operator, regulator · decided within 7 days, started within 30 · leases of 48 h

Signed under the root's policy threshold. People write it in TOML; the statement is what is signed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated

import msgspec

from keyturn_protocol.canonical import Hex32, Positive, Record, Text, UInt
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.limits import TIERS
from keyturn_protocol.quorum import Census, able, census, compare, tolerance
from keyturn_protocol.root import Class, Name, Root, Standing, Threshold
from keyturn_protocol.statement_base import Statement
from keyturn_protocol.values import SpecPart

Level = Annotated[int, msgspec.Meta(ge=0, le=3)]
"""Of assurance: what a node's evidence is worth."""
Seconds = Annotated[int, msgspec.Meta(ge=1, le=10 * 365 * 86_400)]


class Above(Record, frozen=True, kw_only=True):
    """A tier begins above any one of these; null is no criterion."""

    budget_tflop: UInt | None
    chips: UInt | None
    lineage_tflop: UInt | None


class Tier(Record, frozen=True, kw_only=True):
    """What a run of some size needs."""

    name: Name
    above: Above
    approve: Threshold
    deny: Positive
    """So many persons who say no end the request."""
    veto: list[Class]
    """Any person of these classes ends a request, or suspends a run, alone."""
    colleagues: bool
    """Whether others of the requester's organisation count."""
    decide_s: Seconds
    """From the request to the last decision that counts."""
    start_s: Seconds
    """From approval to the first lease."""
    grace_s: UInt
    """Before a stop: how long the notice is seen by the run."""
    lease_s: Seconds
    """How long a lease lives: a run outlives a verifier that is away for so long, and a stop takes at most that."""
    assurance: Level
    """The least level of a node that gets a lease."""
    verified: list[SpecPart]
    """Digests that the host must have checked itself, not only been told."""
    watchers: list[Name]


class Allowance(Record, frozen=True, kw_only=True):
    """What runs without anybody's consent, in TFLOP a window."""

    window_s: Seconds
    organisation_tflop: UInt
    lineage_tflop: UInt
    diagnostics_tflop: UInt
    """A day and node, for tests of the hardware."""
    chips: UInt
    """At once, of one organisation."""
    lease_s: Seconds


class Stop(Record, frozen=True, kw_only=True):
    """How a suspension takes effect."""

    notice_s: Seconds
    """From the suspension to the moment at which all hosts stop; a sooner one takes a second organisation."""
    alone_s: Seconds
    """For so long in all it takes a party's consent to undo what it did alone; a stop is put off by no more."""
    kill_s: Seconds
    """From SIGTERM to SIGKILL."""


class Policy(Statement, frozen=True, kw_only=True, tag="policy"):
    """In force from its leaf until the next one; a run stays under the policy that its request names."""

    version: Positive
    previous: Hex32 | None
    name: Text
    requesters: Annotated[list[Class], msgspec.Meta(min_length=1)]
    tiers: Annotated[list[Tier], msgspec.Meta(min_length=1, max_length=TIERS)]
    allowance: Allowance
    stop: Stop


def tier_for(policy: Policy, *, budget_tflop: int, chips: int, lineage_tflop: int | None) -> Tier | None:
    """The highest tier that a run of this size is in, None below all of them.

    :param lineage_tflop: what the run and all its ancestors come to, each ancestor once; None when an ancestor's
        compute isn't known, which is above every bound.
    """
    for tier in reversed(policy.tiers):
        above = tier.above
        if (
            (above.budget_tflop is not None and budget_tflop > above.budget_tflop)
            or (above.chips is not None and chips > above.chips)
            or (above.lineage_tflop is not None and (lineage_tflop is None or lineage_tflop > above.lineage_tflop))
        ):
            return tier
    return None


def check_form(policy: Policy) -> None:
    """Refuse a policy that contradicts itself, whoever the parties are.

    :raises ProtocolError: ``bad_policy``, with every reason.
    """
    _none(_form(policy))


def check_policy(policy: Policy, standing: Standing, at_us: int) -> None:
    """Refuse a policy that can't both approve and refuse, whoever asks.

    :raises ProtocolError: ``bad_policy``, with every reason.
    """
    _none(policy_faults(policy, standing, at_us))


def policy_faults(policy: Policy, standing: Standing, at_us: int) -> list[str]:
    """Every reason for which :func:`check_policy` refuses a policy."""
    return list(_faults(_Held(policy, standing.root, at_us, standing)))


@dataclass(frozen=True, slots=True)
class _Held:
    """A policy that is held against a root. Equal when both are: nobody is trusted to have hashed well."""

    policy: Policy
    root: Root
    at_us: int
    standing: Standing = field(compare=False)

    def __hash__(self) -> int:
        return hash((self.policy.version, self.root.version, self.at_us))


@lru_cache(maxsize=16)  # a host opens bundles under one and the same policy all day
def _faults(held: _Held) -> tuple[str, ...]:
    return (*_form(held.policy), *_under(held.policy, held.standing, held.at_us))


def _none(reasons: Iterable[str]) -> None:
    if found := list(reasons):
        raise ProtocolError(Code.BAD_POLICY, "; ".join(found))


def _form(policy: Policy) -> Iterator[str]:
    yield from _order(policy)
    for tier in policy.tiers:
        yield from (f"tier {tier.name}: {reason}" for reason in _sizes(tier))


def _under(policy: Policy, standing: Standing, at_us: int) -> Iterator[str]:
    people = able(standing, at_us)
    everybody = census(people, standing)
    wanted = {tier.colleagues for tier in policy.tiers}
    left = {colleagues: _deciders(policy, standing, people, everybody, colleagues) for colleagues in wanted}
    for tier in policy.tiers:
        reasons = _people(tier, standing, everybody, left[tier.colleagues])
        yield from (f"tier {tier.name}: {reason}" for reason in reasons)


def worst_tolerance(policy: Policy, tier: Tier, standing: Standing, at_us: int) -> int:
    """How many persons may be out of reach before a request of this tier can't be approved, for the requester for
    whom that is least; -1 if there is one whose request never can be."""
    return min(
        (tolerance(tier.approve, left) for left in deciders(policy, standing, at_us, tier.colleagues)), default=-1
    )


def deciders(policy: Policy, standing: Standing, at_us: int, colleagues: bool) -> list[Census]:
    """Who can decide, for each one who may ask: once for all requesters of one class and organisation.

    :param colleagues: whether others of the requester's organisation count.
    """
    people = able(standing, at_us)
    return _deciders(policy, standing, people, census(people, standing), colleagues)


def _deciders(
    policy: Policy, standing: Standing, people: Sequence[str], everybody: Census, colleagues: bool
) -> list[Census]:
    asking = {
        (party.class_, party.organisation): person
        for person in people
        if (party := standing.party_of(person)).class_ in policy.requesters
    }
    if colleagues:
        return [everybody.without(census([person], standing)) for person in asking.values()]
    by_organisation: dict[str, list[str]] = {}
    for person in people:
        by_organisation.setdefault(standing.party_of(person).organisation, []).append(person)
    organisations = {organisation for _, organisation in asking}
    return [everybody.without(census(by_organisation[name], standing)) for name in sorted(organisations)]


def _order(policy: Policy) -> Iterator[str]:
    """Rules between the tiers: a larger run never needs less."""
    if len({tier.name for tier in policy.tiers}) != len(policy.tiers):
        yield "two tiers of one name"
    first = policy.version == 1
    if (policy.previous is None) != first:
        yield "version 1 has no policy before it, every other one names it"
    for lower, upper in zip(policy.tiers, policy.tiers[1:], strict=False):
        for name in Above.__struct_fields__:
            below, above = getattr(lower.above, name), getattr(upper.above, name)
            if above is not None and below is not None and above <= below:
                yield f"tier {upper.name}: {name} must be above that of tier {lower.name}"
        ours, theirs = upper.approve, lower.approve
        less = ours.persons < theirs.persons or ours.organisations < theirs.organisations
        if less or any(ours.minimum.get(kind, 0) < count for kind, count in theirs.minimum.items()):
            yield f"tier {upper.name} asks for less consent than tier {lower.name}"
        if not set(lower.veto) <= set(upper.veto):
            yield f"tier {upper.name} takes a veto away that tier {lower.name} gives"


def _sizes(tier: Tier) -> Iterator[str]:
    approve, above = tier.approve, tier.above
    if above.budget_tflop is None and above.chips is None and above.lineage_tflop is None:
        yield "no size at which it begins"
    if not approve.minimum:
        yield "no class whose consent it takes"
    if sum(approve.minimum.values()) > approve.persons:
        yield f"{sum(approve.minimum.values())} persons by class, but only {approve.persons} in all"
    if approve.organisations > approve.persons:
        yield f"{approve.organisations} organisations, but only {approve.persons} persons"
    for name, values in (("veto", tier.veto), ("verified", tier.verified), ("watchers", tier.watchers)):
        if list(values) != sorted(set(values)):
            yield f"{name} is sorted, each once"


def _people(tier: Tier, standing: Standing, everybody: Census, left: Sequence[Census]) -> Iterator[str]:
    """:param left: who can decide, for each one who may ask."""
    for watcher in tier.watchers:
        if watcher not in {steward.party for steward in standing.root.watchers}:
            yield f"no watcher of {watcher} in the root"
    if not left:
        yield "can never approve: nobody who may ask has a valid key"
    unmet = [count for count in (compare(tier.approve, found) for found in left) if not count.met]
    if unmet:
        worst = max(unmet, key=lambda one: one.missing_persons + sum(one.missing_classes.values()))
        yield f"can never approve: with all who could sign, {worst} would be missing"
    silent = [found.persons for found in left if found.persons < tier.deny and not _any(found, tier.veto)]
    if silent:
        yield f"can never refuse: {tier.deny} must say no, of {min(silent)}, and nobody has a veto"
    if not _any(everybody, tier.veto):
        yield "nobody can suspend: no person with a valid key in a class with a veto"


def _any(found: Census, classes: Iterable[Class]) -> bool:
    return any(found.classes[kind] for kind in classes)
