"""Findings as lines: open once per node and code, closed with a reason, opened again, explained by maintenance."""

import json
from pathlib import Path
from typing import Any

import pytest

from keyturn_protocol.api import FindingItem
from keyturn_protocol.api_read import CloseRequest, Closing, FindingGroup, Maintenance, MaintenanceRequest
from keyturn_protocol.canonical import Record, decode, encode_record
from keyturn_protocol.findings import FindingCode, finding
from keyturn_verifier import review
from tests.support.node import START_US, Node, Reply
from tests.support.verifier import DAY_US, Database, Verifier
from tests.verifier.test_read import every

HOUR_US = 3_600_000_000
GROUPS = "/v1/findings/groups"


def post(verifier: Verifier, path: str, body: Record | bytes, role: Any = "operator") -> Reply:
    data = body if isinstance(body, bytes) else encode_record(body)
    token = verifier.reader_token(role)
    return verifier.client.request("POST", path, data, authorization=f"Bearer {token}", content_type="application/json")


def close(verifier: Verifier, node: Node, code: str, reason: str = "replaced the power supply") -> Reply:
    request = CloseRequest(node_id=node.name.node_id, code=FindingCode(code), reason=reason)
    return post(verifier, "/v1/findings/close", request)


def gaps(node: Node, count: int, lost_us: int = 60_000_000) -> None:
    """So many separate gaps in a log."""
    for _ in range(count):
        node.time_us += lost_us
        node.mono_us += lost_us
        node.usage(1)


def groups(verifier: Verifier, query: str = "") -> list[FindingGroup]:
    return every(verifier.client, GROUPS + query, verifier.reader_token(), FindingGroup, 100)


def test_a_line_for_each_node_and_code(tmp_path: Path, database: Database) -> None:
    now = [START_US]
    with Verifier(tmp_path, db=database, clock=lambda: now[0]) as verifier:
        nodes = [verifier.enrolled(usage=1, at=at) for at in range(2)]
        for node in nodes:
            gaps(node, 5)
            now[0] = node.time_us
            verifier.client.post(node.segment())
        now[0] = max(node.time_us for node in nodes)
        lines = groups(verifier)
        single = every(verifier.client, "/v1/findings", verifier.reader_token(), FindingItem, 100)
    assert [(line.node_id, line.code, line.count, line.state) for line in lines] == [
        (node_id, "gap", 5, "open") for node_id in sorted(n.name.node_id for n in nodes)
    ]
    assert len(single) == 10


def test_closed_with_a_reason_until_something_new_begins(tmp_path: Path, database: Database) -> None:
    now = [START_US]
    with Verifier(tmp_path, db=database, clock=lambda: now[0]) as verifier:
        node = verifier.enrolled(usage=1)
        gaps(node, 2)
        now[0] = node.time_us
        verifier.client.post(node.segment())
        now[0] = node.time_us + 1
        answer = close(verifier, node, "gap")
        closing: Closing = decode(answer.body, Closing)
        assert (closing.reason, closing.by, closing.closed_us) == ("replaced the power supply", "reader-1", now[0])
        (line,) = groups(verifier)
        assert (line.state, line.reason, line.by) == ("closed", closing.reason, "reader-1")
        assert [groups(verifier, f"?state={s}") for s in ("open", "maintenance")] == [[], []]
        # What an audit and the list of findings say is not changed by it.
        assert len(every(verifier.client, "/v1/findings", verifier.reader_token(), FindingItem, 100)) >= 2
        assert verifier.audit(verifier.export(tmp_path / "evidence")).findings

        node.usage(1)
        gaps(node, 1)
        now[0] = node.time_us
        verifier.client.post(node.segment())
        now[0] = node.time_us
        (line,) = groups(verifier)
        assert (line.state, line.reason) == ("open", None)


def test_there_must_be_something_to_close_and_a_reason(verifier: Verifier) -> None:
    node = verifier.enrolled()
    assert close(verifier, node, "fork").code == "not_found"
    assert close(verifier, Node.new(), "gap").code == "not_found"
    for body in (b"", b"{}", b"[]", b"\xff", b'{"code":"gap","node_id":"x","reason":"y"}', b"{" * 20_000):
        assert post(verifier, "/v1/findings/close", body).status in (400, 413)
    wrong = encode_record(CloseRequest(node_id=node.name.node_id, code=FindingCode.GAP, reason="x")).replace(
        b'"x"', b'""'
    )
    assert post(verifier, "/v1/findings/close", wrong).code == "bad_request"


def test_any_clients_json_will_do(verifier: Verifier) -> None:
    """Nobody signs or hashes it: spaces and the order of keys are those of whatever library wrote it."""
    node = verifier.enrolled(usage=1)
    said = json.dumps({"reason": "größer", "node_id": node.name.node_id, "code": "gap"}, indent=2).encode()
    assert post(verifier, "/v1/findings/close", said).status == 200
    work = {"to_us": 6, "from_us": 5, "site": None, "reason": "new firmware", "node_id": None}
    assert post(verifier, "/v1/maintenance", json.dumps(work).encode()).status == 200
    assert post(verifier, "/v1/maintenance", json.dumps(work | {"until_us": 7}).encode()).code == "bad_request"


