"""What readers see: tokens and roles, pages, filters, totals with intervals, silence as a gap."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from keyturn_protocol.api import FindingItem, NodeLog, Page, WorkloadTotal
from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.entry_log import RetiredBody
from keyturn_protocol.usage import UsageRow
from keyturn_verifier import queries, tokens
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.patterns import IN_WORDS
from tests.support.node import START_US, Client, Reply, chip
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
        now[0] = node.time_us
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
        after.mono_us += 50_000_000
        after.genesis(previous=node.previous())
        verifier.client.post(after.segment())
        after.time_us += 7_000_000
        after.mono_us += 7_000_000
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


def _missing(verifier: Verifier) -> dict[tuple[str, str], tuple[int, int]]:
    """What verifier and auditor say is missing after the ends of logs, which is the same."""
    with reading(verifier.engine) as connection:
        gaps = queries.missing(connection, verifier.clock())
    out = verifier.export(verifier.state.parent / f"bundle-{verifier.count('tree_leaf')}")
    report = verifier.audit(out)
    assert report.outcome == "pass"
    inside = sum(total.gap_us for total in report.workloads if total.workload == "gap")
    assert inside == sum(gap.to_us - gap.from_us for gap in gaps)
    return {(gap.log, gap.chip): (gap.from_us, gap.to_us) for gap in gaps}


def test_a_chip_that_no_later_incarnation_lists_stays_silent(tmp_path: Path) -> None:
    now = START_US + DAY_US
    with Verifier(tmp_path, clock=lambda: now) as verifier:
        node = verifier.enrolled(chips=3, usage=6)
        after = node.next_incarnation()
        after.time_us += 50_000_000
        after.mono_us += 50_000_000
        taken = after.time_us
        after.genesis(previous=node.previous())
        after.inventory(1)
        assert verifier.client.post(after.segment()).status == 200
        assert _missing(verifier) == {
            (node.origin, chip(0).uuid): (node.time_us, taken),
            (node.origin, chip(1).uuid): (node.time_us, now),
            (node.origin, chip(2).uuid): (node.time_us, now),
            (after.origin, chip(0).uuid): (taken, now),
        }
        third = after.next_incarnation()
        third.time_us += 9_000_000
        third.mono_us += 9_000_000
        third.genesis(previous=after.previous())
        third.append(RetiredBody(chips=[chip(1).uuid], reason="sold"))
        assert verifier.client.post(third.segment()).status == 200
        assert _missing(verifier)[node.origin, chip(1).uuid] == (node.time_us, third.time_us)
        third.time_us += 1
        third.mono_us += 1
        third.append(RetiredBody(chips=None, reason="scrapped"))
        assert verifier.client.post(third.segment()).status == 200
        missing = _missing(verifier)
        assert missing[node.origin, chip(2).uuid] == (node.time_us, third.time_us)
        assert missing[after.origin, chip(0).uuid] == (taken, third.time_us)


def test_a_replay_takes_over_nothing(tmp_path: Path) -> None:
    now = START_US + DAY_US
    with Verifier(tmp_path, clock=lambda: now) as verifier:
        node = verifier.enrolled(usage=6)
        after = node.next_incarnation()
        after.time_us = 1_000_000
        after.genesis(source="replay", previous=node.previous())
        after.inventory()
        assert verifier.client.post(after.segment()).status == 200
        assert _missing(verifier) == {(node.origin, chip(0).uuid): (node.time_us, now)}


@pytest.mark.parametrize("boot", ["same", "new"])
def test_a_clock_that_was_set_back_hides_no_time_between_incarnations(tmp_path: Path, boot: str) -> None:
    now = START_US + DAY_US
    with Verifier(tmp_path, clock=lambda: now) as verifier:
        node = verifier.enrolled(usage=6)
        after = node.next_incarnation()
        if boot == "same":
            after.mono_us += 7_200_000_000
        else:
            after.boot_id, after.mono_us = "0c6b8a1e-3f57-4d2a-9b1c-000000000000", 7_200_000_000
        after.time_us -= 60_000_000
        after.genesis(previous=node.previous())
        after.inventory()
        assert verifier.client.post(after.segment()).status == 200
        assert _missing(verifier)[node.origin, chip(0).uuid] == (node.time_us, node.time_us + 7_200_000_000)


def test_a_clock_that_is_ahead_hides_no_silence(tmp_path: Path) -> None:
    now = [START_US + 1_000_000_000]
    with Verifier(tmp_path, clock=lambda: now[0]) as verifier:
        node = verifier.joined()
        node.time_us += DAY_US
        verifier.client.post(node.first(usage=6))
        received = (now[0] // 1_000_000 + 1) * 1_000_000
        now[0] += DAY_US // 2
        assert _missing(verifier) == {(node.origin, chip(0).uuid): (received, now[0])}
        found = every(verifier.client, "/v1/findings", verifier.reader_token(), FindingItem, 100)
    assert [f.origin for f in found if f.code == "clock_ahead"] == [node.origin]


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


def test_findings_go_on_behind_the_last_one_though_others_came_before_it(verifier: Verifier) -> None:
    """What a replica computes for the next page, or this one for a page that it has forgotten."""
    nodes = sorted((verifier.enrolled(usage=1) for _ in range(3)), key=lambda node: node.origin)
    token = verifier.reader_token()
    first = page(verifier.client.get("/v1/findings?limit=2", token), FindingItem)
    assert [(f.code, f.origin) for f in first.items] == [("gap", node.origin) for node in nodes[:2]]
    twin = nodes[0].copy()
    verifier.client.post(nodes[0].segment(nodes[0].usage(1)))
    verifier.client.post(twin.segment(twin.shutdown()))
    verifier.service.computed._kept.clear()

    second = page(verifier.client.get(f"/v1/findings?limit=2&after={first.next}", token), FindingItem)

    assert [(f.code, f.origin) for f in second.items] == [("gap", nodes[2].origin)]


def test_nothing_leads_elsewhere(verifier: Verifier) -> None:
    """A redirect would name this server as it is seen from its proxy: without TLS."""
    answer = verifier.client.get("/v1/nodes/", verifier.reader_token())
    assert (answer.status, answer.code) == (404, "not_found")


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
        "from=7200&to=3600",
    ],
)
def test_queries_that_make_no_sense(verifier: Verifier, query: str) -> None:
    token = verifier.reader_token()
    for path in ("/v1/usage", "/v1/workloads"):
        answer = verifier.client.get(f"{path}?{query}", token)
        assert (answer.status, answer.code) == (400, "bad_request"), path


@pytest.mark.parametrize(
    ("target", "detail"),
    [
        ("usage?form=3600", "query.form: no such parameter (known: after, from, limit, to, workload)"),
        ("usage?From=3600", "query.From: no such parameter (known: after, from, limit, to, workload)"),
        ("runs?status=pending", "query.status: no such parameter (known: after, limit, state)"),
        ("leases?" + "x" * 900, f"query.{'x' * 64}: no such parameter (known: after, limit, run)"),
        (f"logs/{'0' * 32}/1?limit=1", "query.limit: no such parameter (known: none)"),
        ("authority?wait=1", "query.wait: no such parameter (known: after, wait_s)"),
        ("bundle?case=7&cases=7", "query.cases: no such parameter (known: case, format)"),
        ("usage?workload=a&workload=b", "query.workload: must be given once"),
        ("usage?from=7200&to=3600", "query.to: must not be before from, 7200 (got 3600)"),
    ],
)
def test_a_filter_that_there_is_not_is_no_filter_left_out(verifier: Verifier, target: str, detail: str) -> None:
    answer = verifier.client.get(f"/v1/{target}", verifier.reader_token())
    assert (answer.status, answer.problem.detail) == (400, detail)


@pytest.mark.parametrize(
    ("target", "detail"),
    [
        ("nodes/zz", "path.node: must be 32 hex digits, in lower case (got 'zz')"),
        ("leases?run=" + "A" * 64, f"query.run: must be 64 hex digits, in lower case (got '{'A' * 64}')"),
        ("usage?workload=a%20b%C3%A9", "query.workload: must be ASCII characters without spaces (got 'a b\\xe9')"),
        ("usage?limit=0", "query.limit: Input should be greater than or equal to 1"),
    ],
)
def test_what_was_expected_is_said_in_words(verifier: Verifier, target: str, detail: str) -> None:
    answer = verifier.client.get(f"/v1/{target}", verifier.reader_token())
    assert (answer.status, answer.problem.detail) == (400, detail)


def test_every_pattern_of_a_parameter_has_words(verifier: Verifier) -> None:
    document = verifier.client.get("/openapi.json").body.decode()
    paths = msgspec.json.decode(document)["paths"]
    schemas = [each["schema"] for ways in paths.values() for way in ways.values() for each in way.get("parameters", [])]
    patterns = {
        part["pattern"] for schema in schemas for part in (schema, *schema.get("anyOf", [])) if "pattern" in part
    }
    assert patterns == set(IN_WORDS)


def test_an_empty_span_is_an_empty_list(verifier: Verifier) -> None:
    verifier.enrolled(usage=2)
    token = verifier.reader_token()
    for path in ("usage?", "workloads?", "usage/buckets?bucket=hour&by=site&"):
        assert page(verifier.client.get(f"/v1/{path}from=3600&to=3600", token), Any).items == [], path


def test_probes_and_tiles_may_be_asked_for_with_more(verifier: Verifier) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/log/checkpoint", "/openapi.json"):
        assert verifier.client.get(f"{path}?t=1").status == verifier.client.get(path).status, path


def test_pages_are_canonical(verifier: Verifier) -> None:
    verifier.enrolled(usage=2)
    token = verifier.reader_token()
    for path in LISTS:
        body = verifier.client.get(path, token).body
        assert encode(msgspec.json.decode(body)) == body
