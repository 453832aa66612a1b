"""Squatting on another host's chips, at a real verifier: who lists them too gets no lease, and their host does."""

from pathlib import Path

import pytest

from keyturn_protocol import switch
from keyturn_protocol.api import FindingItem
from keyturn_protocol.audit import Report, audit
from keyturn_protocol.chips import chip_table
from keyturn_protocol.claims import LIVE_S
from keyturn_protocol.entry_log import RetiredBody
from keyturn_protocol.statements import Replacement
from keyturn_verifier.check import check
from keyturn_verifier.db.engine import reading
from tests.support.node import Reply
from tests.support.office import Office
from tests.support.parties import SECOND
from tests.support.starter import Starter
from tests.support.verifier import DEPLOYMENT, FolderReader, Verifier
from tests.verifier.test_read import every


def refused(answer: Reply, why: str) -> None:
    assert (answer.status, answer.code) == (422, "lease_refused"), answer
    assert answer.problem.detail.startswith(f"{why}: "), answer.problem.detail


def heard(host: Starter, now: list[int]) -> None:
    host.node.time_us = now[0]
    host.node.heartbeat()
    host.send()


def squatter_of(owner: Starter, number: int, now: list[int]) -> Starter:
    """A host that lists the owner's chips as well as its own, a minute after it."""
    now[0] += 60 * SECOND
    made = Starter.enrolled(owner.verifier, number)
    made.node.inventory((number + 1) * made.chips, first=0)
    made.send()
    now[0] += 60 * SECOND
    heard(owner, now)
    return made


def differences(verifier: Verifier) -> list[str]:
    with reading(verifier.engine) as connection:
        return [str(one) for one in check(connection, verifier.trust)]


def audited(office: Office, out: Path) -> Report:
    bundle = FolderReader(office.verifier.export(out))
    return audit(bundle, office.verifier.trust, chip_table(), root_sha256=office.root)


def test_a_squatter_is_refused_and_the_owner_is_not(
    office: Office, verifier: Verifier, now: list[int], tmp_path: Path
) -> None:
    run, owner = office.approved(), Starter.enrolled(verifier, 0)
    squatter = squatter_of(owner, 1, now)
    ids = (owner.node.name.node_id, squatter.node.name.node_id)
    for asks in (run, None):
        # All of them, or one of them among its own.
        for chips in (owner.uuids, [owner.uuids[0], *squatter.uuids]):
            answer = squatter.get(squatter.ask(asks, chips=chips))
            refused(answer, "chip_claimed")
            assert f"(got {owner.uuids[0]} of node {ids[1]})" in answer.problem.detail
            # By a node's id, and by the hash of a run, anybody gets leases and permits: docs/adr/0011.
            assert ids[0] not in answer.problem.detail
    assert verifier.count("lease_issued") == 0
    assert owner.leased(None).chips == owner.uuids
    assert squatter.leased(None, chips=squatter.uuids).chips == squatter.uuids
    items = every(verifier.client, "/v1/findings", verifier.reader_token(), FindingItem, 100)
    (shown,) = [one for one in items if one.code == "chip_claimed"]
    assert shown.origin == squatter.node.origin
    assert shown.detail == (
        f"lists {owner.uuids[0]} and 1 more as its own, and so does node {ids[0]}, which did so first"
    )
    report = audited(office, tmp_path / "out")
    (found,) = [one for one in report.findings if one.code == "chip_claimed"]
    assert (report.reasons, differences(verifier)) == ((), [])
    assert (shown.origin, shown.severity, shown.from_us, shown.to_us, shown.detail) == (
        *(found.origin, found.severity, found.from_us, found.to_us, found.detail),
    )


