"""What a host does where asking for a lease goes wrong on its own side, step by step."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from keyturn_agent.errors import AgentError, RefusedError
from keyturn_agent.ports import Answer
from keyturn_agent.switch import lease_files
from keyturn_agent.switch.asking import ToExec, Told
from keyturn_agent.switch.ending import Ending
from keyturn_agent.switch.errands import Done
from keyturn_agent.switch.jobs import Jobs, Live, pick
from keyturn_agent.switch.lease_answer import NoLease, Note, NotYet, Said, TooLate, said
from keyturn_agent.switch.lease_state import Book, Holding, Job, Now, Phase, Place
from keyturn_agent.switch.leasing import Leasing
from keyturn_agent.switch.permits import Permits
from keyturn_agent.switch.spec import NOTHING
from keyturn_agent.switch.timers import Timers
from keyturn_protocol.api import ProblemCode, problem
from keyturn_protocol.canonical import encode
from keyturn_protocol.entries import Body
from keyturn_protocol.entry_log import DegradedBody
from keyturn_protocol.entry_switch import PermitBody, SpecChecks
from keyturn_protocol.permit import Opened, open_permit_bundle, parse_permit_bundle
from tests.support.assembly import Assembly
from tests.support.parties import NAME, changed

NOW = Now(50_000_000, 1_790_000_000_000_000)


class Full:
    """The daemon's hands where the disk is full: what is written waits in memory, and the log doesn't grow."""

    writable = False

    def __init__(self) -> None:
        self.held: list[Body] = []
        self.sealed = 0

    def write(self, bodies: Sequence[Body]) -> None:
        self.held += bodies

    def checkpoint(self) -> None:
        self.sealed += 1

    def relist(self) -> None:
        raise AssertionError("no gate here changes")

    def flush(self) -> None:
        pass


class Listener:
    def __init__(self) -> None:
        self.heard: list[ToExec] = []

    def tell(self, message: ToExec) -> None:
        self.heard.append(message)


class Asking:
    """A host with one command that looks for a lease; what isn't needed for that isn't there."""

    def __init__(self, folder: Path, *, ask: bool = True) -> None:
        nothing: Any = None
        log = SimpleNamespace(size=41, name=SimpleNamespace(origin="kt.example/node/a/1"))
        store: Any = SimpleNamespace(folder=folder, log=log)
        clock: Any = SimpleNamespace(now=lambda: NOW)
        self.hands, self.listener = Full(), Listener()
        self.jobs = Jobs(store, clock, nothing, lambda: None)
        self.jobs.hands = self.hands
        self.permits = Permits(self.jobs, nothing, nothing, nothing, nothing)
        self.leasing = Leasing(self.jobs, nothing, nothing, self.permits, nothing, notices=False)
        visitor: Any = self.listener
        self.live = Live(JOB, visitor=visitor)
        if ask:
            self.jobs.add(self.live)


JOB = Job(
    job="1" * 64, boot_id="0c6b1d9e-0000-4000-8000-000000000001", kind="allowance", run=None, lineage="aurora",
    group="0", hosts=1, chips=["GPU-0"], spec=NOTHING, approved={}, signal=None, phase="looking", asked=None,
    lease=None, place=None, bounds=None, reported_us=0, why="",
)  # fmt: skip


def test_full_disk_asks_for_no_lease_with_another_entrys_place_in_the_log(tmp_path: Path) -> None:
    host = Asking(tmp_path)
    host.leasing.ask(host.live)
    assert (host.live.job.asked, host.live.phase, host.hands.held, host.hands.sealed) == (None, Phase.LOOKING, [], 0)
    assert host.live.again_us > NOW.mono_us
    assert "no room on the disk" in str(host.listener.heard)


def test_what_an_amendment_replaced_is_unchecked_where_a_lease_is_asked_for_again(tmp_path: Path) -> None:
    hall = Assembly()
    run = hall.approved()
    log: Any = SimpleNamespace(size=41, name=SimpleNamespace(origin="kt.example/node/a/1"), chain=NOW)
    host = Asking(tmp_path)
    host.hands.writable = True
    host.jobs.store.log = log
    spec = dict(hall.switch.runs[run].spec)
    checked = SpecChecks(argv="verified", config="verified", data="declared", image="unchecked")
    host.live.change(kind="run", run=run, lineage=None, spec=checked, approved=spec)
    for amended, left in (({}, checked), ({"argv": "5" * 64, "data": "6" * 64}, changed(NOTHING, config="verified"))):
        if amended:
            hall.amend(run, "lab-a/bob", "operator-b/eve", "office/ivy", spec=spec | amended)
        host.live.opened = open_permit_bundle(parse_permit_bundle(hall.bundle(run)), hall.root, NAME)
        host.leasing.ask(host.live)
        asked = host.hands.held[-1]
        assert isinstance(asked, PermitBody)
        assert asked.spec == left


def test_an_answer_that_breaks_what_reads_it_ends_neither_the_agent_nor_the_wait(tmp_path: Path) -> None:
    """Of a verifier that is hostile nothing is known, also not which error its answer is."""
    host = Asking(tmp_path)
    for answered in (host.permits.answered, host.leasing.answered):
        host.live.again_us = 0
        answered(host.live, Done("", None, AgentError("errand", "RecursionError: too deep")))
        assert isinstance(host.listener.heard[-1], Told)
        assert host.live.again_us > NOW.mono_us
    assert list(host.jobs) == [host.live]


def test_a_job_that_ends_at_the_start_of_an_agent_takes_no_other_with_it(tmp_path: Path) -> None:
    """All that an agent before this one held stays on disk until each of it has had its last word."""
    held = Holding(sha256="0" * 64, origin="kt.example/node/a/1", drawn_us=1)
    two = [changed(JOB, job=number * 64, lease=held, phase="running") for number in "12"]
    lease_files.keep(tmp_path, Book(v=1, origin=held.origin, jobs=two, sequences={}, gate_seq=0))
    jobs = Asking(tmp_path, ask=False).jobs
    first, second = jobs.take_up()
    jobs.drop(first)
    assert lease_files.load(tmp_path).jobs == [second.job]


def test_what_the_gate_said_is_not_said_again_by_the_next_agent(tmp_path: Path) -> None:
    host = Asking(tmp_path, ask=False)
    host.jobs.keep()
    host.jobs.gate_said(7)
    assert Asking(tmp_path, ask=False).jobs.gate_seq == 7


def answer(code: ProblemCode, detail: str, retry_after_s: int | None = None) -> Answer:
    body = problem(code, detail)
    return Answer(body.status, "application/problem+json", retry_after_s, encode(body))


@pytest.mark.parametrize(
    ("answer", "means"),
    [
        (Answer(200, "text/plain", None, b"a lease"), Note(b"a lease")),
        (answer(ProblemCode.LEASE_REFUSED, "budget: nothing is left"), NoLease("budget", "budget: nothing is left", 5)),
        (answer(ProblemCode.LEASE_REFUSED, "too_late: 700 s ago"), TooLate()),
        (answer(ProblemCode.WAITING, "one host of two", 7), NotYet("one host of two", 7)),
        (answer(ProblemCode.BUSY, "too_late: or not"), NotYet("too_late: or not", 5)),
        (Answer(502, "text/html", None, b"<h1>Bad Gateway</h1>"), NotYet("HTTP 502", 5)),
        (Answer(422, "text/html", None, b"<h1>No</h1>"), NotYet("HTTP 422", 5)),
    ],
)
def test_what_a_verifier_answers_and_what_follows_from_it(answer: Answer, means: Said) -> None:
    assert said(answer) == means


def test_the_stop_of_a_suspension_is_kept_before_the_permit_that_says_it(tmp_path: Path) -> None:
    """After a crash between the two the permit isn't news any more, and nobody else would say when to stop."""
    hall = Assembly()
    run = hall.approved()
    start = hall.start(run)
    hall.suspend(run, "office/ivy")
    opened = open_permit_bundle(parse_permit_bundle(hall.bundle(run)), hall.root, NAME)
    held = Holding(sha256=start.lease.hash.hex(), origin="kt.example/node/a/1", drawn_us=1)
    host = Asking(tmp_path, ask=False)
    live = Live(changed(JOB, kind="run", run=run, lineage=None, lease=held, phase="running"), lease=start.lease.lease)
    host.jobs.add(live)
    host.jobs.keep()

    def kept(_: Opened) -> None:
        (job,) = lease_files.load(tmp_path).jobs
        assert job.bounds is not None
        assert job.bounds.said is not None
        assert "suspended by office/ivy" in job.bounds.said.why

    pin: Any = SimpleNamespace(check=lambda opened: None, take=kept)
    nothing: Any = None
    assert Permits(host.jobs, nothing, pin, nothing, Timers(host.jobs, 1)).answered(live, Done("", opened, None))


