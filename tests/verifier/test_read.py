"""What readers see: tokens and roles, pages, filters, totals with intervals, silence as a gap."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from keyturn_protocol.api import FindingItem, NodeLog, Page, WorkloadTotal
from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.usage import UsageRow
from keyturn_verifier import tokens
from keyturn_verifier.db.engine import writing
from tests.support.node import START_US, Client, Reply
from tests.support.verifier import DAY_US, Verifier

LISTS = ["/v1/nodes", "/v1/workloads", "/v1/usage", "/v1/findings"]


def page(answer: Reply, kind: Any) -> Any:
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "application/json"
    return decode(answer.body, Page[kind], limit=1 << 24)


def every(client: Client, path: str, token: str, kind: Any, limit: int) -> list[Any]:
    """All items, by following the pages."""
    items: list[Any] = []
    after = ""
    while True:
        part = page(client.get(f"{path}{'&' if '?' in path else '?'}limit={limit}{after}", token), kind)
        assert len(part.items) <= limit
        items += part.items
        if part.next is None:
            return items
        after = f"&after={part.next}"


@pytest.mark.parametrize("path", LISTS)
def test_without_a_good_token_nothing_is_shown(verifier: Verifier, path: str) -> None:
    join = verifier.join_token()
    for token in (None, "", "nonsense", join):
        answer = verifier.client.get(path, token)
        assert (answer.status, answer.code) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert verifier.client.request("GET", path, None, authorization="Basic eDp5").status == 401


def test_expired_revoked_and_foreign_roles(tmp_path: Path) -> None:
    now = [START_US]
    with Verifier(tmp_path, clock=lambda: now[0]) as verifier:
        token, revoked, odd = (verifier.reader_token() for _ in range(3))
        with writing(verifier.engine) as connection:
            tokens.revoke(connection, "reader-2", now[0])
            connection.execute(text("UPDATE reader_token SET role = 'approver' WHERE id = 3"))
        assert verifier.client.get("/v1/nodes", token).status == 200
        assert verifier.client.get("/v1/nodes", revoked).code == "unauthorized"
        assert (verifier.client.get("/v1/nodes", odd).status, verifier.client.get("/v1/nodes", odd).code) == (
            403,
            "forbidden",
        )
        now[0] += DAY_US
        assert verifier.client.get("/v1/nodes", token).code == "unauthorized"


def test_nodes(verifier: Verifier) -> None:
    nodes = [verifier.enrolled(chips=2, usage=1) for _ in range(3)]
    later = nodes[0].next_incarnation()
    verifier.client.post(later.segment(later.genesis(previous=nodes[0].previous())))
    twin = nodes[1].copy()
    verifier.client.post(nodes[1].segment(nodes[1].usage(1)))
    verifier.client.post(twin.segment(twin.shutdown()))
    token = verifier.reader_token("operator")

    items = every(verifier.client, "/v1/nodes", token, NodeLog, 2)

    assert len(items) == 4
    assert items == sorted(items, key=lambda n: (n.node_id, n.incarnation))
    by_origin = {item.origin: item for item in items}
    frozen = by_origin[nodes[1].origin]
    assert (frozen.state, frozen.reason, frozen.size, frozen.chips) == ("frozen", "fork", 4, 2)
    assert frozen.last_receipt_s is not None
    assert by_origin[nodes[2].origin].vkey == str(nodes[2].vkey)
    assert by_origin[nodes[2].origin].last_entry_us == nodes[2].time_us


def test_usage_rows_page_by_page_are_all_rows(verifier: Verifier) -> None:
    for _ in range(2):
        node = verifier.enrolled(chips=3)
        for _ in range(4):
            node.usage(30, span_us=60_000_000)
            assert verifier.client.post(node.segment()).status == 200
    token = verifier.reader_token()

    whole = every(verifier.client, "/v1/usage", token, UsageRow, 1_000)

    assert len(whole) == verifier.count("usage_hour") > 10
    for limit in (1, 7):
        assert every(verifier.client, "/v1/usage", token, UsageRow, limit) == whole
    hour = whole[0].hour_s + 3_600
    part = every(verifier.client, f"/v1/usage?from={hour}&to={hour + 3_600}&workload=slurm:1", token, UsageRow, 4)
    assert part == [row for row in whole if row.hour_s == hour]


def test_totals_have_intervals_and_count_silence(tmp_path: Path) -> None:
    now = [START_US]
    with Verifier(tmp_path, clock=lambda: now[0]) as verifier:
        node = verifier.joined()
        node.genesis()
        node.inventory(2)
        node.started("slurm:1")
        node.usage(60)
        verifier.client.post(node.segment())
        now[0] = node.time_us + 100_000_000
        totals = every(verifier.client, "/v1/workloads", verifier.reader_token(), WorkloadTotal, 1_000)

    work, gap = totals
    assert (work.workload, work.class_, work.declared_dtype, work.chips) == ("slurm:1", "exclusive", "bf16", 2)
    assert work.time_us == 2 * 600_000_000
    assert 0 < int(work.undeclared.low) < int(work.undeclared.best) < int(work.undeclared.high)
    assert work.declared is not None
    assert (gap.workload, gap.gap_us) == ("gap", 2 * 100_000_000)
    assert int(gap.undeclared.low) == 0 < int(gap.undeclared.high)


def test_a_replayed_log_is_not_silent_after_its_end(tmp_path: Path) -> None:
    with Verifier(tmp_path, clock=lambda: START_US + DAY_US) as verifier:
        node = verifier.joined()
        verifier.client.post(node.first(usage=6, source="replay"))
        totals = every(verifier.client, "/v1/workloads", verifier.reader_token(), WorkloadTotal, 10)
    assert [total.workload for total in totals] == ["slurm:1"]


def test_between_incarnations_time_is_missing_up_to_the_next_inventory(tmp_path: Path) -> None:
    with Verifier(tmp_path, clock=lambda: START_US + DAY_US) as verifier:
        node = verifier.enrolled(usage=6)
        after = node.next_incarnation()
        after.time_us += 50_000_000
        after.genesis(previous=node.previous())
        verifier.client.post(after.segment())
        after.time_us += 7_000_000
        after.inventory()
        verifier.client.post(after.segment())
        after.usage(1)
        verifier.client.post(after.segment())
        found = every(verifier.client, "/v1/findings", verifier.reader_token(), FindingItem, 100)
    gaps = {f.origin: (f.from_us, f.to_us) for f in found if f.code == "gap"}
    assert gaps == {
        node.origin: (node.time_us, node.time_us + 57_000_000),
        after.origin: (after.time_us, START_US + DAY_US),
    }


def test_gaps_are_cut_to_the_hours_that_are_asked_for(tmp_path: Path) -> None:
    with Verifier(tmp_path, clock=lambda: START_US + DAY_US) as verifier:
        verifier.enrolled(usage=1)
        hour = START_US // 3_600_000_000 * 3_600 + 7_200
        path = f"/v1/workloads?from={hour}&to={hour + 3_600}"
        (gap,) = every(verifier.client, path, verifier.reader_token(), WorkloadTotal, 10)
    assert (gap.workload, gap.gap_us, gap.from_s, gap.to_s) == ("gap", 3_600_000_000, hour, hour + 3_600)


def test_findings_are_ranked_and_paged(verifier: Verifier) -> None:
    node = verifier.enrolled(usage=1)
    twin = node.copy()
    verifier.client.post(node.segment(node.usage(1)))
    verifier.client.post(twin.segment(twin.shutdown()))
    verifier.enrolled(usage=1)
    token = verifier.reader_token()

    found = every(verifier.client, "/v1/findings", token, FindingItem, 1_000)

    assert [f.code for f in found] == ["fork", "gap", "gap"]
    assert len(every(verifier.client, "/v1/findings", token, FindingItem, 1)) == 3


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "after=x",
        "after=W10=",
        "from=1",
        "to=-3600",
        "from=1e3",
        "after=" + "A" * 3_000,
    ],
)
def test_queries_that_make_no_sense(verifier: Verifier, query: str) -> None:
    token = verifier.reader_token()
    for path in ("/v1/usage", "/v1/workloads"):
        answer = verifier.client.get(f"{path}?{query}", token)
        assert (answer.status, answer.code) == (400, "bad_request"), path


def test_pages_are_canonical(verifier: Verifier) -> None:
    verifier.enrolled(usage=2)
    token = verifier.reader_token()
    for path in LISTS:
        body = verifier.client.get(path, token).body
        assert encode(msgspec.json.decode(body)) == body
