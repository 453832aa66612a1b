"""Totals of a year of 100,000 GPUs, page by page, on SQLite and on PostgreSQL. Bar: p95 under 100 ms (operations).

The sums of a year are written straight into their tables, encoded as the keeper encodes them: 12,500 hosts of 8
GPUs, 12 organisations with two sites each, and workloads that start anew every day, in sums of months and of days,
and in sums of hours for the newest month (only spans of up to 31 days are asked for by the hour). Beside them stand
every host's log with its state, inventory and chips, a day of usage rows of 250 hosts, and one second of uploads
(208 segments) that no pass has seen yet: each page adds those by itself. Then every page is what the API computes,
in a snapshot of its own, with what is missing up to now of all hosts; the cache in front of it is not used.

Limit: one indexed read, a row by its key, through the same connection pool. Wall times, so a busy machine shows.

KEYTURN_BENCH_GPUS and KEYTURN_BENCH_WORKLOADS make it smaller. Durability: SQLite WAL, synchronous=FULL; PostgreSQL
with fsync off, which reads don't see.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from msgspec import structs
from sqlalchemy import Connection, Engine, insert, select, text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _host import Host
from _report import report_below

from keyturn_protocol.canonical import encode, encode_record
from keyturn_protocol.chips import chip_table
from keyturn_protocol.entry_usage import FIELDS
from keyturn_protocol.ids import GAP, UNATTRIBUTED, LogName, NodeId
from keyturn_protocol.leaves import NodeCheckpointBody
from keyturn_protocol.receive import Accepted, decide, new_head
from keyturn_protocol.segment import parse_segment
from keyturn_verifier import translog
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.db.hours import pack_hours
from keyturn_verifier.db.rollup_tables import rollup_cell, rollup_chip, rollup_place, rollup_state
from keyturn_verifier.db.tables import chip_listed, inventory, log, segment, usage_hour
from keyturn_verifier.queries import Filter
from keyturn_verifier.rollup import feed, numbers
from keyturn_verifier.rollup.delta import EVERY
from keyturn_verifier.rollup.keeper import Keeper
from keyturn_verifier.rollup.parts import WIDTH, Part
from keyturn_verifier.rollup.reader import Totals
from keyturn_verifier.rollup.sources import Sources
from keyturn_verifier.rollup.spans import DAY_S, Level, span_of
from keyturn_verifier.rollup.totals import BucketKey
from keyturn_verifier.rollup.view import version_of
from tests.support.postgres import own_server
from tests.support.verifier import DEPLOYMENT, Verifier

GPUS = int(os.environ.get("KEYTURN_BENCH_GPUS", "100000"))
WORKLOADS = int(os.environ.get("KEYTURN_BENCH_WORKLOADS", "1000"))
"""That run on a day."""
CHIPS = 8
HOSTS = GPUS // CHIPS
PLACES = [(f"Organisation {n // 2}", f"site {n}") for n in range(24)]
LIVE_HOSTS, ROW_HOSTS = min(208, HOSTS), min(250, HOSTS)
RUNS, BAR_MS = 40, 100.0
DAYS = 365
NOW_S = 1_798_761_600  # 1 January 2027
FIRST_S = NOW_S - DAYS * DAY_S
SUMS = 3_600 * 10**12
"""About what a GPU does in an hour is this many FLOP, times 1,000."""


def part(chips: int, hours: int, logs: numbers.Numbers, those: numbers.Numbers, from_s: int, to_s: int) -> Part:
    """A sum as large as this many GPU-hours make it."""
    made = Part()
    made.sums = [chips * hours * SUMS] * WIDTH
    made.sums[3] = made.sums[8] = made.sums[12] = 0  # nothing is missing
    made.from_s, made.to_s = from_s, to_s
    made.dtypes, made.classes = {"bf16": chips * hours}, {"exclusive"}
    made.logs, made.chips = logs, those
    return made


def cells() -> Iterator[dict[str, object]]:
    """All stored sums."""
    each = HOSTS // len(PLACES)
    sets = [numbers.of(range(p * each + 1, (p + 1) * each + 1)) for p in range(len(PLACES))]
    chip_sets = [numbers.of(range(p * each * CHIPS, (p + 1) * each * CHIPS)) for p in range(len(PLACES))]
    per_place = max(1, WORKLOADS // len(PLACES))
    hosts = max(1, each // per_place)

    def row(level: Level, workload: str, from_s: int, place: int, made: Part) -> dict[str, object]:
        return {"level": level, "workload": workload, "from_s": from_s, "place": place, "body": made.encode()}

    def pools(level: Level, from_s: int, hours: int) -> Iterator[dict[str, object]]:
        to_s = span_of(level, from_s)[1]
        for place in range(len(PLACES)):
            made = part(each * CHIPS, hours, sets[place], chip_sets[place], from_s, to_s)
            for name in (EVERY, UNATTRIBUTED, GAP):
                yield row(level, name, from_s, place, made)

    def jobs(level: Level, from_s: int, hours: int, day: int) -> Iterator[dict[str, object]]:
        to_s = span_of(level, from_s)[1]
        for place in range(len(PLACES)):
            for job in range(per_place):
                first = place * each + job * hosts
                logs = numbers.of(range(first + 1, first + hosts + 1))
                chips = numbers.of(range(first * CHIPS, (first + hosts) * CHIPS))
                name = f"slurm:p{place}:{day:05d}-{job:04d}"
                yield row(level, name, from_s, place, part(hosts * CHIPS, hours, logs, chips, from_s, to_s))

    for day in range(DAYS):
        day_s = FIRST_S + day * DAY_S
        month_s = span_of(Level.MONTH, day_s)[0]
        if month_s == day_s:
            yield from pools(Level.MONTH, month_s, 720)
        yield from pools(Level.DAY, day_s, 24)
        yield from jobs(Level.DAY, day_s, 24, day)
        yield from jobs(Level.MONTH, month_s, 24, day)
        if day >= DAYS - 31:
            for hour_s in range(day_s, day_s + DAY_S, 3_600):
                yield from pools(Level.HOUR, hour_s, 1)
                if day == DAYS - 1:
                    yield from jobs(Level.HOUR, hour_s, 1, day)


def hosts(connection: Connection) -> list[list[str]]:
    """Every host's log, inventory and chips, after the pattern of one that is real; returns the chips of each."""
    host = Host(0, DEPLOYMENT)
    data = host.segment(60)
    accepted = decide(new_head(host.name, host.public_key), parse_segment(data), data, None)  # type: ignore[arg-type]
    assert isinstance(accepted, Accepted)
    listed = accepted.inventories[0].body.chips
    newest_us = max(covered.time_us for covered in accepted.head.fold.present)
    shift_us = (NOW_S - 30) * 1_000_000 - newest_us
    named: list[list[str]] = []
    rows: dict[Any, list[dict[str, object]]] = {log: [], inventory: [], chip_listed: []}
    for n in range(HOSTS):
        uuids = [f"GPU-{n:08x}-{chip:04x}" for chip in range(CHIPS)]
        named.append(uuids)
        name = LogName(host.name.deployment, NodeId(f"{n:032x}"), 1)
        end_us = shift_us + n % 60 * 1_000_000
        present = [
            structs.replace(c, chip=uuid, time_us=c.time_us + end_us)
            for c, uuid in zip(accepted.head.fold.present, uuids, strict=True)
        ]
        chain = structs.replace(accepted.head.chain, time_us=accepted.head.chain.time_us + end_us)
        organisation, site = PLACES[min(n // (HOSTS // len(PLACES)), len(PLACES) - 1)]
        rows[log].append(
            {
                "id": n + 1,
                "origin": name.origin,
                "node_id": name.node_id,
                "incarnation": 1,
                "public_key": host.public_key,
                "organisation": organisation,
                "site": site,
                "opened_us": 0,
                "size": accepted.head.size,
                "frontier": accepted.head.frontier.to_bytes(),
                "chain": encode_record(chain),
                "fold": encode_record(structs.replace(accepted.head.fold, present=present)),
                "receipt_s": NOW_S,
            }
        )
        chips = [structs.replace(chip, uuid=uuid) for chip, uuid in zip(listed, uuids, strict=True)]
        rows[inventory].append({"log_id": n + 1, "seq": 1, "chips": encode(chips)})
        listing = {"log_id": n + 1, "start": 0, "boot_id": "b", "mono_us": 0, "time_us": 0}
        rows[chip_listed] += [{**listing, "chip": uuid} for uuid in uuids]
    for table, some in rows.items():
        connection.execute(insert(table), some)
    return named


def usage(connection: Connection, named: list[list[str]]) -> None:
    """A day of rows of some hosts, and one second of uploads that no pass has seen."""
    field = dict.fromkeys(FIELDS, 1_000_000) | {"elapsed_mcycles": 6 * 10**9}

    def row(n: int, chip: str, hour_s: int) -> dict[str, object]:
        key = {"log_id": n + 1, "chip": chip, "hour_s": hour_s, "workload": "slurm:4711", "inventory_seq": 1}
        return {**key, "basis": 0, "time_us": 3_600_000_000, "samples": 3_600, **field}

    day = [row(n, chip, h) for n in range(ROW_HOSTS) for chip in named[n] for h in range(NOW_S - DAY_S, NOW_S, 3_600)]
    last = [row(n, chip, NOW_S - 3_600) for n in range(ROW_HOSTS, LIVE_HOSTS) for chip in named[n]]
    connection.execute(insert(usage_hour), day + last)
    connection.execute(insert(rollup_state).values(id=1, version=version_of(chip_table()), size=0, built=feed.ALL_LOGS))
    size = translog.head(connection).size
    connection.execute(text(f"UPDATE rollup_state SET size = {size}"))  # noqa: S608
    bodies = []
    for n in range(LIVE_HOSTS):
        origin = LogName(DEPLOYMENT, NodeId(f"{n:032x}"), 1).origin
        bodies.append(
            NodeCheckpointBody(
                origin=origin, start=54, size=60, root="0" * 64, segment_sha256="0" * 64, receipt_s=NOW_S
            )
        )
    keyed = {"start": 54, "end": 60, "sha256": bytes(32), "frontier": b"", "receipt": bytes(150)}
    hours = pack_hours([NOW_S - 3_600])
    connection.execute(insert(segment), [{**keyed, "log_id": n + 1, "hours": hours} for n in range(LIVE_HOSTS)])
    translog.append(connection, bodies, NOW_S * 1_000_000)


def fill(engine: Engine) -> int:
    """All of it; returns the number of stored sums."""
    count = 0
    with writing(engine) as connection:
        named = hosts(connection)
        numbered = [{"number": i, "chip": chip} for i, chip in enumerate(c for uuids in named for c in uuids)]
        connection.execute(insert(rollup_chip), numbered)
        connection.execute(
            insert(rollup_place), [{"id": i, "organisation": o, "site": s} for i, (o, s) in enumerate(PLACES)]
        )
        batch: list[dict[str, object]] = []
        for cell in cells():
            batch.append(cell)
            if len(batch) == 20_000:
                connection.execute(insert(rollup_cell), batch)
                count, batch = count + len(batch), []
        connection.execute(insert(rollup_cell), batch)
        usage(connection, named)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
    return count + len(batch)


def measure(name: str, work: Callable[[], object], **more: object) -> None:
    """p50 and p95 of many calls."""
    work()
    walls, cpu = [], time.process_time()
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        walls.append((time.perf_counter() - start) * 1_000)
    cpu_ms = (time.process_time() - cpu) * 1_000 / RUNS
    walls.sort()
    p50, p95 = walls[RUNS // 2], walls[RUNS * 95 // 100]
    report_below(name, p95, "ms (p95)", bar=BAR_MS, p50_ms=round(p50, 1), cpu_ms=round(cpu_ms, 1), **more)


def one_read(engine: Engine) -> float:
    """Milliseconds of one indexed read: the median."""
    query = select(log.c.size).where(log.c.id == HOSTS // 2)
    walls = []
    for _ in range(200):
        start = time.perf_counter()
        with reading(engine) as connection:
            connection.execute(query).scalar_one()
        walls.append((time.perf_counter() - start) * 1_000)
    return sorted(walls)[100]


def pages(totals: Totals) -> Iterator[tuple[str, Callable[[], object]]]:
    """The pages that are measured."""
    now_us = NOW_S * 1_000_000
    year = Filter(FIRST_S, NOW_S)
    last = datetime.fromtimestamp(NOW_S, UTC)
    ragged = Filter(
        int((last - timedelta(days=200, hours=5)).timestamp()), int((last - timedelta(hours=7)).timestamp())
    )
    job = f"slurm:p3:{DAYS // 2:05d}-0001"

    def workloads(wanted: Filter, limit: int = 100, after: tuple[bool, str] | None = None) -> Callable[[], object]:
        return lambda: totals.workloads(wanted, now_us, after, limit)

    def buckets(wanted: Filter, bucket: Any, by: Any, limit: int = 100, after: Any = None) -> Callable[[], object]:
        return lambda: totals.buckets(wanted, bucket, by, now_us, after, limit)

    yield "whole deployment, first 100 workloads", workloads(Filter())
    yield "whole deployment, 100 workloads from the middle", workloads(Filter(), 100, (False, job))
    yield "whole deployment, the pools", workloads(Filter(), 100, (False, "z"))
    yield "one workload, all time", workloads(Filter(workload=job))
    yield "one workload, a ragged span", workloads(Filter(ragged.from_s, ragged.to_s, job))
    yield "one pool, the year by month", buckets(Filter(FIRST_S, NOW_S, UNATTRIBUTED), "month", "workload")
    yield "the year by month and organisation, 144 lines", buckets(year, "month", "organisation", 1_000)
    yield "the year by day and organisation, 100 lines", buckets(year, "day", "organisation")
    yield "a day by hour and site, 100 lines", buckets(Filter(NOW_S - DAY_S, NOW_S), "hour", "site")
    yield "the year by day and workload, 100 lines", buckets(year, "day", "workload")
    middle = BucketKey(FIRST_S + 200 * DAY_S, FIRST_S + 201 * DAY_S, "slurm:p3")
    yield "the year by day and workload, a page in the middle", buckets(year, "day", "workload", 100, middle)
    yield "a day by node, 20 lines", buckets(Filter(NOW_S - DAY_S, NOW_S), "day", "node", 20)


def run(database: str, durability: str, verifier: Verifier) -> None:
    start = time.perf_counter()
    count = fill(verifier.engine)
    facts: dict[str, object] = {"gpus": GPUS, "sums": count, "fill_s": round(time.perf_counter() - start)}
    sources = Sources()
    totals = Totals(verifier.engine, chip_table(), sources)
    start = time.perf_counter()
    totals.workloads(Filter(), NOW_S * 1_000_000, None, 1)
    facts["first_page_after_start_s"] = round(time.perf_counter() - start, 2)
    facts["one_indexed_read_ms"] = round(one_read(verifier.engine), 3)
    for name, work in pages(totals):
        measure(f"totals, {name}, {database}", work, durability=durability, **facts)
    keeper = Keeper(verifier.engine, chip_table(), 1_000, sources)
    cpu = time.process_time()
    keeper.step()
    cpu_ms = (time.process_time() - cpu) * 1_000
    name = f"totals, one pass of the keeper, {database}"
    report_below(name, cpu_ms, "ms of CPU", bar=None, segments=LIVE_HOSTS, durability=durability, **facts)


def main() -> None:
    quiet = {"rollup_interval_ms": 10**9, "clock": lambda: NOW_S * 1_000_000}
    with tempfile.TemporaryDirectory() as folder, Verifier(Path(folder), **quiet) as verifier:  # type: ignore[arg-type]
        run("SQLite", "WAL, synchronous=FULL", verifier)
    with (
        own_server() as server,
        tempfile.TemporaryDirectory() as folder,
        Verifier(Path(folder), db=server.database, **quiet) as verifier,  # type: ignore[arg-type]
    ):
        run("PostgreSQL", "fsync=off, which reads don't see", verifier)


if __name__ == "__main__":
    main()