def test_a_job_gets_the_chips_that_it_names_or_all_that_nobody_has() -> None:
    assert pick(["GPU-1", "GPU-0"], None) == ["GPU-0", "GPU-1"]
    assert pick(["GPU-1", "GPU-0"], ["GPU-1", "GPU-1"]) == ["GPU-1"]
    with pytest.raises(RefusedError, match="not a free chip of this host: GPU-2"):
        pick(["GPU-0"], ["GPU-2", "GPU-0"])
    with pytest.raises(RefusedError, match="no chip of this host is free"):
        pick([], None)


def test_a_command_that_is_refused_as_it_begins_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its process goes away by itself, a moment later: that isn't work after the end of a lease."""
    host = Asking(tmp_path, ask=False)
    jobs: Any = host.jobs
    jobs.metering = SimpleNamespace(charged_flop=lambda subject: 0)
    gating: Any = SimpleNamespace(let_go=lambda live, now: True)
    ending = Ending(jobs, gating)
    here = Place(pid=os.getpid(), start=0, cgroup=None, session=os.getsid(0))
    held = Holding(sha256="0" * 64, origin="kt.example/node/another/1", drawn_us=1)
    for refused, left in ((True, []), (False, ["survivors"])):
        stub: Any = Listener()
        live = Live(changed(JOB, place=here, lease=held, phase="starting"), stub=stub)
        jobs.add(live)
        if refused:
            ending.refuse(live, RefusedError("gate", "no gate"))
        else:
            ending.end(live, "the lease ends")
        ending.step(live, NOW)
        assert [body.cause for body in host.hands.held if isinstance(body, DegradedBody)] == left
        assert list(jobs) == []
