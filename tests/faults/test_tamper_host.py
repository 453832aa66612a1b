"""Root on a host edits the agent's folder; the agent runs on, and verifier and auditor judge."""

import re
from pathlib import Path

import pytest

from keyturn_agent.errors import AgentError
from keyturn_agent.status import read_status
from tests.faults import table
from tests.faults.site import Agent
from tests.faults.tamper.host import ROOT, WAITING, Root
from tests.support.verifier import Verifier

SAMPLE = {"newest segment: a byte flipped", "history rewritten after its receipts, with the host's key"}
ORDINARY = {"gap", "unattributed", "unmeasured"}
"""What an honest host of this kind has as well."""


@pytest.mark.parametrize("edit", [e for e in (*ROOT, *WAITING) if table.LONG or e.name in SAMPLE], ids=lambda e: e.name)
def test_root(edit: Root, tmp_path: Path) -> None:
    with Verifier(tmp_path / "site") as verifier:
        host = Agent(tmp_path / "host", verifier)
        assert host.run()
        if edit in WAITING:
            host.run(url="http://127.0.0.1:9", drain_s=0)
        else:
            assert host.run()
        edit.run(host, verifier)
        try:
            host.run()
            reason = read_status(host.folder).incarnation_reason
            words = "the agent goes on" if reason == "enrolled" else f"the agent leaves the log: {reason}"
        except AgentError as error:
            words = f"the agent refuses to start: {error.code}"
        report = verifier.audit(verifier.export(tmp_path / "bundle"))
    codes = sorted({f.code for f in report.findings} - ORDINARY)
    seen = f"{words}; audit: {report.outcome}; findings: {', '.join(codes) or 'none'}"
    assert re.search(edit.says, seen), seen
    assert report.outcome == ("contradicted" if {"fork", "invalid_entries"} & set(codes) else "pass"), report.reasons
    table.record("tamper", "host, root", edit.name, expected=edit.found, seen=seen)
