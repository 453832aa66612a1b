"""Every file call of the agent, one by one: it fails, finds the disk full, or is the last one."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyturn_protocol.audit import Report
from keyturn_protocol.ids import parse_origin
from tests.faults.cases import RUNS, choose, meet, pairs, write_down
from tests.faults.host import PHASES, PRELOAD, Host, Phase
from tests.faults.strace import Call, Fault, require_strace
from tests.faults.warm import Ended, Warm
from tests.support.verifier import Verifier

EXPECTED = "it goes on, or ends with an error of its own; started again, all is sent, once"

HASTE_S = 3
"""How long a run with a fault waits for what the fault may have cost it."""


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm("keyturn_agent.cli:main", PRELOAD) as warm:
        yield warm


class Fleet:
    """A verifier, and hosts that are enrolled with it one after another."""

    def __init__(self, folder: Path, verifier: Verifier, warm: Warm) -> None:
        self.folder = folder
        self.verifier = verifier
        self.warm = warm
        self.token = verifier.join_token(1_000_000)
        self.nodes: dict[str, str] = {}
        self._count = 0

    def host(self) -> Host:
        self._count += 1
        host = Host(self.folder / f"host{self._count}", self.verifier.client.url, self.token, self.warm)
        (host.folder / "trust.json").write_bytes((self.verifier.state / "trust.json").read_bytes())
        return host

    def calls(self, phase: Phase) -> set[Call]:
        """The calls of a phase without a fault, and that it then holds what it must."""
        found: set[Call] = set()
        for _ in range(RUNS):
            host = self.host()
            phase.before(host)
            ended, calls = self.warm.calls(host.folder, *host.command(phase.command), env=host.env)
            assert ended.status == 0, ended.err
            self.settle(host, phase, "no fault")
            found |= calls
        return found

    def one(self, phase: Phase, call: Call, fault: Fault) -> str | None:
        """One case; returns what was seen, or None where this run didn't come to that call."""
        host = self.host()
        phase.before(host)
        host.look()
        ended = self.warm.inject(host.folder, call, fault, *host.command(phase.command, HASTE_S), env=host.env)
        seen = seen_of(ended)
        host.look()
        self.settle(host, phase, f"{fault.name} at {call}")
        return seen if ended.reached else None

    def settle(self, host: Host, phase: Phase, case: str) -> None:
        """Start it again, as often as it takes, and look at what it has and what was sent."""
        for name in phase.after:
            host.run(name)
        host.check(phase.incarnation)
        # By log and size: what was sent as one segment lies here as several if its receipt couldn't be kept at once.
        stored = {
            (parse_origin(row.origin).incarnation, row.end): row.receipt for row in self.verifier.receipts(host.node)
        }
        for name, receipt in host.receipts.items():
            log, _, segment = name.removesuffix(".receipt").partition("/")
            size = int(segment.partition("-")[2])
            assert stored.get((int(log), size)) == receipt, f"{name} is not the verifier's"
        self.nodes[host.node] = case
        host.remove()

    def audited(self, phase: Phase) -> None:
        """That an auditor finds each host's log whole, and what it should in it."""
        found: Report = self.verifier.audit(self.verifier.export(self.folder / "bundle"))
        assert found.outcome == "pass", found.reasons
        findings: dict[str, Counter[str]] = {node: Counter() for node in self.nodes}
        for finding in found.findings:
            findings[parse_origin(finding.origin).node_id][finding.code.value] += 1
        wrong = {node: counts for node, counts in findings.items() if counts != phase.findings}
        told = [finding for finding in found.findings if parse_origin(finding.origin).node_id in wrong]
        cases = {self.nodes[node]: dict(counts) for node, counts in wrong.items()}
        assert not wrong, f"expected findings {phase.findings}: {cases}; {told}"


def seen_of(ended: Ended) -> str:
    """How the run with the fault ended, in words; a crash of Python's is never right."""
    assert "Traceback" not in ended.err, "a foreign exception: " + " | ".join(ended.err.splitlines()[-5:])
    if ended.killed:
        return "killed"
    assert ended.status in (0, 1, 2, 3), f"exit {ended.status}:\n{ended.err}"
    if ended.status == 0:
        return "went on"
    if "keyturn-agent: error: " in ended.err:
        return "ended with its error"
    assert "not receipted yet" in ended.err, ended.err
    return "went on; what had no receipt was sent at the next start"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("phase", "fault"), pairs(PHASES))
def test_each_file_call(quick_folder: Path, warm: Warm, phase: Phase, fault: Fault) -> None:
    folder = Path(tempfile.mkdtemp(dir=quick_folder))
    require_strace()
    with Verifier(folder / "verifier") as verifier:
        fleet = Fleet(folder, verifier, warm)
        cases = choose(fleet.calls(phase), fault)
        seen = meet("agent", phase.name, fault, cases, lambda call: fleet.one(phase, call, fault))
        fleet.audited(phase)
    write_down("agent", fault, seen, EXPECTED)