def window(from_us: int, to_us: int, **where: str) -> MaintenanceRequest:
    return MaintenanceRequest(
        node_id=where.get("node_id"), site=where.get("site"), from_us=from_us, to_us=to_us, reason="new firmware"
    )


def test_a_thousand_reboots_are_one_line() -> None:
    announced = Maintenance(
        id=1,
        node_id=None,
        site="fra1",
        from_us=0,
        to_us=HOUR_US,
        reason="new firmware",
        by="reader-1",
        created_us=0,
        cancelled_us=None,
    )
    origins = [f"keyturn.example.org/node/{number:032x}/1" for number in range(1_000)]
    found = [finding(FindingCode.GAP, origin, "not measured", from_us=5, to_us=900) for origin in origins]
    sites = dict.fromkeys((origin.split("/")[2] for origin in origins), "fra1")

    (line,) = review.groups(found, {}, [announced], sites)

    assert (line.state, line.nodes, line.count, line.node_id, line.window) == ("maintenance", 1_000, 1_000, None, 1)
    assert (line.reason, line.by, line.from_us, line.to_us) == ("new firmware", "reader-1", 5, 900)
    assert len(review.groups(found, {}, [announced], dict.fromkeys(sites, "ams2"))) == 1_000


@pytest.mark.parametrize(
    ("code", "times", "state"),
    [
        (FindingCode.GAP, (10, 20), "maintenance"),
        (FindingCode.GAP, (9, 20), "open"),
        (FindingCode.GAP, (10, 31), "open"),
        (FindingCode.RECOVERED, (15, 15), "maintenance"),
        (FindingCode.FORK, (15, 15), "open"),
        (FindingCode.LOST_HEAD, (15, 15), "open"),
        (FindingCode.IMPLAUSIBLE, (15, 20), "open"),
        (FindingCode.UNKNOWN_CHIP, (None, None), "open"),
    ],
)
def test_work_explains_what_reboots_do_and_no_more(code: FindingCode, times: tuple[Any, Any], state: str) -> None:
    here = finding(code, f"a.example/node/{'0' * 32}/1", "x", from_us=times[0], to_us=times[1])
    announced = Maintenance(
        id=1,
        node_id="0" * 32,
        site=None,
        from_us=10,
        to_us=30,
        reason="x",
        by="reader-1",
        created_us=0,
        cancelled_us=None,
    )
    (line,) = review.groups([here], {}, [announced], {})
    assert line.state == state


def test_a_closing_covers_no_chip_that_came_later() -> None:
    origin = f"a.example/node/{'0' * 32}/1"
    chips = [finding(FindingCode.UNKNOWN_CHIP, origin, f"chip {n}", seq=n) for n in range(2)]
    closing = {("0" * 32, "unknown_chip"): review.Covering(100, 1, "ours", "reader-1")}
    assert [review.groups(chips[:n], closing, [], {})[0].state for n in (1, 2)] == ["closed", "open"]


def test_unread_time_after_a_closing_opens_it_again() -> None:
    origin = f"a.example/node/{'0' * 32}/1"
    closing = {("0" * 32, "unmeasured"): review.Covering(2 * HOUR_US - 1, 0, "driver", "reader-1")}
    for end, state in ((2 * HOUR_US, "closed"), (4 * HOUR_US, "open")):
        unread = finding(FindingCode.UNMEASURED, origin, "x", from_us=0, to_us=end)
        assert review.groups([unread], closing, [], {})[0].state == state


def test_windows_are_announced_listed_and_cancelled(tmp_path: Path, database: Database) -> None:
    now = [START_US]
    with Verifier(tmp_path, db=database, clock=lambda: now[0]) as verifier:
        node = verifier.enrolled(usage=1)
        gaps(node, 3)
        now[0] = node.time_us
        verifier.client.post(node.segment())
        now[0] = node.time_us
        made: Maintenance = decode(
            post(verifier, "/v1/maintenance", window(START_US - DAY_US, START_US + DAY_US, site="fra1")).body,
            Maintenance,
        )
        assert [(line.state, line.count) for line in groups(verifier)] == [("maintenance", 3)]
        cancelled: Maintenance = decode(post(verifier, f"/v1/maintenance/{made.id}/cancel", b"").body, Maintenance)
        assert cancelled.cancelled_us == now[0]
        assert [line.state for line in groups(verifier)] == ["open"]
        now[0] += 5
        again: Maintenance = decode(post(verifier, f"/v1/maintenance/{made.id}/cancel", b"").body, Maintenance)
        assert again == cancelled
        listed = every(verifier.client, "/v1/maintenance", verifier.reader_token(), Maintenance, 1)
        assert listed == [cancelled]
        assert post(verifier, "/v1/maintenance/77/cancel", b"").code == "not_found"


def test_windows_that_make_no_sense(verifier: Verifier) -> None:
    for wrong in (window(5, 5), window(6, 5), window(5, 6, node_id="0" * 32, site="fra1")):
        assert post(verifier, "/v1/maintenance", wrong).code == "bad_request"
