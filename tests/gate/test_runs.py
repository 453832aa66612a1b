"""Runs that a gate stops, in sessions and in cgroups; and a gate that is killed or upgraded on the way."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from keyturn_agent.switch import gatelink, scope
from keyturn_gate import processes
from keyturn_gate.messages import Target
from tests.support.gates import JOB, Gate, Running, until

Begin = Callable[..., Running]
STUBBORN = "trap 'echo term' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.02; done"


def test_a_run_is_told_stopped_and_killed(served: Gate, begin: Begin) -> None:
    run, other = begin(STUBBORN), begin()
    assert served.grant(run.target, for_s=0.6, grace_s=3600, kill_s=0, signal=int(signal.SIGUSR1))["ok"]
    notice = json.loads(until(lambda: next(served.notices.glob("*.json"), None)).read_text())
    assert (notice["job"], notice["why"], notice["enforced"]) == (JOB, "the lease ends", True)
    assert run.ended() == -signal.SIGKILL
    served.event("ended")
    assert served.kinds() == ["granted", "notice", "stopping", "killed", "ended"]
    assert run.words() == ["ready", "usr1", "term"]
    assert list(served.notices.iterdir()) == []
    # Whoever isn't in that session is left alone.
    assert other.process.poll() is None


def test_a_run_that_ends_at_sigterm_is_not_killed(served: Gate, begin: Begin) -> None:
    run = begin()
    served.grant(run.target, for_s=0.2, kill_s=3600)
    assert run.ended() == -signal.SIGTERM
    served.event("ended")
    assert "killed" not in served.kinds()


def test_a_run_that_is_over_needs_no_stop(served: Gate, begin: Begin) -> None:
    run = begin("echo ready; sleep 0.3")
    served.grant(run.target)
    assert run.ended() == 0
    served.event("ended")
    assert served.kinds() == ["granted", "ended"]


def test_a_cgroup_is_killed_with_all_below_it_and_what_left_the_session(
    served: Gate, begin: Begin, group: Path
) -> None:
    (group / "below").mkdir()
    runaway = (
        f"setsid sh -c 'trap : TERM; echo $$ > {group}/below/cgroup.procs; echo away; while :; do sleep 0.02; done' &"
    )
    run = begin(f"{runaway} {STUBBORN}", group)
    until(lambda: "away" in run.words())
    assert served.grant(run.target, for_s=0.2)["ok"]
    assert run.ended() == -signal.SIGKILL
    served.event("ended")
    assert (group / "below" / "cgroup.procs").read_text() == ""


def test_observing_stops_nothing_and_says_what_it_would(observing: Gate, begin: Begin) -> None:
    run = begin(STUBBORN)
    observing.grant(run.target, for_s=0.2, signal=int(signal.SIGUSR1), grace_s=3600)
    assert "processes would be stopped: the lease ends" in observing.event("would_stop")["detail"]
    observing.event("ended")
    assert run.process.poll() is None
    assert run.words() == ["ready"]
    assert observing.status()["grants"] == []


def test_stop_ends_a_grant_at_once(served: Gate, begin: Begin) -> None:
    run = begin()
    served.grant(run.target)
    assert served.ask(verb="stop", job=JOB, why="suspended")["ok"]
    assert run.ended() == -signal.SIGTERM
    assert served.event("stopping")["detail"].endswith("suspended")
    served.event("ended")
    assert served.ask(verb="stop", job=JOB, why="again") == {
        "ok": False, "code": "no_grant", "detail": "no such grant",
    }  # fmt: skip


def test_a_renewal_puts_the_stop_off(served: Gate, begin: Begin) -> None:
    run = begin()
    served.grant(run.target, for_s=3600, grace_s=7200)
    served.event("notice")
    assert len(list(served.notices.iterdir())) == 1
    assert served.grant(run.target, for_s=7200, lease="c" * 64)["ok"]
    assert list(served.notices.iterdir()) == []
    (granted,) = served.status()["grants"]
    assert (granted["lease"], granted["phase"]) == ("c" * 64, "running")
    assert granted["processes"] > 0


def test_agent_killed_the_gate_holds_the_timers(served: Gate, begin: Begin) -> None:
    """Nobody speaks to the gate after the grant: it stops the run all the same."""
    run = begin()
    served.grant(run.target, for_s=0.5)
    assert run.ended() == -signal.SIGTERM


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_gate_that_is_killed_or_upgraded_signals_nothing_and_goes_on(served: Gate, begin: Begin, how: str) -> None:
    run = begin("trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.02; done")
    served.grant(run.target, for_s=3600)
    getattr(served, how)()
    served.start()
    (granted,) = served.status()["grants"]
    assert granted["phase"] == "running"
    assert run.words() == ["ready"]
    served.grant(run.target, for_s=0.2)
    assert run.ended() == 3
    assert run.words() == ["ready", "term"]


def test_a_gate_that_was_down_at_the_stop_makes_up_for_it(served: Gate, begin: Begin) -> None:
    """SIGTERM when it is back, and from then on the run has its time."""
    run = begin(STUBBORN)
    served.grant(run.target, for_s=0.5, kill_s=0)
    served.kill()
    assert run.process.poll() is None
    served.start()
    assert run.ended() == -signal.SIGKILL
    assert "term" in run.words()


def test_a_reboot_ends_every_grant(served: Gate, begin: Begin) -> None:
    """A state file of another boot: what it grants is over, and a process with the same number is nobody's run."""
    run = begin()
    served.grant(run.target, for_s=3600)
    served.kill()
    path = served.folder / "gate" / "gate.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"boot_id": "00000000-0000-4000-8000-000000000000"}))
    served.start()
    status = served.status()
    assert status["grants"] == []
    assert served.kinds()[-1] == "rebooted"
    assert run.process.poll() is None


