"""Who computes on a run's chips without being in its group: stopped after it, when it is one of its own and not before.

Real processes, which the stub of NVML lists. They left the group with ``setsid``, or were moved out of a cgroup.
"""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from keyturn_gate import host, processes
from keyturn_gate.strays import TICK_US, Look, Process, Strays, strays
from tests.agent.nvml_stub.stub import Control, Script
from tests.gate.conftest import script
from tests.support.gates import JOB, Gate, Running, gate, until
from tests.support.optional import require

Begin = Callable[..., Running]
OTHER = "d" * 64
PROHIBITED = 2
GENERIC = 999
ALONE = "echo ready; exec sleep 1000"
STUBBORN = "trap 'echo term' TERM; echo ready; while :; do sleep 0.02; done"
ENDS = "trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.02; done"


def listed(folder: Path, control: Control, pids: Sequence[int] = (), others: Sequence[int] = (), **more: Any) -> None:
    """Who computes on GPU-0 from now on, and on GPU-1."""
    made = Script().gpu(0, uuid="GPU-0").gpu(1, uuid="GPU-1")
    for gpu, computing in (("0", pids), ("1", others)):
        for pid in computing:
            made.add("process", gpu, pid, 1024, 50)
    if "fails" in more:
        made.fail("nvmlDeviceGetComputeRunningProcesses_v3", more["fails"], unit="0")
    script(folder, made)
    control.set("reload", 1)
    until(lambda: not control.get("reload"))


@pytest.fixture(autouse=True)
def _pids() -> None:
    require("pids of the kernel", host.first_pids(), "in a namespace of pids nobody is stopped by a number")


def test_who_left_the_session_and_computes_is_stopped_like_the_run(
    served: Gate, folder: Path, control: Control, begin: Begin
) -> None:
    run = begin()
    assert served.grant(run.target)["ok"]
    stray = begin(STUBBORN)
    listed(folder, control, [stray.process.pid])
    served.ask(verb="stop", job=JOB, why="suspended")
    assert run.ended() == -signal.SIGTERM
    assert stray.ended() == -signal.SIGKILL
    listed(folder, control)
    assert stray.words() == ["ready", "term"]
    served.event("ended")
    assert served.kinds() == ["granted", "stopping", "stopping", "killed", "ended"]
    assert control.mode(0) == PROHIBITED


def test_who_was_moved_out_of_the_cgroup_is_stopped_too(
    served: Gate, folder: Path, control: Control, begin: Begin, group: Path
) -> None:
    run, stray = begin(ALONE, group), begin(ENDS, group)
    assert served.grant(run.target, kill_s=3600)["ok"]
    (group.parent / "cgroup.procs").write_text(str(stray.process.pid))
    listed(folder, control, [stray.process.pid])
    # A run that ends by itself leaves nobody behind either.
    run.process.kill()
    assert stray.ended() == 3
    listed(folder, control)
    served.event("ended")
    assert served.kinds() == ["granted", "stopping", "ended"]
    assert f"process {stray.process.pid} computes" in served.event("stopping")["detail"]


def test_who_was_there_before_the_grant_lives(served: Gate, folder: Path, control: Control, begin: Begin) -> None:
    stranger = begin()
    listed(folder, control, [stranger.process.pid])
    run = begin()
    assert served.grant(run.target)["ok"]
    # Also for a gate that is started again meanwhile.
    served.kill()
    served.start()
    served.ask(verb="stop", job=JOB, why="suspended")
    run.ended()
    served.event("ended")
    assert "stopping" in served.kinds()
    assert "survivors" not in served.kinds()
    assert stranger.process.poll() is None
    assert f"in use since before: process {stranger.process.pid}" in served.event("contexts")["detail"]


@pytest.mark.parametrize("shared", [False, True])
def test_no_chip_is_opened_before_it_is_known_who_computes_there(
    served: Gate, folder: Path, control: Control, begin: Begin, shared: bool
) -> None:
    """Else who was there before is taken for one who came with the run, or the other way round."""
    stranger, run, other = begin(), begin(), begin()
    if shared:
        assert served.grant(other.target, job=OTHER)["ok"]
    listed(folder, control, [stranger.process.pid], fails=GENERIC)
    answer = served.grant(run.target)
    assert (answer["ok"], answer.get("code")) == (False, "driver"), answer
    listed(folder, control, [stranger.process.pid])
    assert served.grant(run.target)["ok"]
    served.ask(verb="stop", job=JOB, why="suspended")
    assert run.ended() == -signal.SIGTERM
    served.event("ended")
    assert stranger.process.poll() is None


def test_who_is_of_another_grant_lives(served: Gate, folder: Path, control: Control, begin: Begin) -> None:
    """It computes on a chip that both have, and on one that only the first one had."""
    run, other = begin(), begin()
    assert served.grant(run.target, chips=["GPU-0", "GPU-1"])["ok"]
    assert served.grant(other.target, job=OTHER)["ok"]
    listed(folder, control, [other.process.pid], [other.process.pid])
    served.ask(verb="stop", job=JOB, why="suspended")
    run.ended()
    served.event("ended")
    assert other.process.poll() is None
    assert [grant["job"] for grant in served.status()["grants"]] == [OTHER]


def test_a_gate_that_dies_over_strays_goes_on(served: Gate, folder: Path, control: Control, begin: Begin) -> None:
    run = begin()
    assert served.grant(run.target, kill_s=2)["ok"]
    stray = begin(STUBBORN)
    listed(folder, control, [stray.process.pid])
    served.ask(verb="stop", job=JOB, why="suspended")
    until(lambda: "term" in stray.words())
    until(lambda: json.loads((folder / "gate" / "gate.json").read_text())["grants"][JOB]["strays"])
    served.kill()
    # It is listed no more: what was found is on disk, by its pid and its start.
    script(folder)
    served.start()
    assert stray.ended() == -signal.SIGKILL
    served.event("ended")


