"""Usage by hours, days and months: the parts add up to the whole, whatever they are grouped by."""

import base64
from pathlib import Path
from typing import Any

import pytest

from keyturn_protocol.api import Page, WorkloadTotal
from keyturn_protocol.api_read import UsageBucket
from keyturn_protocol.canonical import decode
from keyturn_protocol.usage import UsageRow
from keyturn_verifier.rollup.spans import span_of
from keyturn_verifier.rollup.totals import LEVELS
from keyturn_verifier.routes.pages import AHEAD_US
from tests.support.node import START_US
from tests.support.verifier import DAY_US, Database, Verifier
from tests.verifier.test_read import every

FROM = START_US // DAY_US * 86_400
SPAN = f"&from={FROM}&to={FROM + 30 * 86_400}"


def load(verifier: Verifier) -> None:
    for seed in (1, 2):
        node = verifier.joined(seed=seed)
        node.genesis()
        node.inventory(2)
        node.started("slurm:1")
        for _ in range(4):
            node.usage(20, span_us=110_000_000)
            node.usage(3, workload=None)
        assert verifier.client.post(node.segment()).status == 200


def sums(items: list[Any]) -> tuple[int, int, int, int]:
    return (
        sum(i.time_us for i in items),
        sum(i.gap_us for i in items),
        sum(int(i.undeclared.low) for i in items),
        sum(int(i.undeclared.best) for i in items),
    )


@pytest.mark.parametrize("by", ["workload", "organisation", "site", "node", "chip"])
@pytest.mark.parametrize("bucket", ["hour", "day", "month"])
def test_the_buckets_add_up_to_the_totals(tmp_path: Path, database: Database, bucket: str, by: str) -> None:
    with Verifier(tmp_path, db=database, clock=lambda: START_US + 3 * DAY_US) as verifier:
        load(verifier)
        token = verifier.reader_token()
        whole = every(verifier.client, "/v1/workloads", token, WorkloadTotal, 100)
        parts = every(verifier.client, f"/v1/usage/buckets?bucket={bucket}&by={by}{SPAN}", token, UsageBucket, 7)

    assert sums(parts) == sums(whole)
    assert parts == sorted(parts, key=lambda p: (p.from_s, p.to_s, p.key))
    assert len({(p.from_s, p.key) for p in parts}) == len(parts)
    groups = {"workload": 3, "organisation": 1, "site": 1, "node": 2, "chip": len({p.key for p in parts})}
    assert len({p.key for p in parts}) == groups[by]
    assert all(p.to_s - p.from_s == {"hour": 3_600, "day": 86_400}.get(bucket, p.to_s - p.from_s) for p in parts)


def test_one_workload_alone(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database, clock=lambda: START_US + DAY_US) as verifier:
        load(verifier)
        path = f"/v1/usage/buckets?bucket=day&by=node&workload=slurm:1{SPAN}"
        items = every(verifier.client, path, verifier.reader_token(), UsageBucket, 100)
        rows = every(verifier.client, "/v1/usage?workload=slurm:1", verifier.reader_token(), UsageRow, 100)
    assert {item.gap_us for item in items} == {0}
    assert sum(item.time_us for item in items) == sum(row.time_us for row in rows) > 0


@pytest.mark.parametrize(
    "query",
    [
        "bucket=hour&by=site",
        f"bucket=hour&by=site&from=0&to={32 * 86_400}",
        f"bucket=day&by=site&from=0&to={367 * 86_400}",
        "bucket=day&by=site&from=0",
        "bucket=week&by=site",
        "bucket=day&by=colour",
        "bucket=month",
        "bucket=month&by=site&from=253402300800",
        "bucket=month&by=site&to=253402304400",
    ],
)
def test_spans_and_groups_that_make_no_sense(verifier: Verifier, query: str) -> None:
    answer = verifier.client.get(f"/v1/usage/buckets?{query}", verifier.reader_token())
    assert (answer.status, answer.code) == (400, "bad_request")


@pytest.mark.parametrize(
    ("bucket", "time_s", "span"),
    [
        ("hour", 7_199, (3_600, 7_200)),
        ("day", 86_400, (86_400, 172_800)),
        ("month", 1_709_164_800, (1_706_745_600, 1_709_251_200)),  # 29 February 2024
        ("month", 1_735_603_200, (1_733_011_200, 1_735_689_600)),  # 31 December 2024
    ],
)
def test_spans(bucket: Any, time_s: int, span: tuple[int, int]) -> None:
    assert span_of(LEVELS[bucket], time_s) == span


def test_a_page_is_computed_once(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database, clock=lambda: START_US + DAY_US) as verifier:
        load(verifier)
        token = verifier.reader_token()
        whole = every(verifier.client, "/v1/workloads", token, WorkloadTotal, 100)
        assert every(verifier.client, "/v1/workloads", token, WorkloadTotal, 100) == whole
        assert verifier.service.computed.made == 1
        assert every(verifier.client, "/v1/workloads", token, WorkloadTotal, 1) == whole
        made = verifier.service.computed.made
        assert made == 1 + len(whole) + 1  # the last page is full too, and the one after it empty
        node = verifier.enrolled(usage=3)
        assert node.size
        assert every(verifier.client, "/v1/workloads", token, WorkloadTotal, 100) != whole
        assert verifier.service.computed.made == made + 1


def test_a_cursor_names_no_moment_to_come(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database, clock=lambda: START_US) as verifier:
        token = verifier.reader_token()
        later = START_US + AHEAD_US + 1
        for text in (f'[{later},[false,"a"]]', '[-1,[false,"a"]]', "[0,[]]", '[0,["a",false]]', "[0]"):
            after = base64.urlsafe_b64encode(text.encode()).decode()
            assert verifier.client.get(f"/v1/workloads?after={after}", token).code == "bad_request"
        for text in (f'[0,{later},""]', '[-1,5,""]', '[0,-1,""]', "[0,5]", "[0]"):
            after = base64.urlsafe_b64encode(text.encode()).decode()
            assert verifier.client.get(f"/v1/findings?after={after}", token).code == "bad_request"


def test_a_cursor_of_a_replica_whose_clock_is_ahead_is_taken(tmp_path: Path, database: Database) -> None:
    now = [START_US + DAY_US]
    with Verifier(tmp_path, db=database, clock=lambda: now[0]) as verifier:
        load(verifier)
        token = verifier.reader_token()
        for path in ("/v1/workloads", "/v1/findings"):
            first: Page[Any] = decode(verifier.client.get(f"{path}?limit=1", token).body, Page[Any])
            now[0] -= 2_000_000
            assert verifier.client.get(f"{path}?limit=1&after={first.next}", token).status == 200


@pytest.mark.parametrize("path", ["nodes", "usage", "workloads", "usage/buckets?bucket=month&by=site"])
def test_what_no_database_holds_is_the_clients_mistake(tmp_path: Path, database: Database, path: str) -> None:
    """PostgreSQL refuses a NUL in text; that isn't a database that is away, to be asked again and again."""
    nul = (
        base64.urlsafe_b64encode(rb'["\u0000",1]').decode(),
        base64.urlsafe_b64encode(rb'[1,"\u0000",0,"\u0000",0,0]').decode(),
    )
    with Verifier(tmp_path, db=database) as verifier:
        token = verifier.reader_token()
        for query in ("workload=%00", *(f"after={after}" for after in nul)):
            if path == "nodes" and query == "workload=%00":
                continue
            answer = verifier.client.get(f"/v1/{path}{'&' if '?' in path else '?'}{query}", token)
            assert (answer.status, answer.code) == (400, "bad_request")