def test_a_damaged_state_locks_everything(served: Gate, begin: Begin) -> None:
    run = begin()
    served.grant(run.target)
    served.kill()
    path = served.folder / "gate" / "gate.json"
    path.write_bytes(path.read_bytes()[:-20])
    served.start()
    assert served.status()["grants"] == []
    assert served.kinds() == ["state_lost"]
    assert path.with_suffix(".damaged").exists()
    # The agent says its grant again when it misses it.
    assert served.grant(run.target)["ok"]


def test_what_cannot_be_a_run_is_not_stopped(served: Gate, begin: Begin, group: Path) -> None:
    run, other = begin(), begin()
    elsewhere = run.target | {"session": None, "cgroup": str(group)}
    refused = {
        "another start": run.target | {"start": run.target["start"] + 1},
        "no such process": run.target | {"pid": 2**22},
        "both": run.target | {"cgroup": str(group)},
        "neither": run.target | {"session": None},
        "not in that group": elsewhere,
        "not in that session": run.target | {"session": other.target["session"]},
        "the top of a tree": elsewhere | {"cgroup": str(group.parent)},
        "a folder": elsewhere | {"cgroup": str(served.folder)},
        "dots": elsewhere | {"cgroup": f"{group}/../{group.name}"},
        "a slice": elsewhere | {"cgroup": f"{group.parent}/user.slice"},
    }
    for why, target in refused.items():
        answer = served.grant(target)
        assert (answer["ok"], answer["code"]) == (False, "bad_target"), why
    assert served.status()["grants"] == []


def test_the_gate_itself_is_nobodys_run(served: Gate, begin: Begin, group: Path) -> None:
    run = begin(cgroup=group)
    assert served.process is not None
    (group / "cgroup.procs").write_text(str(served.process.pid))
    try:
        assert served.grant(run.target)["code"] == "bad_target"
    finally:
        (group.parent / "cgroup.procs").write_text(str(served.process.pid))
    assert served.grant(run.target)["ok"]


def test_a_session_whose_number_is_somebody_elses_by_now_is_left_alone(begin: Begin) -> None:
    """The run that had it is over; who has it now began later, as what a run forks does."""
    run = begin()
    target = msgspec.convert(run.target, Target)
    assert processes.members(target) != []
    before = msgspec.structs.replace(target, start=target.start - 1)
    assert processes.members(before) == []
    assert not processes.some(before)


HEADLESS = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall({"aarch64": 93}.get(platform.machine(), 60), 0)
"""
"""Its first thread ends by exit(2), which ends no other."""


def test_a_process_whose_first_thread_ended_is_there_while_another_goes_on(begin: Begin) -> None:
    run = begin(f"exec {sys.executable} -c '{HEADLESS}'")
    until(lambda: b") Z " in Path(f"/proc/{run.process.pid}/stat").read_bytes())
    target = msgspec.convert(run.target, Target)
    assert (processes.some(target), processes.members(target)) == (True, [target.pid])
    assert scope.alive(gatelink.Target(target.pid, target.start, None, target.session))
    processes.kill(target)
    until(lambda: not processes.some(target))
    assert not scope.alive(gatelink.Target(target.pid, target.start, None, target.session))


def test_more_groups_than_are_looked_into_are_never_nobody(
    begin: Begin, group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes that many can be in any of them: the run isn't over before its time."""
    run = begin("echo ready; exec sleep 1000", group)
    target = msgspec.convert(run.target, Target)
    run.close()
    assert not processes.some(target)
    for number in range(3):
        (group / f"below{number}").mkdir()
    assert not processes.some(target)
    monkeypatch.setattr(processes, "_GROUPS", 3)
    assert processes.some(target)