def test_a_squatter_in_a_group_holds_up_nobody_but_itself(office: Office, verifier: Verifier, now: list[int]) -> None:
    run = office.approved()
    hosts = [Starter.enrolled(verifier, 0)]
    squatter = squatter_of(hosts[0], 1, now)
    squatter.ask(run, hosts=2, chips=hosts[0].uuids)
    hosts.append(Starter.enrolled(verifier, 2))
    seqs = [host.ask(run, hosts=2) for host in hosts]
    leases = [host.opened(host.get(seq)) for host, seq in zip(hosts, seqs, strict=True)]
    assert [lease.chips for lease in leases] == [host.uuids for host in hosts]


def test_a_squatter_that_was_given_a_lease_is_found_by_check_and_audit(
    office: Office, verifier: Verifier, now: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Starter.enrolled(verifier, 0)
    squatter = squatter_of(owner, 1, now)
    with monkeypatch.context() as lenient:
        lenient.setattr(switch, "check_claims", lambda *_: None)
        squatter.leased(None, chips=owner.uuids)
    (found,) = differences(verifier)
    assert "another node named the chip first, lists it and is heard of" in found
    (reason,) = audited(office, tmp_path / "out").reasons
    assert "chip_claimed: another node named the chip first" in reason


def test_a_squatter_that_finds_the_owner_silent_keeps_it_waiting_for_one_lease_at_most(
    office: Office, verifier: Verifier, now: list[int]
) -> None:
    owner = Starter.enrolled(verifier, 0)
    squatter = squatter_of(owner, 1, now)
    refused(squatter.get(squatter.ask(None, chips=owner.uuids)), "chip_claimed")
    now[0] += (LIVE_S + 1) * SECOND
    lease = squatter.leased(None, chips=owner.uuids)
    heard(owner, now)
    answer = owner.get(owner.ask(None))
    refused(answer, "chip_taken")
    assert squatter.node.origin not in answer.problem.detail
    squatter.report(lease, 0, "adopted")
    refused(squatter.get(squatter.ask(None, chips=owner.uuids)), "chip_claimed")
    now[0] += lease.ttl_s * SECOND
    assert owner.leased(None).chips == owner.uuids


@pytest.mark.parametrize("how", ["lists_it_no_more", "retired", "replaced", "silent"])
def test_a_chip_that_moved(office: Office, verifier: Verifier, now: list[int], tmp_path: Path, how: str) -> None:
    old = Starter.enrolled(verifier, 0)
    now[0] += 60 * SECOND
    new = Starter.enrolled(verifier, 1)
    old.node.time_us = now[0]
    match how:
        case "lists_it_no_more":
            old.node.inventory(1, first=7)
            old.send()
        case "retired":
            old.node.append(RetiredBody(chips=None, reason="sold"))
            old.send()
        case "replaced":
            ids = {"old": old.node.name.node_id, "new": new.node.name.node_id}
            said = Replacement(v=1, deployment=DEPLOYMENT, root=office.root, time_us=now[0], reason="a new disk", **ids)
            office.ok(said, "operator-b/eve")
        case _:
            now[0] += (LIVE_S + 1) * SECOND
    new.node.inventory(2, first=0)
    new.send()
    assert new.leased(None, chips=old.uuids).chips == old.uuids
    assert (audited(office, tmp_path / "out").reasons, differences(verifier)) == ((), [])


def test_an_owner_that_was_paused_or_has_another_log_is_still_the_first(
    office: Office, verifier: Verifier, now: list[int]
) -> None:
    owner = Starter.enrolled(verifier, 0)
    squatter = squatter_of(owner, 1, now)
    owner.node.inventory(0)
    owner.send()
    owner.node.inventory(2)
    owner.send()
    refused(squatter.get(squatter.ask(None, chips=owner.uuids)), "chip_claimed")
    left = owner.node
    owner.node = left.next_incarnation()
    owner.node.genesis(previous=left.previous())
    owner.node.inventory(2)
    owner.send()
    refused(squatter.get(squatter.ask(None, chips=owner.uuids)), "chip_claimed")
    assert owner.leased(None).chips == owner.uuids
