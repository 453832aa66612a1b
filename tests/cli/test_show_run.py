"""``keyturn show`` of a run that is under way: what was charged, for how long that lasts, what somebody should see."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyturn_protocol.api_switch import RUN_FINDINGS
from keyturn_protocol.entry_log import DegradedBody
from tests.cli.conftest import Cli
from tests.support.office import Office
from tests.support.starter import Starter
from tests.support.verifier import Verifier

MINUTE, DAY = 60_000_000, 86_400_000_000


@pytest.fixture
def now() -> list[int]:
    """The verifier's time, two days and a half ago at first."""
    return [time.time_ns() // 1_000 - 5 * DAY // 2]


@pytest.fixture
def office(tmp_path: Path, now: list[int]) -> Iterator[Office]:
    with Verifier(tmp_path / "v", clock=lambda: now[0]) as verifier:
        yield Office.opened(verifier)


def degraded(host: Starter, cause: str, count: int = 1) -> None:
    host.node.time_us = host.verifier.clock()
    for _ in range(count):
        host.node.append(DegradedBody(cause=cause, interval_us=None, detail=None))
    host.send()


def unmeasured(host: Starter, minutes: int, now: list[int]) -> None:
    """Usage, then nothing for so long, then usage again."""
    host.node.usage(1)
    now[0] += minutes * MINUTE
    host.node.time_us += minutes * MINUTE
    host.node.mono_us += minutes * MINUTE
    host.node.usage(1)
    host.send()


@pytest.fixture
def charged(office: Office, now: list[int]) -> tuple[str, Starter]:
    """A run that has used a quarter of its budget, and what its host and another one said."""
    hosts = [Starter.enrolled(office.verifier, number) for number in range(2)]
    for host in hosts:
        degraded(host, "before_it_had_a_lease")
    now[0] += 5 * MINUTE
    # No more than two chips can have done, or it wouldn't count.
    budget = office.scope().budget_tflop // 10**6
    run = office.approved(scope=office.scope(budget_tflop=budget))
    lease = hosts[0].leased(run)
    hosts[1].leased(None)
    for host in hosts:
        host.node.time_us = now[0]
    degraded(hosts[0], "no_counters")
    degraded(hosts[1], "of_another_lease")
    for host in hosts:
        unmeasured(host, 60, now)
    hosts[0].report(lease, budget // 4)
    return run, hosts[0]


def test_a_run_that_is_under_way(
    office: Office, charged: tuple[str, Starter], asking: Path, keyturn: Cli, now: list[int]
) -> None:
    run, host = charged
    now[0] += MINUTE
    squatter = office.verifier.enrolled(chips=1, at=host.first)
    now[0] += MINUTE
    host.node.heartbeat(2 * MINUTE)
    host.send()
    now[0] = time.time_ns() // 1_000
    (asking / "token").write_text(office.verifier.reader_token("approver"))
    code, out, err = keyturn("show", run)
    assert (code, "ACTIVE, day 3" in out) == (0, True), out + err
    text = " ".join(out.split())
    assert "(25 %, high end)" in text
    assert "at the rate so far exhausted in 7.5 d" in text
    assert "high: chip_claimed: lists GPU-" in text
    assert "medium: gap: 2 chips not measured for 3600.0 s (not explained), at most 1.26e19 FLOP at stake" in text
    assert "s (silent), at most " in text
    assert "low: degraded: no_counters" in text
    found = json.loads(keyturn("show", run, "--json")[1])["as_served"]["findings"]
    assert [(one["code"], one["origin"]) for one in found] == [
        ("chip_claimed", squatter.origin),
        *(("gap", host.node.origin), ("gap", host.node.origin), ("degraded", host.node.origin)),
    ], "nothing from before the lease, or of another host"
    lease = office.verifier.client.get(f"/v1/leases?run={run}", office.verifier.reader_token("approver"))
    assert found[2]["to_us"] == json.loads(lease.body)["items"][0]["expires_us"], "silence after that is nobody's"
    office.suspend(run)
    code, out, err = keyturn("show", run)
    assert (code, "SUSPENDED" in out, "at the rate so far" in out) == (0, True, False), out + err


def test_of_very_many_findings_the_gravest_are_shown(charged: tuple[str, Starter], asking: Path, keyturn: Cli) -> None:
    run, host = charged
    degraded(host, "no_counters", RUN_FINDINGS)
    code, out, err = keyturn("show", run)
    assert code == 0, err
    text = " ".join(out.split())
    assert "medium: gap: 2 chips not measured for 3600.0 s" in text
    assert "image, argv verified · config declared · data unchecked, by the word of the hosts" in text
    assert f"and {RUN_FINDINGS - 5} or more: --json lists so many, keyturn findings all of them" in text
    assert len(json.loads(keyturn("show", run, "--json")[1])["as_served"]["findings"]) == RUN_FINDINGS
