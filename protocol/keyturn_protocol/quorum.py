"""Counting: who is behind something, who is missing, and who could be.

Persons are counted, never keys or signatures. All three demands of a threshold are lower bounds: whoever signs on top
takes nothing away, and what all eligible persons together can't meet, nobody can.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
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


def tally(threshold: Threshold, persons: Iterable[str], standing: Standing) -> Tally:
    """Count ``persons``, each once; those that the root doesn't know don't count."""
    counted = sorted({person for person in persons if person in standing.persons})
    parties = [standing.party_of(person) for person in counted]
    by_class = Counter(party.class_ for party in parties)
    organisations = len({party.organisation for party in parties})
    return Tally(
        tuple(counted),
        max(0, threshold.persons - len(counted)),
        max(0, threshold.organisations - organisations),
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


def tolerance(threshold: Threshold, persons: Collection[str], standing: Standing) -> int:
    """How many of ``persons`` may be out of reach, whoever they are, before the threshold can't be met; -1: never can.

    The demands are independent lower bounds: the fewest absences that break one of them, less one.
    """
    if not tally(threshold, persons, standing).met:
        return -1
    parties = [standing.party_of(person) for person in persons]
    breaks = [len(parties) - threshold.persons + 1]
    by_class = Counter(party.class_ for party in parties)
    breaks += [by_class[kind] - count + 1 for kind, count in threshold.minimum.items()]
    sizes = sorted(Counter(party.organisation for party in parties).values())
    breaks.append(sum(sizes[: len(sizes) - threshold.organisations + 1]))
    return min(breaks) - 1
