"""Every file call of the agent, one by one: it fails, finds the disk full, or is the last one."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.host import PHASES, PRELOAD, Host, Phase
from tests.faults.strace import Call, Fault, require_strace
from tests.faults.table import LONG
from tests.faults.warm import Ended, Warm
from tests.support.verifier import Verifier

SAMPLE = 2
"""Cases of each phase and fault in the short form."""
TRIES = 4


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm("keyturn_agent.cli:main", PRELOAD) as warm:
        yield warm


class Site:
    """A verifier, and hosts that are enrolled with it one after another."""

    def __init__(self, folder: Path, verifier: Verifier, warm: Warm) -> None:
        self.folder = folder
        self.verifier = verifier
        self.warm = warm
        self.token = verifier.join_token(1_000_000)
        self.hosts: list[tuple[str, Host]] = []

    def host(self, name: str) -> Host:
        host = Host(self.folder / f"host{len(self.hosts)}", self.verifier.client.url, self.token, self.warm)
        (host.folder / "trust.json").write_bytes((self.verifier.state / "trust.json").read_bytes())
        self.hosts.append((name, host))
        return host


_KNOWN: dict[str, list[Call]] = {}


def calls_of(site: Site, phase: Phase) -> list[Call]:
    """The calls of a phase without a fault, and that it then holds what it must."""
    if phase.name not in _KNOWN:
        found: set[Call] = set()
        for _ in range(2):
            host = site.host(f"{phase.name}, no fault")
            phase.before(host)
            ended, calls = site.warm.calls(host.folder, *host.command(phase.command), env=host.env)
            assert ended.status == 0, ended.err
            for name in phase.after:
                host.run(name)
            host.check(phase.incarnation)
            found |= calls
        _KNOWN[phase.name] = sorted(found)
    return _KNOWN[phase.name]


def one(site: Site, phase: Phase, call: Call, fault: Fault) -> str | None:
    """One case; returns what was seen, or None where this run didn't come to that call."""
    host = site.host(f"{phase.name}, {fault.name} at {call}")
    phase.before(host)
    host.look()
    ended = site.warm.inject(host.folder, call, fault, *host.command(phase.command), env=host.env)
    if not ended.reached:
        return None
    seen = seen_of(ended)
    host.look()
    for name in phase.after:
        host.run(name)
    host.check(phase.incarnation)
    return seen


def seen_of(ended: Ended) -> str:
    """How the run with the fault ended, in words; a crash of Python's is never right."""
    assert "Traceback" not in ended.err, "a foreign exception: " + " | ".join(ended.err.splitlines()[-5:])
    if ended.killed:
        return "killed"
    assert ended.status in (0, 1, 2, 3), f"exit {ended.status}:\n{ended.err}"
    if ended.status == 0:
        return "went on"
    assert "keyturn-agent: error: " in ended.err or "not receipted yet" in ended.err, ended.err
    return "a clear error"


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name.replace(" ", "-"))
def test_each_file_call(tmp_path: Path, warm: Warm, phase: Phase, fault: Fault) -> None:
    require_strace(tmp_path)
    with Verifier(tmp_path / "verifier") as verifier:
        site = Site(tmp_path, verifier, warm)
        cases = [call for call in calls_of(site, phase) if call.takes(fault)]
        if not LONG:
            cases = cases[:: max(1, len(cases) // SAMPLE)][:SAMPLE]
        if only := os.environ.get("KEYTURN_FAULTS_ONLY"):
            cases = [call for call in cases if only in str(call)]
        failures, seen, missed = [], Counter[tuple[str, str]](), []
        for call in cases:
            try:
                for _ in range(TRIES):
                    if (how := one(site, phase, call, fault)) is not None:
                        seen[call.kind, how] += 1
                        break
                else:
                    missed.append(str(call))
            except AssertionError as error:
                failures.append(f"{fault.name} at {call}: {str(error)[:1500]}")
        print(len(cases), "cases", len(missed), "missed", missed)
        if failures:
            pytest.fail(f"{len(failures)} of {len(cases)}:\n" + "\n".join(failures), pytrace=False)
        report = verifier.audit(verifier.export(tmp_path / "bundle"))
        assert report.outcome == "pass", report.reasons
