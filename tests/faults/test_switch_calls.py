"""Every file call of the agent and of the gate in the steps of the start switch, one by one: kill -9 there, start it
again, let the run go to its end or its stop, and audit.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from keyturn_agent.switch.lease_state import Phase
from keyturn_gate.server import ask
from keyturn_protocol.audit import Report, audit
from keyturn_protocol.bundle import lease_path, statement_path
from keyturn_protocol.chips import chip_table
from keyturn_protocol.findings import FindingCode
from keyturn_protocol.ids import parse_origin
from tests.agent.conftest import library
from tests.faults.after import no_second_head, stored_heads, stored_receipts
from tests.faults.cases import RUNS, Seen, choose, meet, write_down
from tests.faults.leased_host import PROHIBITED, Host, Program, host_of
from tests.faults.leased_site import BUDGET, Site
from tests.faults.strace import Call, Fault, hit, injecting, moments, require_strace, watching
from tests.faults.table import LONG
from tests.support.verifier import FolderReader, call

__all__ = ("library",)
"""A fixture."""

EXPECTED: Final = "the run isn't touched; started again, all goes to its end; no lease, receipt or stop is lost"
TOGETHER: Final = 6
"""Hosts at a time: most of what they do is to wait."""


@dataclass(frozen=True)
class Step:
    """What a host does while one of its programs is watched, or killed: that is ``during``."""

    name: str
    program: Program
    before: Callable[[Host], None]
    during: Callable[[Host], None]

    @property
    def part(self) -> str:
        return f"start switch: {self.program}, {self.name}"


def _waits(host: Host) -> None:
    """Both programs are there, and the chip is locked."""
    host.start("gate")
    host.until(lambda: host.control.mode(0) == PROHIBITED, "the gate doesn't lock")
    host.start("agent")


def _waits_with_a_permit(host: Host) -> None:
    host.run = host.site.approved(renewed=False)
    _waits(host)


def _begins(host: Host) -> None:
    host.begin()
    host.until(lambda: [job.phase for job in host.book().jobs] == [Phase.RUNNING], "it never runs")


def _runs(host: Host) -> None:
    """Under the allowance."""
    _waits(host)
    _begins(host)


def _runs_with_a_permit(host: Host) -> None:
    _waits_with_a_permit(host)
    _begins(host)


def _runs_and_renews(host: Host) -> None:
    host.run = host.site.approved(renewed=True)
    _waits(host)
    _begins(host)


def _renews(host: Host) -> None:
    """A lease further, nothing is asked for, and the gate knows of it."""
    (first,) = host.book().sequences.values()

    def renewed() -> bool:
        book, gate = host.book(), host.gate_answers()
        return (
            max(book.sequences.values()) > first
            and all(job.asked is None and job.lease is not None for job in book.jobs)
            and gate is not None
            and [grant["lease"] for grant in gate["grants"]] == [job.lease.sha256 for job in book.jobs if job.lease]
        )

    host.until(renewed, "no lease follows")


def _is_suspended(host: Host) -> None:
    assert host.run is not None
    host.suspended = True
    host.stop_by_us = host.site.suspend(host.run, 3)
    host.until(lambda: "TERM" in host.words() and host.returned(), "the run isn't stopped")


def _ends(host: Host) -> None:
    (host.folder / "end").touch()
    host.until(host.returned, "the lease isn't given back")


def _is_released(host: Host) -> None:
    """Root's way out, and its end; each is said again by whoever got no answer."""

    def said(verb: str, **fields: str) -> Callable[[], bool]:
        def once() -> bool:
            try:
                data = ask(host.folder / "gate.sock", json.dumps({"v": 1, "verb": verb, **fields}).encode(), 5)
            except Exception:
                return False
            answer = json.loads(data)
            return bool(answer["ok"]) or answer["code"] == "not_released"

        return once

    host.released, host.expect = True, frozenset({FindingCode.DEGRADED})
    host.until(said("release", reason="a test"), "the gate isn't released")
    host.until(said("lock"), "the release doesn't end")
    host.released = False


STEPS: Final = (
    Step("a run begins under its permit", "agent", _waits_with_a_permit, _begins),
    Step("a run begins under the allowance", "agent", _waits, _begins),
    Step("a lease is renewed", "agent", _runs_and_renews, _renews),
    Step("a suspension is heard", "agent", _runs_with_a_permit, _is_suspended),
    Step("a lease is returned", "agent", _runs, _ends),
    Step("a grant", "gate", _waits, _begins),
    Step("a grant is renewed", "gate", _runs_and_renews, _renews),
    Step("a stop", "gate", _runs_with_a_permit, _is_suspended),
    Step("a grant ends", "gate", _runs, _ends),
    Step("a release", "gate", _runs, _is_released),
)
QUICK: Final = (
    (STEPS[0], Call("state/leases.json.tmp", 1, "rename")),
    (STEPS[3], Call("state/root.json.tmp", 1, "rename")),
    (STEPS[5], Call("gate/gate.tmp", 1, "rename")),
)
"""Between the lease in its file and in the list of those held; as a suspension is heard; before a grant is kept."""


