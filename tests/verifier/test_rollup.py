"""Sums kept for reading: at any moment equal to what all rows add up to, whatever came in which order."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection

from keyturn_protocol.chips import chip_table
from keyturn_protocol.entry_log import RetiredBody
from keyturn_protocol.entry_usage import Share
from keyturn_protocol.ids import GAP, UNATTRIBUTED
from keyturn_verifier.db.engine import reading
from keyturn_verifier.queries import EVERYTHING, Filter
from keyturn_verifier.rollup import apart, totals
from keyturn_verifier.rollup.keeper import Keeper
from keyturn_verifier.rollup.silence import Silence
from keyturn_verifier.rollup.sources import Sources
from keyturn_verifier.rollup.view import View
from tests.faults.table import LONG
from tests.support import naive_totals
from tests.support.node import HOUR_US, START_US, Node, chip
from tests.support.verifier import DAY_US, Database, Verifier

HOUR_S = 3_600
SEEDS, ACTS = (8, 120) if LONG else (2, 20)
NAMES = ["NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "Nobody's GPU"]
WORKLOADS = [None, "slurm:1", "slurm:2", "user:1000"]


class Reader:
    """A process that reads, with what it keeps in memory."""

    def __init__(self, verifier: Verifier) -> None:
        self.engine = verifier.engine
        self.sources = Sources()
        self.silence = Silence(self.sources, chip_table())

    def equal(self, wanted: Filter, until_us: int, random: Random) -> None:
        """Pages of every kind, put together, against the slow way; in one snapshot."""
        table = chip_table()
        few = random.choice([1, 2, 3])
        with reading(self.engine) as connection:
            view = View(connection, self.sources, self.silence, table)
            expected: list[Any] = naive_totals.workloads(connection, wanted, until_us, table)
            assert list(self.workloads(view, wanted, until_us, few)) == expected
            bucket = random.choice(["hour", "day", "month"])
            by = random.choice(["workload", "organisation", "site", "node", "chip"])
            if bucket == "hour" and (wanted.from_s is None or wanted.to_s is None):
                bucket = "month"
            expected = naive_totals.buckets(connection, wanted, bucket, by, until_us, table)  # type: ignore[arg-type]
            limit = few if len(expected) < 30 else 1_000
            assert list(self.buckets(connection, view, wanted, bucket, by, until_us, limit)) == expected

    def workloads(self, view: View, wanted: Filter, until_us: int, limit: int) -> Iterator[Any]:
        after = None
        while page := totals.workloads(view, wanted, until_us, after, limit):
            yield from page
            after = (page[-1].workload in (GAP, UNATTRIBUTED), page[-1].workload)

    def buckets(
        self, connection: Connection, view: View, wanted: Filter, bucket: Any, by: Any, until_us: int, limit: int
    ) -> Iterator[Any]:
        after: totals.BucketKey | None = None
        while True:
            if by in ("node", "chip"):
                level = totals.LEVELS[bucket]
                args = (connection, view, self.sources, chip_table(), wanted, level, by, until_us, after, limit)
                page, after = apart.buckets(*args)
            else:
                page = totals.buckets(view, wanted, bucket, by, until_us, after, limit)
                after = totals.BucketKey(page[-1].from_s, page[-1].to_s, page[-1].key) if page else None
            yield from page
            if after is None:
                return


class Fleet:
    """Hosts that behave badly, and segments that are held back."""

    def __init__(self, verifier: Verifier, random: Random) -> None:
        self.verifier, self.random = verifier, random
        self.nodes: list[Node] = []
        self.newest_us = START_US
        self.first: dict[str, int] = {}
        """The first chip that a node has now."""

    def act(self) -> None:
        if not self.nodes or (len(self.nodes) < 5 and self.random.random() < 0.1):
            return self.begin()
        node = self.random.choice(self.nodes)
        for _ in range(self.random.randint(1, 3)):
            self.something(node)
        self.send(node)

    def begin(self) -> None:
        random, node = self.random, Node.new(seed=self.random.randrange(2**32))
        token = self.verifier.join_token(organisation=random.choice(["Acme", "Beta"]))
        assert self.verifier.client.join(node, token).status == 200
        node.time_us += random.randrange(3 * DAY_US)
        node.genesis(source=random.choice(["nvml", "nvml", "replay"]))
        self.inventory(node)
        self.nodes.append(node)
        self.send(node)

    def inventory(self, node: Node) -> None:
        first = self.random.randrange(4)
        node.inventory(self.random.randint(1, 3), first=first, name=self.random.choice(NAMES))
        self.first[node.name.node_id] = first

    def something(self, node: Node) -> None:
        random = self.random
        match random.randrange(12):
            case 0 | 1 | 2 | 3 | 4:
                null = random.choice([(), ("energy_mj",), ("tensor_mcycles", "hmma_mcycles"), ("busy_us", "energy_mj")])
                span = random.choice([10_000_000, 600_000_000, HOUR_US])
                node.usage(random.randint(1, 6), workload=random.choice(WORKLOADS), span_us=span, null=null)
            case 5:
                shares = [
                    Share(chip=0, id="slurm:1", class_="shared", share_ppm=300_001),
                    Share(chip=0, id="slurm:2", class_="shared", share_ppm=200_000),
                ]
                node.usage(2, span_us=random.randint(1, HOUR_US), shares=shares)
            case 6 | 7:
                dtype = random.choice([None, "bf16", "fp8", "fp64", "int8", "nonsense"])
                node.started(random.choice(["slurm:1", "slurm:2", "user:1000"]), dtype=dtype)
            case 8:
                node.heartbeat(random.choice([1, 10_000_000, HOUR_US, 30 * HOUR_US, 40 * DAY_US]))
            case 9:
                node.time_us += random.choice([-2 * DAY_US, -HOUR_US, HOUR_US, 50 * DAY_US])
            case 10:
                self.inventory(node)
            case 11 if random.random() < 0.5:
                node.append(RetiredBody(chips=[chip(self.first[node.name.node_id]).uuid], reason="sold"))
            case _:
                self.reboot(node)

    def reboot(self, node: Node) -> None:
        node.boots, node.mono_us = node.boots + 1, 60_000_000
        node.boot_id = f"{node.boots:08x}-3f57-4d2a-9b1c-5e8f7a6d4c3b"
        node.time_us += self.random.choice([HOUR_US // 60, HOUR_US])
        if self.random.random() < 0.3:
            later = node.next_incarnation()
            later.genesis(previous=node.previous())
            self.nodes[self.nodes.index(node)] = later
            self.inventory(later)
            self.send(later)
        else:
            self.inventory(node)

    def send(self, node: Node) -> None:
        if node.sent < node.size:
            answer = self.verifier.client.post(node.segment())
            assert answer.status == 200, answer
        self.newest_us = max(self.newest_us, node.time_us)


def filters(random: Random) -> Iterator[Filter]:
    yield EVERYTHING
    first = START_US // 1_000_000 // HOUR_S * HOUR_S
    for _ in range(3):
        from_s = first + random.choice([-400, -1, 0, 5, 100]) * HOUR_S
        to_s = from_s + random.choice([1, 5, 24, 31 * 24, 31 * 24]) * HOUR_S
        which = random.choice([None, None, "slurm:1", GAP, UNATTRIBUTED, "", "no:such"])
        if random.random() < 0.2:
            yield Filter(from_s, None, which)
        elif random.random() < 0.2:
            yield Filter(None, to_s, which)
        else:
            yield Filter(from_s, to_s, which)


@pytest.mark.timeout(1_800 if LONG else 300)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_sums_are_those_of_all_rows_at_any_moment(
    tmp_path: Path, database: Database, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(seed)
    clock = [START_US]
    monkeypatch.setattr("keyturn_verifier.rollup.keeper.LEAVES", 3)
    monkeypatch.setattr("keyturn_verifier.rollup.keeper.LOGS", 2)
    with Verifier(tmp_path, db=database, clock=lambda: clock[0], rollup_interval_ms=10**9) as verifier:
        fleet = Fleet(verifier, random)
        keepers = [Keeper(verifier.engine, chip_table(), 1, Sources()) for _ in range(2)]
        readers = [Reader(verifier) for _ in range(2)]
        for _ in range(ACTS):
            fleet.act()
            clock[0] = max(clock[0], fleet.newest_us - random.choice([0, 0, DAY_US]))
            for _ in range(random.choice([0, 1, 1, 5])):
                random.choice(keepers).step()
            if random.random() < 0.3:
                until_us = clock[0] + random.choice([0, 1, HOUR_US, 70 * DAY_US])
                for wanted in filters(random):
                    random.choice(readers).equal(wanted, until_us, random)
        while keepers[0].step():
            pass
        for wanted in filters(random):
            Reader(verifier).equal(wanted, clock[0], random)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_pool_that_holds_nothing_does_not_end_the_list(verifier: Verifier, limit: int) -> None:
    node = verifier.enrolled()
    for workload in ("slurm:1", None):
        node.usage(1, workload=workload)
    assert verifier.client.post(node.range(node.sent, node.size)).status == 200
    reader = Reader(verifier)
    with reading(verifier.engine) as connection:
        view = View(connection, reader.sources, reader.silence, chip_table())
        listed = [one.workload for one in reader.workloads(view, EVERYTHING, node.time_us, limit)]
    assert listed == ["slurm:1", UNATTRIBUTED]