def test_observing_says_of_strays_that_they_would_be_stopped(
    folder: Path, stub_environ: dict[str, str], control: Control, begin: Begin
) -> None:
    with gate(folder, "observe", stub_environ) as observing:
        run = begin(ALONE)
        assert observing.grant(run.target)["ok"]
        until(lambda: JOB in json.loads((folder / "gate" / "gate.json").read_text())["before"])
        stray = begin()
        script(folder, Script().gpu(0, uuid="GPU-0").add("process", "0", stray.process.pid, 1024, 50))
        run.process.kill()
        assert f"process {stray.process.pid} computes on its chips" in observing.event("would_stop")["detail"]
        observing.event("ended")
        assert stray.process.poll() is None
        assert control.mode(0) is None


def test_who_cannot_be_shown_to_be_ours_is_said(served: Gate, folder: Path, control: Control, begin: Begin) -> None:
    run = begin(ALONE)
    assert served.grant(run.target)["ok"]
    gone = 2**22 + 1
    listed(folder, control, [gone])
    run.process.kill()
    assert served.event("survivors")["detail"] == f"process {gone} computes on its chips and can't be reached"
    served.event("ended")


def test_a_chip_of_which_the_driver_does_not_say_who_computes_is_not_empty(
    served: Gate, folder: Path, control: Control, begin: Begin
) -> None:
    run = begin(ALONE)
    assert served.grant(run.target)["ok"]
    stray = begin(ENDS)
    listed(folder, control, [stray.process.pid], fails=GENERIC)
    run.process.kill()
    served.event("unseen")
    assert stray.process.poll() is None
    listed(folder, control, [stray.process.pid])
    assert stray.ended() == 3
    listed(folder, control)
    served.event("ended")


def test_a_grant_that_could_not_be_opened_leaves_nobody_behind(
    served: Gate, folder: Path, control: Control, begin: Begin
) -> None:
    """One of its chips was open for a moment."""
    stray = begin(ENDS)
    assert served.grant(chips=["GPU-0", "GPU-9"])["code"] == "no_chip"
    assert served.status()["grants"] == []
    listed(folder, control, [stray.process.pid])
    assert stray.ended() == 3
    listed(folder, control)
    assert served.event("ended")["detail"] == "not opened: no chip GPU-9 on this host"


def test_a_number_that_is_somebody_elses_by_now_is_not_hit(begin: Begin) -> None:
    run = begin(ENDS)
    start = run.target["start"]
    processes.tell(run.process.pid, start - 1, signal.SIGKILL)
    processes.tell(run.process.pid, None, signal.SIGKILL)
    assert not processes.alive(Process(pid=run.process.pid, start=start - 1))
    assert processes.alive(Process(pid=run.process.pid, start=start))
    processes.tell(run.process.pid, start, signal.SIGTERM)
    assert run.ended() == 3


def test_in_another_namespace_of_pids_nobody_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.seen([os.getpid()])[0].start is not None
    monkeypatch.setattr(host, "first_pids", lambda: False)
    assert processes.seen([os.getpid()]) == (Process(pid=os.getpid(), start=None),)


def process(pid: int, start: int | None = 10) -> Process:
    return Process(pid=pid, start=start)


AT = 100 * TICK_US
CASES: list[tuple[str, Process, dict[str, Any], Strays]] = [
    ("came with the run", process(7), {}, Strays((process(7),), ())),
    ("was there before", process(7), {"before": [process(7)]}, Strays((), ())),
    ("has the number of one who was", process(7), {"before": [process(7, 9)]}, Strays((process(7),), ())),
    ("was there, out of reach", process(7, None), {"before": [process(7, None)]}, Strays((), ())),
    ("has the number of one who was just gone", process(7), {"before": [process(7, None)]}, Strays((process(7),), ())),
    ("is another grant's", process(7), {"spared": {7}}, Strays((), ())),
    ("isn't in /proc", process(7, None), {}, Strays((), (7,))),
    ("may have its number since the look", process(7, 100), {}, Strays((), (7,))),
    ("had it just before", process(7, 99), {}, Strays((process(7, 99),), ())),
    ("began after the end, on a shared chip", process(7, 60), {"shared": {"A"}}, Strays((), ())),
    ("began before the end, on a shared chip", process(7, 40), {"shared": {"A"}}, Strays((process(7, 40),), ())),
    ("began after the end, on its own chip", process(7, 60), {"shared": {"B"}}, Strays((process(7, 60),), ())),
    ("computes elsewhere", process(7), {"chips": {"B"}}, Strays((), ())),
]


@pytest.mark.parametrize(("who", "there", "changes", "expected"), CASES, ids=[case[0] for case in CASES])
def test_who_is_a_stray(who: str, there: Process, changes: dict[str, Any], expected: Strays) -> None:
    fields: dict[str, Any] = {"chips": {"A"}, "before": [], "spared": set(), "shared": set(), "closed_us": 50 * TICK_US}
    assert strays(Look(AT, {"A": (there,), "C": None}), **fields | changes) == expected


def test_a_look_tells_of_chips_that_are_not_there_and_not_of_those_that_fail() -> None:
    look = Look(AT, {"A": (), "C": None})
    assert (look.tells(["A", "B"]), look.tells(["A", "C"])) == (True, False)