class Hall:
    """The site, and what is remembered of its hosts until the audit."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.site = Site(folder, library)
        self.done: list[tuple[str, Host]] = []
        self._bundles = count()

    def calls(self, step: Step) -> set[Call]:
        """The calls in a step without a fault."""
        found: set[Call] = set()
        for _ in range(RUNS):
            with host_of(self.site) as host:
                out = host.folder / "trace"
                step.before(host)
                with host.traced(step.program, watching(out)):
                    step.during(host)
                self.settle(host, f"{step.name}, no fault")
                found |= {one for one in moments(out, host.folder) if _lasts(one)}
        return found

    def one(self, step: Step, call: Call) -> str | None:
        """One case; what was seen, or None where this run didn't come to that call."""
        with host_of(self.site) as host:
            out = host.folder / "trace"
            step.before(host)
            with host.traced(step.program, injecting(out, host.folder, call, Fault.KILL)):
                step.during(host)
            self.settle(host, f"{step.name}, killed at {call}")
            if not host.killed:
                return None
            print(f"{step.part}: {call}: {hit(out, host.folder)}", flush=True)
            return "killed; the run was stopped" if host.suspended else "killed; the run went on to its end"

    def settle(self, host: Host, case: str) -> None:
        """To the end, or the stop, and what is left then."""
        if not host.suspended:
            (host.folder / "end").touch()
        host.settle()
        assert host.words() == ["begun", "TERM" if host.suspended else "ended"], host.words()
        self.done.append((case, host))

    def audited(self) -> Report:
        """That nothing is missing at the verifier, and that an auditor under the pinned root finds no fault."""
        site, out = self.site, self.site.folder / f"bundle{next(self._bundles)}"
        looked_at, self.done = self.done, []
        done = call("check", "--state", site.verifier.state)
        assert (done.returncode, done.stdout) == (0, ""), done
        bundle = site.verifier.export(out)
        report = audit(FolderReader(bundle), None, chip_table(), root_sha256=site.office.root)
        assert (report.outcome, report.reasons) == ("pass", ())
        done_by = {host.node: (case, host) for case, host in looked_at}
        wrong = []
        for one in report.findings:
            # Of a step before this one, or of a case that failed and was said already.
            case, host = done_by.get(parse_origin(one.origin).node_id, ("", None))
            if host is not None and one.code not in {FindingCode.GAP} | host.expect:
                wrong.append(f"{case}: {one.code}: {one.detail}")
        assert not wrong, "\n".join(wrong)
        no_second_head(list(stored_heads(bundle)))
        exported, runs = stored_receipts(bundle), {run.hash: run for run in report.runs}
        for case, host in looked_at:
            lost = [key for key, receipt in host.receipts.items() if exported.get(key) != receipt]
            assert not lost, f"{case}: receipted, and not in the bundle: {lost}"
            for digest, note in host.leases.items():
                assert (bundle / lease_path(digest)).read_bytes() == note, f"{case}: lease {digest}"
            assert host.run is None or runs[host.run].committed_tflop <= BUDGET + 1, case
        unsaid = [digest for digest in site.office.said if not (bundle / statement_path(digest)).exists()]
        assert not unsaid, f"answered, and not in the bundle: statements {unsaid}"
        shutil.rmtree(out)
        return report


def _lasts(call: Call) -> bool:
    """Whether a call is about what survives: not what is told to whoever looks at the agent."""
    return (
        call.path.partition("/")[0] in ("state", "gate", "notices")
        and (call.makes or call.kind in ("write", "sync", "name"))
        and "/status.json" not in call.path
    )


@pytest.fixture(scope="module")
def hall(quick_folder: Path, library: Path) -> Iterator[Hall]:
    require_strace()
    made = Hall(Path(tempfile.mkdtemp(dir=quick_folder)), library)
    with made.site:
        yield made


@pytest.mark.timeout(5400)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.program}-{step.name.replace(' ', '-')}")
@pytest.mark.skipif(not LONG, reason="long: KEYTURN_FAULTS=long")
def test_each_file_call(hall: Hall, step: Step) -> None:
    cases = choose(hall.calls(step), Fault.KILL)
    seen = meet(step.part, step.name, Fault.KILL, cases, lambda call: hall.one(step, call), together=TOGETHER)
    hall.audited()
    write_down(step.part, Fault.KILL, seen, EXPECTED)


@pytest.mark.skipif(LONG, reason="all of them are run")
def test_some_file_calls(hall: Hall) -> None:
    steps = {call: step for step, call in QUICK}
    seen: Seen = meet(
        "start switch", "some steps", Fault.KILL, steps, lambda call: hall.one(steps[call], call), together=len(QUICK)
    )
    assert len(seen) == len(QUICK)
    hall.audited()
