"""Pages of totals: workloads, and spans of time by workload, organisation or site. A page costs what is on it.

What comes out is equal, field by field, to :func:`keyturn_protocol.totals.summarise` and ``add_up`` over all rows.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple, TypeVar

from keyturn_protocol.api import WorkloadTotal
from keyturn_protocol.api_read import Bucket, By, UsageBucket
from keyturn_protocol.ids import GAP, UNATTRIBUTED
from keyturn_verifier.queries import Filter
from keyturn_verifier.rollup import numbers
from keyturn_verifier.rollup.delta import EVERY
from keyturn_verifier.rollup.parts import Part
from keyturn_verifier.rollup.spans import Level, cut, span_of
from keyturn_verifier.rollup.stretch import Place, Tally, overlap
from keyturn_verifier.rollup.view import View

LEVELS: Final[Mapping[Bucket, Level]] = {"hour": Level.HOUR, "day": Level.DAY, "month": Level.MONTH}
_POOLS: Final = sorted((UNATTRIBUTED, GAP))
_NO_POOL: Final = (EVERY, *_POOLS)
_AT_ONCE: Final = 256
"""Spans that are read with one query."""
G = TypeVar("G")


def workloads(
    view: View, wanted: Filter, until_us: int, after: tuple[bool, str] | None, limit: int
) -> list[WorkloadTotal]:
    """Totals by workload, the pools last: at most ``limit`` of them.

    :param after: whether the last one of the page before was a pool, and its name.
    """
    spans = view.spans(wanted)
    pool, name = after or (False, EVERY)
    if wanted.workload is not None:
        names = [wanted.workload] if (wanted.workload in _POOLS, wanted.workload) > (pool, name) else []
    else:
        names = [] if pool else view.workloads(spans, name, limit, _NO_POOL)
        if len(names) < limit:  # both: the one that comes first may hold nothing
            names += [one for one in _POOLS if not pool or one > name]
    names = [one for one in names if one != EVERY]
    sums = view.by_workload(spans, [one for one in names if one not in _POOLS])
    for one in (one for one in names if one in _POOLS):
        sums |= view.by_workload(spans, [one])
    if GAP in names:
        for _, part in missing(view, wanted, until_us, lambda _: GAP).items():
            sums.setdefault(GAP, Part()).add(part)
    return [sums[one].total(one) for one in names if one in sums][:limit]


def missing(view: View, wanted: Filter, until_us: int, group: Callable[[Place], G]) -> dict[G, Part]:
    """Long gaps and silences within a filter, by group."""
    sums: dict[G, Tally] = {}
    for one in view.stretches() if wanted.workload in (None, GAP) else ():
        if (inside := overlap(one, wanted, until_us)) is not None:
            name = group(one.place)
            if name not in sums:
                sums[name] = Tally()
            sums[name].add(one, *inside)
    return {name: tally.part() for name, tally in sums.items()}


class BucketKey(NamedTuple):
    """A bucket and a group, in the order of the list."""

    from_s: int
    to_s: int
    group: str


def buckets(
    view: View, wanted: Filter, bucket: Bucket, by: By, until_us: int, after: BucketKey | None, limit: int
) -> list[UsageBucket]:
    """What ``limit`` groups used, at most, bucket by bucket; by workload, organisation or site."""
    level = LEVELS[bucket]
    group = _group(by)
    gone = spread(view, wanted, level, until_us, group, 0 if after is None else after.from_s)
    found: list[UsageBucket] = []
    for from_s, to_s, sums in _sums(view, wanted, level, by, group, gone, after, limit):
        for name, part in sorted(sums.items()):
            key = BucketKey(from_s, to_s, name)
            if after is None or key > after:
                found.append(shown(key, by, part))
        if len(found) >= limit:
            break
    return found[:limit]


def _group(by: By) -> Callable[[Place], str]:
    match by:
        case "organisation":
            return lambda place: place[0]
        case "site":
            return lambda place: place[1]
        case _:
            return lambda _: GAP


def _sums(
    view: View,
    wanted: Filter,
    level: Level,
    by: By,
    group: Callable[[Place], str],
    gone: Mapping[int, Mapping[str, Part]],
    after: BucketKey | None,
    limit: int,
) -> Iterator[tuple[int, int, dict[str, Part]]]:
    """Bucket by bucket, from the one that the page begins in, its groups."""
    of = EVERY if wanted.workload is None else wanted.workload
    starts = occupied(view, wanted, level, set(gone), after)
    for first in range(0, len(starts), _AT_ONCE):
        part = starts[first : first + _AT_ONCE]
        by_start = {} if by == "workload" else view.by_start(level, part[0], part[-1] + 1, of)
        for start in part:
            end = span_of(level, start)[1]
            clipped = clip(wanted, start, end)
            spans = list(cut(clipped.from_s or 0, clipped.to_s or 0))
            sums: dict[str, Part] = {}
            if by != "workload":
                whole = (clipped.from_s, clipped.to_s) == (start, end)
                found = by_start.get(start, {}) if whole else view.by_place(spans, of)
                for place, one in found.items():
                    sums.setdefault(group(place), Part()).add(one)
            elif wanted.workload is not None:
                sums |= view.by_workload(spans, [wanted.workload])
            else:
                name = after.group if after is not None and after.from_s == start else EVERY
                sums |= view.by_workload(spans, view.workloads(spans, name, limit, (EVERY,)))
            for name, one in gone.get(start, {}).items():
                sums.setdefault(name, Part()).add(one)
            yield start, end, sums


def occupied(view: View, wanted: Filter, level: Level, gone: set[int], after: BucketKey | None) -> list[int]:
    """The buckets that can hold anything, from the one on that the page begins in."""
    of = EVERY if wanted.workload is None else wanted.workload
    if of == EVERY and wanted.workload is not None:
        return []
    from_s = None if wanted.from_s is None else span_of(level, wanted.from_s)[0]
    starts = {*view.starts(level, of, from_s, wanted.to_s), *gone}
    return sorted(start for start in starts if after is None or start >= after.from_s)


def clip(wanted: Filter, from_s: int, to_s: int) -> Filter:
    """The part of a filter that lies in a bucket."""
    return Filter(
        from_s if wanted.from_s is None else max(from_s, wanted.from_s),
        to_s if wanted.to_s is None else min(to_s, wanted.to_s),
        wanted.workload,
    )


def spread(
    view: View, wanted: Filter, level: Level, until_us: int, group: Callable[[Place], str], least_s: int
) -> dict[int, dict[str, Part]]:
    """Long gaps and silences, by bucket and group, from the bucket on that begins at ``least_s``."""
    sums: dict[tuple[int, str], Tally] = {}
    for one in view.stretches() if wanted.workload in (None, GAP) else ():
        inside = overlap(one, wanted, until_us)
        if inside is not None:
            name = group(one.place)
            for start, from_us, to_us in pieces(level, max(inside[0], least_s * 1_000_000), inside[1]):
                if (start, name) not in sums:
                    sums[start, name] = Tally()
                sums[start, name].add(one, from_us, to_us)
    parts: dict[int, dict[str, Part]] = {}
    for (start, name), tally in sums.items():
        parts.setdefault(start, {})[name] = tally.part()
    return parts


def pieces(level: Level, from_us: int, to_us: int) -> Iterator[tuple[int, int, int]]:
    """A time cut into buckets: the bucket, and what of the time lies in it."""
    at = from_us
    while at < to_us:
        start, end = span_of(level, at // 1_000_000)
        yield start, at, min(to_us, end * 1_000_000)
        at = end * 1_000_000


def shown(key: BucketKey, by: By, part: Part) -> UsageBucket:
    """A bucket as the API shows it."""
    return UsageBucket(
        from_s=key.from_s,
        to_s=key.to_s,
        by=by,
        key=key.group,
        logs=numbers.count(part.logs),
        chips=numbers.count(part.chips),
        time_us=part.time_us,
        gap_us=part.gap_us,
        energy_mj=part.energy_mj,
        undeclared=part.undeclared,
        declared=part.declared,
    )
