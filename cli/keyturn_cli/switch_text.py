"""What is in roots, policies and runs, in words. Numbers that limit something are rounded up where they are rounded."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from keyturn_cli.output import named
from keyturn_cli.units import count, flop_of, moment, span
from keyturn_protocol.policy import Above, Allowance, Tier
from keyturn_protocol.root import CLASSES, Standing, Threshold
from keyturn_protocol.runs import Narrowing, Scope

ALONE: Final = "the verifier alone can over-lease and hide a veto"
"""Said wherever a permit is shown."""


def alone(of: Tier) -> str:
    """:data:`ALONE`, also of a tier that names watchers: no host of this version asks what they cosigned."""
    if not of.watchers:
        return ALONE
    return f"{ALONE}: no host of this version asks what the watchers of {either(of.watchers, 'and')} saw"


def groups(digest: str) -> str:
    """A hash in groups of four, to be compared by eye."""
    return " ".join(digest[at : at + 4] for at in range(0, len(digest), 4))


def short(digest: str) -> str:
    """How a run is called for short. Never what is signed or pinned."""
    return f"r-{digest[:8]}"


def short_of(digest: str, run: str) -> str:
    """How something of a run is called for short: the run itself, or a proposal or suspension of it."""
    return short(digest) if digest == run else digest[:12]


def either(words: Iterable[str], last: str = "or") -> str:
    """``a, b or c``."""
    listed = list(words)
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} {last} {listed[-1]}" if listed else "none"


def by_class(counts: Mapping[Any, int]) -> str:
    """``1 lab, 1 operator and 2 regulators``."""
    return either((f"{counts[kind]} {_many(kind, counts[kind])}" for kind in CLASSES if counts.get(kind)), "and")


def _many(kind: str, number: int) -> str:
    return kind if number == 1 else "third parties" if kind == "third-party" else kind + "s"


def person(who: str, standing: Standing) -> str:
    """``lab-a/bob (lab, acme)``."""
    if who not in standing.persons:
        return f"{named(who)} (not in the root)"
    party = standing.party_of(who)
    return f"{who} ({party.class_}, {party.organisation})"


def persons(who: Iterable[str], standing: Standing) -> str:
    """Several of them."""
    return " · ".join(person(one, standing) for one in who)


def threshold(wanted: Threshold) -> str:
    """``3 persons of 3 organisations, 1 lab and 1 regulator among them``."""
    text = count(wanted.persons, "person")
    if wanted.organisations > 1:
        text += f" of {wanted.organisations} organisations"
    return text + (f", {by_class(wanted.minimum)} among them" if wanted.minimum else "")


def above(bound: Above) -> str:
    """Where a tier begins."""
    parts = []
    if bound.budget_tflop is not None:
        parts.append(f"{flop_of(bound.budget_tflop)}")
    if bound.chips is not None:
        parts.append(count(bound.chips, "chip"))
    if bound.lineage_tflop is not None:
        parts.append(f"{flop_of(bound.lineage_tflop)} with all that it builds on")
    return either(parts)


def scope(of: Scope) -> list[str]:
    """What a scope allows, a line each."""
    return [
        f"at most {flop_of(of.budget_tflop)}, charged at the high end for {', '.join(of.dtypes)}",
        f"at most {count(of.chips, 'chip')} at once"
        + ("" if of.chip_uuids is None else f", out of {len(of.chip_uuids):,}:")
        + ("" if of.chip_uuids is None else " " + ", ".join(map(named, of.chip_uuids))),
        "at any site" if of.sites is None else f"at {either(map(named, of.sites))}",
        f"from {moment(of.not_before_us)} to {moment(of.not_after_us)}",
    ]


def narrowing(of: Narrowing | None) -> str:
    """What an approval takes away; empty if nothing."""
    if of is None:
        return ""
    parts = []
    for name in Narrowing.__struct_fields__:
        if (set_ := getattr(of, name)) is not None:
            parts.append(f"{LABELS[name]} {value(name, set_)}")
    return ", ".join(parts)


LABELS: Final[Mapping[str, str]] = {
    "budget_tflop": "budget",
    "chips": "chips at once",
    "chip_uuids": "chips",
    "sites": "sites",
    "dtypes": "dtypes",
    "not_before_us": "not before",
    "not_after_us": "not after",
}


def value(name: str, of: Any) -> str:
    """A field's value, by the unit that its name ends with."""
    match of:
        case None:
            return "any" if name in ("chip_uuids", "sites") else "none"
        case bool():
            return "yes" if of else "no"
        case int() if name.endswith("_us"):
            return moment(of)
        case int() if name.endswith("_tflop"):
            return flop_of(of)
        case int() if name.endswith("_s"):
            return span(of)
        case int():
            return f"{of:,}"
        case str():
            return named(of, 2_000)
        case list() | tuple():
            return ", ".join(named(str(one), 2_000) for one in of) or "none"
        case dict():
            return (
                by_class(of) if of.keys() <= set(CLASSES) else ", ".join(f"{k}: {value(k, v)}" for k, v in of.items())
            )
        case _:
            return named(str(of), 2_000)


def tier(of: Tier) -> list[str]:
    """What a run of this tier takes, a line each."""
    return [
        f"above {above(of.above)}",
        f"takes {threshold(of.approve)}; {'others of' if of.colleagues else 'nobody else of'} the requester's "
        f"organisation {'count' if of.colleagues else 'counts'}",
        f"ends when {of.deny} say no, or at one veto of {either(of.veto)}",
        f"decided within {span(of.decide_s)}, started within {span(of.start_s)} of that",
        f"leases of {span(of.lease_s)}; {span(of.grace_s)} of notice to the run before it is stopped",
        f"hosts of assurance level {of.assurance} or more; checked by the host itself: {either(of.verified, 'and')}",
        alone(of) if of.watchers else f"no watchers: {ALONE}",
    ]


def allowance(of: Allowance) -> list[str]:
    """What runs without a permit, a line each."""
    return [
        f"{flop_of(of.organisation_tflop)} of an organisation, {flop_of(of.lineage_tflop)} of a lineage, "
        f"in {span(of.window_s)}",
        f"on at most {count(of.chips, 'chip')} of an organisation at once, in leases of {span(of.lease_s)}",
        f"for tests of the hardware {flop_of(of.diagnostics_tflop)} a host and day",
    ]
