"""Leases of a real verifier, audited: what it granted and accounts for is what an auditor recomputes."""

from pathlib import Path
from typing import Any

from keyturn_protocol.audit import Report, audit
from keyturn_protocol.chips import chip_table
from tests.support.office import Office
from tests.support.parties import SECOND
from tests.support.starter import Starter
from tests.support.verifier import FolderReader, Verifier


def audited(verifier: Verifier, office: Office, folder: Path) -> Report:
    return audit(FolderReader(verifier.export(folder)), None, chip_table(), root_sha256=office.root)


def test_leases_renewals_reports_and_a_suspension(verifier: Verifier, now: list[int], tmp_path: Path) -> None:
    office = Office.opened(verifier)
    run = office.approved()
    hosts = [Starter.enrolled(verifier, number) for number in range(2)]
    leases = [host.leased(run) for host in hosts]
    for turn in range(1, 4):
        now[0] += 60 * SECOND
        for at, host in enumerate(hosts):
            host.report(leases[at], 100 * turn, "adopted" if turn == 1 else "report")
            host.node.time_us = now[0]
            leases[at] = host.leased(run)
            host.report(leases[at], 100 * turn, "adopted")
    hosts[0].report(leases[0], 350, "final")
    free: Any = hosts[0].leased(None)
    hosts[0].report(free, 0, "adopted")
    office.suspend(run)
    seen = office.view(run)

    report = audited(verifier, office, tmp_path / "evidence")

    assert (report.outcome, report.reasons) == ("pass", ())
    (found,) = report.runs
    assert (found.state, found.epoch) == (seen.state, 1)
    assert (found.charged_tflop, found.committed_tflop) == (seen.charged_tflop, seen.committed_tflop)
    assert found.charged_tflop == 650
    assert not [one for one in report.findings if one.code in ("lease_unknown", "lease_overrun", "lease_rollback")]
