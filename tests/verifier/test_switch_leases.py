"""Leases at a real verifier: who gets how much, together or not at all, and never more than there is."""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import Connection, text

from keyturn_protocol.api import FindingItem
from keyturn_protocol.api_switch import LEASES, LeaseItem, LeaseRequest, RunEvent, RunItem
from keyturn_protocol.audit import audit
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.chips import chip_table
from keyturn_protocol.entry_log import DegradedBody
from keyturn_protocol.permit import open_permit_bundle, parse_permit_bundle
from keyturn_protocol.statements import Replacement
from keyturn_verifier import leasing, operators, runs, switch_state
from keyturn_verifier.check import check
from keyturn_verifier.db.engine import reading, writing
from tests.support.node import Reply
from tests.support.office import Office
from tests.support.parties import DAY, SECOND, tier
from tests.support.people import ANNA, replaces
from tests.support.starter import Starter, hash_of, spec
from tests.support.verifier import DEPLOYMENT, FolderReader, Verifier
from tests.verifier.test_health import metrics
from tests.verifier.test_read import every


def refused(answer: Reply, why: str) -> None:
    assert (answer.status, answer.code) == (422, "lease_refused"), answer
    assert answer.problem.detail.startswith(f"{why}: "), answer.problem.detail


def test_a_host_gets_a_lease_once_and_the_run_has_started(office: Office, verifier: Verifier) -> None:
    run = office.approved()
    host = Starter.enrolled(verifier, 0)
    seq = host.ask(run)
    answer = host.get(seq)
    lease = host.opened(answer)
    assert (lease.run, lease.chips, lease.sequence, lease.charged_tflop) == (run, host.uuids, 0, 0)
    assert (lease.root, lease.policy, lease.epoch, lease.ttl_s) == (office.root, office.policy, 0, 48 * 3600)
    assert lease.upto_tflop > 10**6
    before = verifier.dump()
    assert host.get(seq).body == answer.body
    assert verifier.dump() == before
    seen = office.view(run)
    assert (seen.state, seen.leases, seen.leased_chips) == ("active", 1, 2)
    assert (seen.committed_tflop, seen.charged_tflop) == (lease.upto_tflop, 0)
    # The bundle proves the start: without it a host's own fold would call the run expired.
    data = verifier.client.get(f"/v1/runs/{run}/permit").body
    opened = open_permit_bundle(parse_permit_bundle(data), office.root or "", DEPLOYMENT)
    assert opened.run is not None
    assert opened.run.started_us == lease.time_us
    items: list[LeaseItem] = every(verifier.client, f"/v1/leases?run={run}", verifier.reader_token(), LeaseItem, 1)
    assert [(i.sha256, i.open, i.chips) for i in items] == [(hash_of(lease), True, 2)]
    got = verifier.client.get(f"/v1/leases/{items[0].sha256}", verifier.reader_token())
    assert got.body == answer.body


