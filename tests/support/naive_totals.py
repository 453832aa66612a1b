"""Totals the slow way: every row, every gap, every chip, through the protocol's own sums. What pages must equal."""

from collections.abc import Callable, Iterator

from sqlalchemy import Connection, select

from keyturn_protocol.api import WorkloadTotal
from keyturn_protocol.api_read import Bucket, By, UsageBucket
from keyturn_protocol.canonical import parse
from keyturn_protocol.chips import ChipTable
from keyturn_protocol.entry_workloads import WorkloadStartedBody
from keyturn_protocol.ids import GAP, Origin, parse_origin
from keyturn_protocol.totals import add_up, summarise, to_text
from keyturn_protocol.usage import Gap
from keyturn_verifier import queries
from keyturn_verifier.db.tables import log, workload_started
from keyturn_verifier.queries import Filter
from keyturn_verifier.rollup.spans import span_of
from keyturn_verifier.rollup.totals import LEVELS, BucketKey


def workloads(connection: Connection, wanted: Filter, until_us: int, table: ChipTable) -> list[WorkloadTotal]:
    """Totals by workload. Silence up to ``until_us`` counts as a gap."""
    names = queries.origins(connection)
    return summarise(
        queries.usage_rows(connection, names, wanted),
        gaps(connection, wanted, until_us),
        queries.chips(connection, names),
        started(connection, names),
        table,
    )


def buckets(
    connection: Connection, wanted: Filter, bucket: Bucket, by: By, until_us: int, table: ChipTable
) -> list[UsageBucket]:
    """All buckets that hold anything."""
    names = queries.origins(connection)
    group = groups(connection, by)

    def key(time_s: int, name: str) -> BucketKey:
        return BucketKey(*span_of(LEVELS[bucket], time_s), name)

    def parts(gap: Gap) -> Iterator[BucketKey]:
        at = gap.from_us // 1_000_000
        while at * 1_000_000 < gap.to_us:
            yield key(at, group(gap.log, gap.chip, GAP))
            at = span_of(LEVELS[bucket], at)[1]

    sums = add_up(
        queries.usage_rows(connection, names, wanted),
        gaps(connection, wanted, until_us),
        queries.chips(connection, names),
        started(connection, names),
        table,
        lambda row: key(row.hour_s, group(row.log, row.chip, row.workload)),
        parts,
        lambda gap, at: queries.cut(gap, at.from_s, at.to_s) or gap,
    )
    return [
        UsageBucket(
            from_s=at.from_s,
            to_s=at.to_s,
            by=by,
            key=at.group,
            logs=len(total.logs),
            chips=len(total.chips),
            time_us=total.time_us,
            gap_us=total.gap_us,
            energy_mj=None if total.energy_mj is None else str(total.energy_mj),
            undeclared=to_text(total.undeclared),
            declared=to_text(total.declared) if total.any_declared else None,
        )
        for at, total in sorted(sums.items())
    ]


def gaps(connection: Connection, wanted: Filter, until_us: int) -> list[Gap]:
    """The parts of all gaps that a filter lets through."""
    names = queries.origins(connection)
    every = [*queries.stored_gaps(connection, names), *queries.missing(connection, until_us)]
    return [part for gap in every if (part := wanted.clip(gap)) is not None]


def groups(connection: Connection, by: By) -> Callable[[str, str, str], str]:
    """(log, chip, workload) → the group."""
    rows = connection.execute(select(log.c.origin, log.c.organisation, log.c.site)).all()
    names = {row.origin: {"organisation": row.organisation, "site": row.site} for row in rows}
    match by:
        case "workload":
            return lambda _log, _chip, workload: workload
        case "chip":
            return lambda _log, chip, _workload: chip
        case "node":
            return lambda origin, _chip, _workload: parse_origin(origin).node_id
        case _:
            return lambda origin, _chip, _workload: names[origin][by]


def started(connection: Connection, names: dict[int, Origin]) -> dict[tuple[str, str], list[WorkloadStartedBody]]:
    """What logs say about workloads, in order."""
    found: dict[tuple[str, str], list[WorkloadStartedBody]] = {}
    query = select(workload_started).order_by(workload_started.c.log_id, workload_started.c.seq)
    for row in connection.execute(query):
        found.setdefault((names[row.log_id], row.workload), []).append(parse(row.body, WorkloadStartedBody))
    return found
