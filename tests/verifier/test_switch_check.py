"""The switch of a database, computed again: by ``check`` from the tables, by the audit from a bundle, both alike."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from keyturn_protocol.api import FindingItem
from keyturn_protocol.audit import Report, audit
from keyturn_protocol.chips import chip_table
from keyturn_verifier.check import check
from tests.support.office import Office
from tests.support.parties import SECOND
from tests.support.starter import Starter
from tests.support.verifier import Database, FolderReader, Verifier
from tests.verifier.test_read import every

LEASE_FINDINGS = {"lease_unknown", "lease_rollback", "lease_overrun"}


@pytest.fixture
def office(tmp_path: Path, database: Database, now: list[int]) -> Iterator[Office]:
    """A run of two hosts, one of them with a state folder from a backup; an allowance; a suspension."""
    with Verifier(tmp_path, db=database, clock=lambda: now[0]) as verifier:
        office = Office.opened(verifier)
        run = office.approved()
        assert office.give(run, office.openings).status == 204
        hosts = [Starter.enrolled(verifier, number) for number in range(4)]
        pair = [host.ask(run, hosts=2) for host in hosts[:2]]
        leases = [host.opened(host.get(seq)) for host, seq in zip(hosts[:2], pair, strict=True)]
        now[0] += 60 * SECOND
        hosts[0].report(leases[0], 20, "adopted")
        hosts[0].report(leases[0], 10)
        hosts[1].report(leases[0], 10)
        free = hosts[2].leased(None)
        hosts[2].report(free, free.upto_tflop + 5, "adopted")
        assert hosts[3].leased(None, kind="diagnostics", lineage=None).allowance is not None
        hosts[0].leased(run)
        office.suspend(run)
        yield office


def audited(office: Office, out: Path) -> Report:
    bundle = FolderReader(office.verifier.export(out))
    return audit(bundle, office.verifier.trust, chip_table(), root_sha256=office.root)


def differences(office: Office, *changes: str) -> list[str]:
    """What check says about a database in which SQL was run; it is as before then."""
    with office.verifier.engine.connect() as connection:
        for change in changes:
            connection.execute(text(change))
        said = [str(one) for one in check(connection, office.verifier.trust)]
        connection.rollback()
    return said


def test_what_came_in_by_itself_is_as_it_has_to_be(office: Office, tmp_path: Path) -> None:
    assert differences(office) == []
    report = audited(office, tmp_path / "out")
    assert report.contradictions == ()
    token = office.verifier.reader_token()
    items = every(office.verifier.client, "/v1/findings", token, FindingItem, 100)
    ours = [(f.code, f.origin, f.seq, f.from_us, f.detail) for f in items if f.code in LEASE_FINDINGS]
    theirs = [(f.code, f.origin, f.seq, f.from_us, f.detail) for f in report.findings if f.code in LEASE_FINDINGS]
    assert ours == theirs
    assert {code for code, *_ in ours} == LEASE_FINDINGS
    # Computed from the bundle, and shown by the server.
    (total,) = report.runs
    seen = office.view(total.hash)
    assert (total.state, total.charged_tflop, total.committed_tflop, total.epoch) == (
        *(seen.state, seen.charged_tflop, seen.committed_tflop, seen.epoch),
    )
    assert {f.code for f in seen.findings} == {"lease_rollback", "lease_unknown"}


def test_a_host_that_says_a_nonce_twice_puts_no_verifier_in_the_wrong(office: Office, tmp_path: Path) -> None:
    run, host = office.approved(), Starter.enrolled(office.verifier, 9)
    seqs = [
        host.ask(run, nonce="7" * 64, chips=host.uuids[:1]),
        host.ask(None, nonce="7" * 64, chips=host.uuids[1:]),
    ]
    for seq in seqs:
        host.opened(host.get(seq))
    assert differences(office) == []
    assert audited(office, tmp_path / "out").contradictions == ()


def test_an_insider_with_sql_is_found(office: Office) -> None:
    for change, named in (
        ("UPDATE statement SET run = NULL WHERE kind = 'suspend'", "statement: statements: run"),
        ("DELETE FROM statement WHERE kind = 'suspend'", "row is missing"),
        ("UPDATE lease_request SET seq = seq + 100", "lease_request"),
        ("UPDATE lease_request SET leaf = leaf + 1", "leaf of"),
        ("UPDATE lease_request SET time_us = time_us + 1", "time_us of"),
        ("UPDATE lease_request SET party = 'x'", "party of"),
        ("UPDATE lease_request SET run = NULL", "run of"),
        ("UPDATE lease_request SET boot_id = 'x'", "boot_id of"),
        ("UPDATE lease_request SET body = '{}'", "body"),
        ("DELETE FROM lease_request WHERE run IS NULL", "row is missing"),
        ("UPDATE lease_report SET leaf = leaf + 1", "leaf of"),
        ("UPDATE lease_report SET said_us = said_us + 1", "said_us of"),
        ("UPDATE lease_report SET time_us = time_us + 1", "time_us of"),
        ("UPDATE lease_report SET body = '{}'", "body of"),
        ("DELETE FROM lease_report", "row is missing"),
        ("UPDATE lease_issued SET kind = 'x'", "kind of"),
        ("UPDATE lease_issued SET time_us = time_us + 1", "time_us of"),
        ("UPDATE lease_issued SET seq = seq + 100", "seq of"),
        ("UPDATE lease_issued SET run = NULL", "run of"),
        ("UPDATE lease_issued SET note = (SELECT max(note) FROM lease_issued)", "not the lease that"),
        ("DELETE FROM lease_issued", "row is missing"),
        ("UPDATE inventory SET chips = '{}'", "inventory"),
        ("UPDATE log SET chain = '{}'", "log: "),
        ("UPDATE opening SET run = 'x'", "opens no commitment"),
        ("UPDATE opening SET part = 'data'", "opens no commitment"),
        ("UPDATE opening SET salt = commitment", "opens no commitment"),
        ("UPDATE opening SET value = '[]'", "opens no commitment"),
    ):
        for empty, data in (("'{}'", b"{}"), ("'[]'", b'["x"]')):
            change = change.replace(empty, blob(office, data))
        found = differences(office, change)
        assert any(named in line for line in found), (change, found)


def blob(office: Office, data: bytes) -> str:
    """A literal of bytes."""
    return f"'\\x{data.hex()}'" if office.verifier.engine.dialect.name == "postgresql" else f"x'{data.hex()}'"