def test_a_run_is_shown_while_another_host_gets_its_first_lease(
    office: Office, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shown is read from before that lease, and added up from after it."""
    run = office.approved()
    other = Starter.enrolled(verifier, 1)
    other.node.append(DegradedBody(cause="no_counters", interval_us=None, detail=None))
    other.send()
    token, read = verifier.reader_token(), runs.events

    def meanwhile(connection: Connection, about: str) -> list[RunEvent]:
        monkeypatch.undo()
        other.leased(run)
        assert verifier.client.get("/v1/runs", token).status == 200
        return read(connection, about)

    monkeypatch.setattr(runs, "events", meanwhile)
    answer = verifier.client.get(f"/v1/runs/{run}", token)
    assert answer.status == 200, answer
    assert json.loads(answer.body)["leases"] == 1


def test_used_and_outstanding_never_pass_the_budget(office: Office, verifier: Verifier, now: list[int]) -> None:
    """Slices shrink as hosts come; a report frees what was not used; a host that says nothing has used it all."""
    run = office.approved(scope=office.scope(budget_tflop=1000, chips=64))
    hosts = [Starter.enrolled(verifier, number) for number in range(3)]

    def left() -> int:
        seen = office.view(run)
        assert seen.committed_tflop <= 1000
        return seen.left_tflop

    first = hosts[0].leased(run)
    assert (first.upto_tflop, left()) == (1000, 0)
    refused(hosts[1].get(hosts[1].ask(run)), "exhausted")
    hosts[0].report(first, 100, "adopted")
    now[0] += 60 * SECOND
    again = hosts[0].leased(run)
    # Half of what nobody has charged: the other one is known to ask.
    assert (again.charged_tflop, again.upto_tflop) == (100, 550)
    hosts[0].report(again, 300, "adopted")
    hosts[0].report(again, 300, "final")
    assert left() == 700
    second = hosts[1].leased(run)
    refused(hosts[2].get(hosts[2].ask(run)), "exhausted")
    # At its renewal the second host shares with the third, which goes without meanwhile.
    hosts[1].report(second, 0, "adopted")
    less = hosts[1].leased(run)
    assert (less.upto_tflop, left()) == (350, 0)
    # The old cap counts until the host has taken the new one.
    refused(hosts[2].get(hosts[2].ask(run)), "exhausted")
    hosts[1].report(less, 0, "adopted")
    assert hosts[2].leased(run).upto_tflop == 350
    assert left() == 0


def test_metrics_say_how_much_there_is(office: Office, verifier: Verifier, now: list[int]) -> None:
    active = office.approved()
    office.suspend(office.approved())
    office.request()
    host = Starter.enrolled(verifier, 0)
    first = host.leased(active)
    host.report(first, 0, "adopted")
    host.report(host.leased(active), 0, "adopted")
    said = {"request": 3, "decision": 6, "suspend": 1, "root": 1, "policy": 1}
    expected = {f'keyturn_runs{{state="{state}"}}': 1.0 for state in ("active", "suspended", "pending")}
    expected |= {f'keyturn_statements_total{{kind="{kind}"}}': float(count) for kind, count in said.items()}
    expected |= {"keyturn_leases_open": 1.0, "keyturn_leases_issued_total": 2.0}
    names = ("keyturn_runs", "keyturn_leases", "keyturn_statements")

    def shown(of: Verifier) -> dict[str, float]:
        return {name: value for name, value in metrics(of).items() if value and name.startswith(names)}

    assert shown(verifier) == expected
    now[0] += 3 * DAY
    assert shown(verifier) == {name: value for name, value in expected.items() if name != "keyturn_leases_open"}
    # What can't be read takes nothing else away.
    with writing(verifier.engine) as connection:
        connection.execute(text("UPDATE statement SET envelope = sha256"))
    with Verifier(verifier.state.parent, clock=lambda: now[0]) as again:
        assert shown(again) == {}
        assert metrics(again)["keyturn_unpublished_leaves"] >= 0


def test_hosts_of_a_group_get_their_leases_together_or_not_at_all(
    office: Office, verifier: Verifier, now: list[int]
) -> None:
    run = office.approved(scope=office.scope(chips=6, budget_tflop=900))
    hosts = [Starter.enrolled(verifier, number) for number in range(4)]
    seqs = [host.ask(run, hosts=3, group="a") for host in hosts[:2]]
    for host, seq in zip(hosts, seqs, strict=False):
        answer = host.get(seq)
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (409, "waiting", "2")
    assert verifier.count("lease_issued") == 0
    # Another group, or another number of hosts, is not this one.
    others: list[dict[str, Any]] = [{"hosts": 3, "group": "b"}, {"hosts": 2, "group": "a"}]
    for changes in others:
        assert hosts[2].get(hosts[2].ask(run, **changes)).code == "waiting"
    seqs.append(hosts[2].ask(run, hosts=3, group="a"))
    last = hosts[2].opened(hosts[2].get(seqs[2]))
    assert verifier.count("lease_issued") == 3
    leases = [host.opened(host.get(seq)) for host, seq in zip(hosts, seqs, strict=False)]
    assert leases[2] == last
    assert [lease.upto_tflop for lease in leases] == [300] * 3
    assert len({lease.time_us for lease in leases}) == 1
    refused(hosts[3].get(hosts[3].ask(run)), "too_many_chips")
    # A host of which nothing is heard gives its chips up, and its slice only with its report.
    for host, lease in zip(hosts[:2], leases, strict=False):
        host.report(lease, 0, "adopted")
    now[0] += 290 * SECOND
    for host, lease in zip(hosts[:2], leases, strict=False):
        host.report(lease, 10)
    now[0] += 20 * SECOND
    refused(hosts[3].get(hosts[3].ask(run)), "exhausted")
    hosts[2].report(leases[2], 20, "final")
    assert hosts[3].leased(run).upto_tflop > 0


def test_of_a_group_that_began_one_may_come_late_or_again(office: Office, verifier: Verifier) -> None:
    """Whoever gave up and asks again finds the others running; a group that is over is no group."""
    run = office.approved(scope=office.scope(budget_tflop=10**9))
    hosts = [Starter.enrolled(verifier, number) for number in range(2)]
    hosts[0].ask(run, hosts=2)  # and nobody waits for it any more
    lease = hosts[1].leased(run, hosts=2)
    again = hosts[0].ask(run, hosts=2)
    assert hosts[0].get(again).code == "waiting"  # the other one has a lease, and hasn't begun
    hosts[1].report(lease, 0, "adopted")
    late = hosts[0].opened(hosts[0].get(again))
    hosts[0].report(late, 0, "adopted")
    # Renewals are each host's own.
    renewed = hosts[0].leased(run, hosts=1)
    hosts[0].report(renewed, 1, "adopted")
    hosts[0].report(renewed, 1, "final")
    hosts[1].report(lease, 1, "final")
    assert hosts[0].get(hosts[0].ask(run, hosts=2)).code == "waiting"


def test_who_gets_no_lease(office: Office, verifier: Verifier, now: list[int]) -> None:
    pending, suspended = office.request(), office.approved()
    office.suspend(suspended)
    strict = tier(verified=["argv"], assurance=0)
    run = office.approved(scope=office.scope(sites=["fra1"]))
    elsewhere = office.approved(scope=office.scope(sites=["ams1"]))
    later = office.approved(scope=office.scope(not_before_us=now[0] + DAY))
    host, other = Starter.enrolled(verifier, 0), Starter.enrolled(verifier, 1)
    attempts: list[tuple[str, str, dict[str, Any]]] = [
        ("no_permit", pending, {}),
        ("suspended", suspended, {}),
        ("site", elsewhere, {}),
        ("window", later, {}),
        ("unknown", "9" * 64, {}),
        ("site", run, {"chips": other.uuids}),
    ]
    for why, of, changes in attempts:
        refused(host.get(host.ask(of, **changes)), why)
    taken = host.leased(run)
    second = office.approved()
    refused(host.get(host.ask(second)), "chip_taken")
    # What it asked for first is nothing any more once it asked again.
    old, new = other.ask(run), other.ask(run)
    refused(other.get(old), "stale")
    now[0] += 601 * SECOND
    refused(other.get(new), "too_late")
    assert other.leased(run).epoch == 0
    host.report(taken, 1, "adopted")
    # Another boot owes the last word of the one before.
    host.node.boot_id, host.node.boots = "0c6b8a1e-3f57-4d2a-9b1c-5e8f7a6d4c3c", host.node.boots + 1
    seq = host.ask(run)
    refused(host.get(seq), "owes_report")
    assert strict.verified == ["argv"]
    for missing in (host.node.size + 5, 0):
        assert host.get(missing).code == "not_found"


def test_invented_organisations_have_no_allowance_between_them(office: Office, verifier: Verifier) -> None:
    """However many join tokens there are: none of these names is in the root, and nothing is logged for them."""
    before = verifier.count("lease_issued")
    for number, name in enumerate(["initech", "Acme", "acme ", "\N{CYRILLIC SMALL LETTER A}cme", "lab-a"]):
        host = Starter.enrolled(verifier, number, organisation=name)
        for body in (host.wants(None), host.wants(None, kind="diagnostics", lineage=None)):
            host.node.append(body)
            host.send()
            answer = host.get(host.node.size - 1)
            refused(answer, "organisation")
            assert f"(expected acme, hosting or state, got {name!a})" in answer.problem.detail
    assert verifier.count("lease_issued") == before
    # Whose host it is says nothing about a run, which people decided about.
    assert Starter.enrolled(verifier, 8, organisation="initech").leased(office.approved()).allowance is None
    assert Starter.enrolled(verifier, 9).leased(None).allowance is not None


def replacement(office: Office, old: Starter, new: Starter) -> Replacement:
    ids = {"old": old.node.name.node_id, "new": new.node.name.node_id}
    fields = {"v": 1, "deployment": DEPLOYMENT, "root": office.root, "time_us": office.verifier.clock()}
    return Replacement(**fields, reason="a new disk", **ids)  # type: ignore[arg-type]


def test_a_node_that_was_replaced_and_goes_on_gets_no_more_leases(
    office: Office, verifier: Verifier, tmp_path: Path
) -> None:
    run = office.approved()
    old, new = Starter.enrolled(verifier, 0), Starter.enrolled(verifier, 1)
    lease = old.leased(run)
    office.ok(replacement(office, old, new), "operator-b/eve")
    before = verifier.count("lease_issued")
    old.report(lease, 1, "adopted")
    for asks in (run, None):
        answer = old.get(old.ask(asks))
        refused(answer, "replaced")
        assert f"(expected {new.node.name.node_id}, got {old.node.name.node_id})" in answer.problem.detail
    assert verifier.count("lease_issued") == before
    # What it has it keeps, and says what that cost; the others go on.
    old.report(lease, 5, "final")
    assert office.view(run).charged_tflop == 5
    assert new.leased(run).run == run
    with reading(verifier.engine) as connection:
        assert list(check(connection, verifier.trust)) == []
    bundle = FolderReader(verifier.export(tmp_path / "out"))
    assert audit(bundle, None, chip_table(), root_sha256=office.root).reasons == ()


def test_a_node_that_was_replaced_before_there_was_a_root_gets_no_lease(verifier: Verifier) -> None:
    operators.add(verifier.state, ANNA.text, "anna")
    old, new = Starter.enrolled(verifier, 0), Starter.enrolled(verifier, 1)
    said = replaces(old.node.name.node_id, new.node.name.node_id, deployment=DEPLOYMENT)
    assert verifier.client.request("POST", "/v1/statements", said, content_type="application/json").status == 200
    run = Office.opened(verifier).approved()
    refused(old.get(old.ask(run)), "replaced")
    assert new.leased(run).run == run
    with reading(verifier.engine) as connection:
        assert list(check(connection, verifier.trust, operators=operators.load(verifier.state))) == []


def test_a_spec_that_the_host_has_to_check(verifier: Verifier) -> None:
    office = Office.opened(verifier, tiers=[tier(verified=["argv"])])
    run, host = office.approved(), Starter.enrolled(verifier, 0)
    refused(host.get(host.ask(run, spec=spec(argv="declared"))), "unverified")
    assert office.view(run).checked == {}, "nobody has a lease"
    assert host.leased(run).run == run
    said = {"argv": "verified", "config": "declared", "data": "unchecked", "image": "verified"}
    assert office.view(run).checked == said
    Starter.enrolled(verifier, 1).leased(run, spec=spec(image="unchecked", data="verified"))
    assert office.view(run).checked == said | {"image": "unchecked"}, "the weakest word of all"


def test_one_huge_report_uses_up_no_run_and_no_allowance(
    office: Office, verifier: Verifier, now: list[int], tmp_path: Path
) -> None:
    run = office.approved()
    liar, other = Starter.enrolled(verifier, 0), Starter.enrolled(verifier, 1)
    leases = [liar.leased(asks, chips=[chip]) for asks, chip in zip((run, None), liar.uuids, strict=True)]
    for lease in leases:
        liar.report(lease, 10**40)
    seen = office.view(run)
    assert (seen.state, seen.charged_tflop) == ("active", leases[0].upto_tflop)
    (found,) = [one for one in seen.findings if one.code == "lease_overrun"]
    assert found.detail.endswith(f"; {leases[0].upto_tflop} TFLOP of it count: no chips do more in that time")
    for asks, chip in zip((run, None), liar.uuids, strict=True):
        answer = liar.get(liar.ask(asks, chips=[chip]))
        refused(answer, "exhausted")
        assert "TFLOP more are reported than its chips can have done" in answer.problem.detail
        assert other.leased(asks, chips=[other.uuids[asks is None]]).upto_tflop > 0
    with reading(verifier.engine) as connection:
        assert list(check(connection, verifier.trust)) == []
    bundle = FolderReader(verifier.export(tmp_path / "out"))
    assert audit(bundle, None, chip_table(), root_sha256=office.root).reasons == ()


def test_work_beyond_a_lease_is_charged_to_the_run(office: Office, verifier: Verifier, now: list[int]) -> None:
    run = office.approved(scope=office.scope(budget_tflop=10**6))
    hosts = [Starter.enrolled(verifier, number) for number in range(2)]
    lease = hosts[0].leased(run)
    hosts[0].report(lease, 10, "adopted")
    less = hosts[0].leased(run)
    now[0] += 10 * SECOND
    hosts[0].report(less, 2 * 10**6, "final")
    seen = office.view(run)
    assert (seen.state, seen.charged_tflop) == ("exhausted", 2 * 10**6)
    refused(hosts[1].get(hosts[1].ask(run)), "exhausted")


def test_a_host_that_reports_any_number_hides_no_run(office: Office, verifier: Verifier, now: list[int]) -> None:
    run, other = office.approved(), office.approved()
    host = Starter.enrolled(verifier, 0)
    lease = host.leased(run)
    host.node.append(structs.replace(host.says(lease, 0, "adopted"), charged_flop="9" * 70))
    host.send()
    token = verifier.reader_token()
    assert {item.run for item in every(verifier.client, "/v1/runs", token, RunItem, 10)} == {run, other}
    (item,) = every(verifier.client, "/v1/leases", token, LeaseItem, 10)
    assert (item.charged_tflop, office.view(run).charged_tflop) == (2**53 - 1, lease.upto_tflop)
    host.report(lease, 0, "final")
    # Its own account of the allowance can't be written down any more, and nobody answers for that with an error.
    free = host.leased(None)
    host.node.append(structs.replace(host.says(free, 0, "adopted"), charged_flop="9" * 70))
    host.send()
    now[0] += 40 * DAY
    refused(host.get(host.ask(None)), "exhausted")


def test_what_one_host_says_of_its_leases_does_not_fill_the_memory(
    office: Office, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch_state, "IRREGULAR", 3)
    run = office.approved()
    hosts = [Starter.enrolled(verifier, number) for number in range(2)]
    lease = hosts[0].leased(run)
    for _ in range(5):
        hosts[1].node.append(hosts[1].says(lease, 1))
    hosts[1].send()
    hosts[0].report(lease, 2, "adopted")
    hosts[0].report(lease, 1)
    found = every(verifier.client, "/v1/findings", verifier.reader_token(), FindingItem, 100)
    assert [f.code for f in found if f.origin == hosts[1].node.origin].count("lease_unknown") == 3
    assert [f.code for f in found if f.origin == hosts[0].node.origin].count("lease_rollback") == 1


def test_an_entry_that_gets_nothing_never_takes_the_lock(
    office: Office, verifier: Verifier, now: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may ask about it, as often as they like."""
    run, host = office.approved(), Starter.enrolled(verifier, 0)
    old, _ = host.ask(run), host.ask(run)
    monkeypatch.setattr(leasing, "writing", None)
    refused(host.get(old), "stale")
    refused(host.get(host.ask("0" * 64)), "unknown")
    assert host.get(host.ask(run, hosts=2)).code == "waiting"
    office.suspend(run)
    refused(host.get(host.ask(run, hosts=2)), "suspended")
    new = host.ask(run)
    now[0] += 601 * SECOND
    refused(host.get(new), "too_late")


@pytest.mark.parametrize("origin", ["a\0b", "é", "keyturn.example.org/node/x"])
def test_an_origin_that_no_log_has(office: Office, verifier: Verifier, origin: str) -> None:
    body = encode_record(LeaseRequest(origin=origin, seq=2**53 - 1))
    answer = verifier.client.request("POST", LEASES, body, content_type="application/json")
    assert answer.code == "not_found", answer
