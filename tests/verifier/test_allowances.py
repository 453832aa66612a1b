"""What is left of the allowance: by organisation, lineage and node, with what was reported and what leases have out."""

from collections.abc import Iterator

from keyturn_protocol.api import Page
from keyturn_protocol.api_switch import ALLOWANCE, AllowanceItem
from keyturn_protocol.canonical import decode
from tests.support.office import Office
from tests.support.parties import DAY
from tests.support.starter import Starter
from tests.support.verifier import Verifier


def listed(verifier: Verifier, limit: int = 100) -> Iterator[AllowanceItem]:
    """Every item, page by page."""
    token, after = verifier.reader_token(), ""
    while True:
        answer = verifier.client.get(f"{ALLOWANCE}?limit={limit}{after}", token)
        assert answer.status == 200, answer
        page: Page[AllowanceItem] = decode(answer.body, Page[AllowanceItem])
        yield from page.items
        if page.next is None:
            return
        after = f"&after={page.next}"


def shown(verifier: Verifier) -> dict[str, tuple[int, int, int]]:
    """Used, outstanding and free, by name."""
    return {one.name: (one.used_tflop, one.outstanding_tflop, one.free_tflop) for one in listed(verifier)}


def test_what_leases_take_and_hosts_report_is_no_longer_free(
    verifier: Verifier, now: list[int], office: Office
) -> None:
    allowed = office.make_policy().allowance
    limit = allowed.organisation_tflop
    before = list(listed(verifier))
    assert [(one.by, one.name, one.free_tflop) for one in before] == [
        ("organisation", name, limit) for name in ("acme", "hosting", "state")
    ]
    host = Starter.enrolled(verifier, 0)
    lease = host.leased(None)
    out = lease.upto_tflop
    assert out > 5
    assert shown(verifier) == {
        "acme": (0, out, limit - out),
        "hosting": (0, 0, limit),
        "state": (0, 0, limit),
        "aurora": (0, out, allowed.lineage_tflop - out),
    }
    now[0] += 60_000_000
    host.node.time_us = now[0]
    host.report(lease, 3)
    assert shown(verifier)["acme"] == (3, out - 3, limit - out)
    host.report(lease, 5, "final")
    assert shown(verifier)["acme"] == shown(verifier)["aurora"] == (5, 0, limit - 5)
    now[0] += allowed.window_s * 1_000_000 + DAY
    assert shown(verifier)["acme"] == (0, 0, limit)


def test_tests_of_the_hardware_are_counted_by_node(verifier: Verifier, office: Office) -> None:
    host = Starter.enrolled(verifier, 0)
    lease = host.leased(None, kind="diagnostics", lineage=None)
    (item,) = [one for one in listed(verifier) if one.by == "node"]
    allowed, node_id = office.make_policy().allowance, host.node.name.node_id
    assert (item.name, item.window_s, item.limit_tflop) == (node_id, 86_400, allowed.diagnostics_tflop)
    assert item.outstanding_tflop == lease.upto_tflop
    assert shown(verifier)["acme"][1] == 0


def test_pages_go_on_where_they_ended(verifier: Verifier, office: Office) -> None:
    assert office.policy
    host = Starter.enrolled(verifier, 0)
    host.report(host.leased(None), 1, "final")
    host.leased(None, kind="diagnostics", lineage=None)
    assert list(listed(verifier, limit=1)) == list(listed(verifier))
    assert [one.by for one in listed(verifier, limit=2)] == ["organisation"] * 3 + ["lineage", "node"]


def test_there_is_none_before_a_policy(verifier: Verifier) -> None:
    Office(verifier).install()
    assert list(listed(verifier)) == []
