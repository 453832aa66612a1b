"""Usage by spans of time: hours, days or months in UTC, by workload, organisation, site, node or chip."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection, select

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.api_read import Bucket, By, UsageBucket
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.ids import GAP, parse_origin
from keyturn_protocol.totals import add_up, to_text
from keyturn_protocol.usage import HOUR_S, Gap
from keyturn_verifier import queries
from keyturn_verifier.db.tables import log
from keyturn_verifier.errors import stored
from keyturn_verifier.problems import Refusal
from keyturn_verifier.queries import Filter

DAY_S: Final = 24 * HOUR_S
MOST_DAYS: Final[dict[Bucket, int]] = {"hour": 31, "day": 366, "month": 36_600}
"""The longest span that is asked for at once: a gap of a year has a part in each of its buckets."""
_LAST_S: Final = 253_402_300_800
"""The year 10000."""


class Key(NamedTuple):
    """A bucket and a group, in the order of the list."""

    from_s: int
    to_s: int
    group: str


def check(bucket: Bucket, wanted: Filter) -> None:
    """That a span isn't too long for its buckets.

    :raises Refusal: ``bad_request``.
    """
    most_s = MOST_DAYS[bucket] * DAY_S
    span_s = (wanted.to_s or _LAST_S) - (wanted.from_s or 0)
    if bucket != "month" and (wanted.from_s is None or wanted.to_s is None or span_s > most_s):
        raise Refusal(
            ProblemCode.BAD_REQUEST,
            f"bucket={bucket}: from and to must be given, at most {MOST_DAYS[bucket]} days apart",
        )
    if (wanted.to_s or 0) > _LAST_S or (wanted.from_s or 0) >= _LAST_S:
        raise Refusal(ProblemCode.BAD_REQUEST, "from, to: after the year 9999")


def span_of(bucket: Bucket, time_s: int) -> tuple[int, int]:
    """The bucket that holds a time, as POSIX seconds from … to."""
    if bucket == "month":
        at = datetime.fromtimestamp(min(max(time_s, 0), _LAST_S - DAY_S * 32), UTC)
        first = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        after = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
        return int(first.timestamp()), int(after.timestamp())
    width = HOUR_S if bucket == "hour" else DAY_S
    start = time_s // width * width
    return start, start + width


@stored
def usage(
    connection: Connection, wanted: Filter, bucket: Bucket, by: By, until_us: int, table: ChipTable
) -> list[UsageBucket]:
    """All buckets that hold anything. Silence up to ``until_us`` counts as a gap."""
    names = queries.origins(connection)
    group = _groups(connection, by)

    def parts(gap: Gap) -> Iterator[Key]:
        key = GAP if by == "workload" else group(gap.log, gap.chip, GAP)
        start, end = span_of(bucket, gap.from_us // 1_000_000)
        while start * 1_000_000 < gap.to_us:
            yield Key(start, end, key)
            following = span_of(bucket, end)
            if following[0] < end:  # the last month there is
                return
            start, end = following

    sums = add_up(
        queries.usage_rows(connection, names, wanted),
        queries.clipped_gaps(connection, names, wanted, until_us),
        queries.chips(connection, names),
        queries.started(connection, names),
        table,
        lambda row: Key(*span_of(bucket, row.hour_s), group(row.log, row.chip, row.workload)),
        parts,
        lambda gap, key: queries.cut(gap, key.from_s, key.to_s) or gap,
    )
    return [
        UsageBucket(
            from_s=key.from_s,
            to_s=key.to_s,
            by=by,
            key=key.group,
            logs=len(total.logs),
            chips=len(total.chips),
            time_us=total.time_us,
            gap_us=total.gap_us,
            energy_mj=None if total.energy_mj is None else str(total.energy_mj),
            undeclared=to_text(total.undeclared),
            declared=to_text(total.declared) if total.any_declared else None,
        )
        for key, total in sorted(sums.items())
    ]


def _groups(connection: Connection, by: By) -> Callable[[str, str, str], str]:
    """(log, chip, workload) → the group."""
    match by:
        case "workload":
            return lambda _log, _chip, workload: workload
        case "chip":
            return lambda _log, chip, _workload: chip
        case "node":
            return lambda origin, _chip, _workload: parse_origin(origin).node_id
        case "organisation" | "site":
            column = log.c.organisation if by == "organisation" else log.c.site
            names = {row[0]: row[1] for row in connection.execute(select(log.c.origin, column))}
            return lambda origin, _chip, _workload: str(names[origin])
