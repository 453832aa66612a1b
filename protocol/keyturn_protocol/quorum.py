"""Counting: who is behind something, who is missing, and who could be.

Persons are counted, never keys or signatures. All three demands of a threshold are lower bounds: whoever signs on top
takes nothing away, and what all eligible persons together can't meet, nobody can.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from keyturn_protocol.root import CLASSES, Class, Standing, Threshold


@dataclass(frozen=True, slots=True)
class Tally:
    """How far persons get towards a threshold."""

    persons: tuple[str, ...]
    """Those that count, in order."""
    missing_persons: int
    missing_organisations: int
    missing_classes: Mapping[Class, int]

    @property
    def met(self) -> bool:
        return not (self.missing_persons or self.missing_organisations or self.missing_classes)

    def __str__(self) -> str:
        """What is missing, in words: ``1 regulator, 1 more organisation``."""
        parts = [f"{count} {kind}" for kind, count in self.missing_classes.items()]
        if self.missing_persons > sum(self.missing_classes.values()):
            parts.append(f"{self.missing_persons} more of any class" if not parts else f"{self.missing_persons} in all")
        if self.missing_organisations:
            parts.append(f"{self.missing_organisations} more organisation(s)")
        return ", ".join(parts) or "nothing"


@dataclass(frozen=True, slots=True)
class Census:
    """How many persons there are, by class and by organisation: all that a threshold asks about."""

    persons: int
    classes: Counter[Class]
    organisations: Counter[str]

    def without(self, other: "Census") -> "Census":
        """When those counted in ``other``, who are among these, are away."""
        return Census(
            self.persons - other.persons, self.classes - other.classes, self.organisations - other.organisations
        )


def census(persons: Iterable[str], standing: Standing) -> Census:
    """Count persons of the root."""
    parties = [standing.party_of(person) for person in persons]
    return Census(
        len(parties), Counter(party.class_ for party in parties), Counter(party.organisation for party in parties)
    )


def tally(threshold: Threshold, persons: Iterable[str], standing: Standing) -> Tally:
    """Count ``persons``, each once; those that the root doesn't know don't count."""
    counted = sorted({person for person in persons if person in standing.persons})
    return compare(threshold, census(counted, standing), tuple(counted))


def compare(threshold: Threshold, found: Census, persons: tuple[str, ...] = ()) -> Tally:
    """How far those counted get; ``persons`` are their names, for who shows them."""
    by_class = found.classes
    return Tally(
        persons,
        max(0, threshold.persons - found.persons),
        max(0, threshold.organisations - len(found.organisations)),
        {
            kind: threshold.minimum[kind] - by_class[kind]
            for kind in CLASSES
            if threshold.minimum.get(kind, 0) > by_class[kind]
        },
    )


def able(standing: Standing, at_us: int) -> tuple[str, ...]:
    """Persons with a key that is valid at ``at_us``."""
    return tuple(sorted({key.person.id for key in standing.keys.values() if key.refusal(at_us, at_us) is None}))


def shared_with(standing: Standing, person: str, *, colleagues: bool) -> frozenset[str]:
    """Who can't count for what ``person`` asks: the person, and with ``colleagues`` all of its organisation."""
    if not colleagues:
        return frozenset({person})
    own = standing.party_of(person).organisation
    return frozenset(other for other in standing.persons if standing.party_of(other).organisation == own)


def tolerance(threshold: Threshold, found: Census) -> int:
    """How many of those counted may be out of reach, whoever they are, before the threshold can't be met; -1: never.

    The demands are independent lower bounds: the fewest absences that break one of them, less one.
    """
    breaks = [found.persons - threshold.persons + 1]
    by_class = found.classes
    breaks += [by_class[kind] - count + 1 for kind, count in threshold.minimum.items()]
    sizes = sorted(found.organisations.values())
    spare = len(sizes) - threshold.organisations
    breaks.append(sum(sizes[: spare + 1]) if spare >= 0 else 0)
    return max(min(breaks), 0) - 1
