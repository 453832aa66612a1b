"""The agent on NVML: in the stub's time against a verifier in memory, and as a process against the real one."""

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from keyturn_agent.procs import Attribution, Procs
from keyturn_protocol.bundle import receipt_path, segment_path
from keyturn_protocol.entries import (
    ClockStep,
    Degraded,
    Entry,
    Gap,
    Inventory,
    Retired,
    Shutdown,
    Usage,
    WorkloadEnded,
    WorkloadStarted,
    parse_entry,
)
from keyturn_protocol.ids import Origin
from keyturn_protocol.segment import parse_segment
from keyturn_protocol.usage import EMPTY, fold, silence
from tests.agent.conftest import Sources
from tests.agent.hosts import START_US
from tests.agent.live import LiveHost, RealTime, agent
from tests.agent.nvml_stub.stories import SECOND_US, steady_gpu, two_gpus
from tests.agent.nvml_stub.stub import START_US as STORY_US
from tests.agent.nvml_stub.stub import Control, Script, Stub
from tests.agent.proc import Proc
from tests.support.verifier import Verifier


@pytest.fixture
def live(tmp_path: Path, stub: Stub, make: Sources) -> LiveHost:
    return LiveHost(tmp_path / "state", stub, make)


def usages(entries: list[Entry]) -> list[Usage]:
    return [entry for entry in entries if isinstance(entry, Usage)]


def contiguous(entries: list[Entry]) -> bool:
    """Whether on CLOCK_BOOTTIME there is no hole between usage entries, whatever the wall clock says."""
    bodies = [entry.body for entry in usages(entries)]
    return all(a.mono_from_us + a.to_us - a.from_us == b.mono_from_us for a, b in pairwise(bodies))


def inventories(entries: list[Entry]) -> list[list[str]]:
    return [[c.uuid for c in e.body.chips] for e in entries if isinstance(e, Inventory)]


def divided(*, second_from: int = 0, second_to: int = 2**60) -> Script:
    """One GPU with two MIG instances, the second one there for a part of the story."""
    script = Script().gpu(0, mig=1).steady("0")
    for index in range(2):
        script.unit(
            f"0.{index}", uuid=f"MIG-{index}", name="NVIDIA H100 PCIe MIG 3g.40gb", gpu_instance=index + 1, sms=60,
            memory_mib_total=40320, gpu_slices=3, compute_slices=3, gpm=1,
        ).steady(f"0.{index}")  # fmt: skip
    return script.unit("0.1", **{"from": STORY_US + second_from, "to": STORY_US + second_to})


def test_it_meters_and_a_stop_closes_nvml(live: LiveHost) -> None:
    entries = live.run(steady_gpu(), 30)
    bodies = [e.body for e in usages(entries)]
    # The first sample has none before it, and the last one is the stop's.
    assert 28 * 300_000 <= sum(b.energy_mj[0] or 0 for b in bodies) <= 30 * 300_000
    assert isinstance(entries[-1], Shutdown)
    assert live.stub.control.get("sessions") == 0
    assert not fold(Origin("x"), EMPTY, entries).gaps[1:]


def test_a_mig_instance_comes_and_what_is_measured_goes_on_across_it(live: LiveHost) -> None:
    entries = live.run(divided(second_from=15 * SECOND_US), 50)
    assert [len(chips) for chips in inventories(entries)] == [2, 3]
    spans = [(e.body.from_us, e.body.to_us) for e in usages(entries) if e.body.samples[0]]
    assert all(to == start for (_, to), (start, _) in pairwise(spans)), "no hole in the old chips"
    new = [e.body for e in usages(entries) if len(e.body.samples) == 3 and e.body.samples[2]]
    assert sum(b.tensor_mcycles[2] or 0 for b in new) > 0
    assert [e.body.cause for e in entries if isinstance(e, Gap)] == ["newly_listed"]
    assert not any(isinstance(e, Retired) for e in entries)


def test_a_destroyed_mig_instance_is_retired_and_owed_nothing_more(live: LiveHost) -> None:
    entries = live.run(divided(second_to=15 * SECOND_US), 50)
    (retired,) = (e for e in entries if isinstance(e, Retired))
    assert retired.body.chips == ["MIG-1"]
    assert [len(chips) for chips in inventories(entries)] == [3, 2]
    folded = fold(Origin("x"), EMPTY, entries)
    assert "MIG-1" not in {gap.chip for gap in silence(Origin("x"), folded.state, START_US + 1000 * SECOND_US)}
    # What it was lost for before that is a gap, up to its retirement.
    (gap,) = (gap for gap in folded.gaps if gap.chip == "MIG-1" and gap.to_us > START_US + STORY_US + 5 * SECOND_US)
    assert gap.to_us == retired.time_us
    assert gap.cause == "invalid_argument"


def test_a_mig_instance_that_was_destroyed_while_the_agent_was_down_is_retired_at_the_start(live: LiveHost) -> None:
    live.run(divided(second_to=15 * SECOND_US), 5)
    entries = live.run(divided(second_to=0), 5)
    (retired,) = (e for e in entries if isinstance(e, Retired))
    assert retired.body.chips == ["MIG-1"]
    assert isinstance(entries[retired.seq + 1], Inventory)


def test_a_gpu_that_is_gone_is_never_retired(live: LiveHost) -> None:
    live.run(two_gpus(), 5)
    entries = live.run(Script().gpu(0).steady("0"), 5)
    assert not any(isinstance(e, Retired) for e in entries)
    owed = silence(Origin("x"), fold(Origin("x"), EMPTY, entries).state, START_US + 1000 * SECOND_US)
    assert len(owed) == 2, "a GPU that went silent stays owed"


def test_a_field_that_is_refused_in_mid_run_is_listed_as_not_measured(live: LiveHost) -> None:
    script = steady_gpu().fail("nvmlGpmSampleGet", 4, from_us=STORY_US + 12 * SECOND_US)
    entries = live.run(script, 30)
    first, second = (e.body.chips[0] for e in entries if isinstance(e, Inventory))
    assert "tensor_mcycles" in first.measured_by
    assert second.not_measured["tensor_mcycles"].startswith("no_permission")
    assert [e.body.cause for e in entries if isinstance(e, Degraded)] == ["fields_lost"]
    with_tensor = [e.body.tensor_mcycles[0] is not None for e in usages(entries)]
    assert with_tensor == sorted(with_tensor, reverse=True)
    assert {True, False} == set(with_tensor)


def test_a_host_whose_driver_is_dead_at_the_start_says_so_and_goes_on_when_it_is_back(live: LiveHost) -> None:
    script = steady_gpu().fail("nvmlInitWithFlags", 9, to_us=STORY_US + 8 * SECOND_US)
    entries = live.run(script, 40)
    assert inventories(entries)[0] == []
    assert [len(chips) for chips in inventories(entries)] == [0, 1]
    gaps = [e.body for e in entries if isinstance(e, Gap)]
    assert {g.cause for g in gaps} >= {"driver_not_loaded"}
    assert all(g.chips is None for g in gaps if g.cause == "driver_not_loaded")
    (degraded,) = (e.body for e in entries if isinstance(e, Degraded))
    assert degraded.cause == "driver_not_loaded"
    assert sum(e.body.energy_mj[0] or 0 for e in usages(entries)) > 0


@pytest.mark.parametrize("step_us", [1_000_000, -1_000_000, 86_400_000_000])
def test_a_wall_clock_that_is_set_is_a_step_and_loses_no_time(live: LiveHost, step_us: int) -> None:
    live.clock.steps.append((STORY_US + 12 * SECOND_US, step_us))
    entries = live.run(steady_gpu(), 30)
    (step,) = (e for e in entries if isinstance(e, ClockStep))
    assert step.body.step_us == step_us
    assert step.body.after_us == step.time_us
    bodies = [e.body for e in usages(entries)]
    assert contiguous(entries)
    assert 28 * 300_000 <= sum(b.energy_mj[0] or 0 for b in bodies) <= 30 * 300_000


def test_a_wall_clock_that_stands_still_is_said_when_it_begins_and_when_it_is_over(live: LiveHost) -> None:
    live.clock.steps += [(STORY_US + second * SECOND_US, -SECOND_US) for second in range(12, 45)]
    entries = live.run(steady_gpu(), 80)
    steps = [e.body.step_us for e in entries if isinstance(e, ClockStep)]
    assert len(steps) == 2
    assert sum(steps) == -33 * SECOND_US
    # Measured all the time, in entries of the usual length, none of which is dated far from what the clock says.
    bodies = [e.body for e in usages(entries)]
    assert len(bodies) <= 11
    assert all(abs(e.body.to_us - e.time_us) <= 11 * SECOND_US for e in usages(entries))
    assert contiguous(entries)
    assert 76 * SECOND_US <= sum(b.to_us - b.from_us for b in bodies) <= 80 * SECOND_US


def test_a_wall_clock_that_drifts_by_less_is_no_step(live: LiveHost) -> None:
    live.clock.steps.append((STORY_US + 12 * SECOND_US, 400_000))
    assert not any(isinstance(e, ClockStep) for e in live.run(steady_gpu(), 30))


def test_whose_the_chips_were(live: LiveHost, tmp_path: Path) -> None:
    proc = Proc(tmp_path / "proc")
    proc.add(10, "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0")
    proc.add(11, "/system.slice/vllm.service")
    script = two_gpus().gpu(2).steady("2").gpu(3).steady("3")
    script.add("process", 0, 10, 1024, 90).add("process", 1, 10, 1024, 60).add("process", 1, 11, 1024, 20)
    # On the third somebody whom nobody knows, on the fourth nobody.
    script.add("process", 2, 4711, 1024, 50)
    entries = live.run(script, 25, attribution=Attribution(Procs(proc.root, cluster="lab")))
    started = {e.body.id: (e.body.class_, e.body.chips) for e in entries if isinstance(e, WorkloadStarted)}
    assert started == {"slurm:lab:7": ("shared", [0, 1]), "systemd:vllm.service": ("shared", [1])}
    expected = [
        (0, "slurm:lab:7", "exclusive", 1_000_000),
        (1, "slurm:lab:7", "shared", 750_000),
        (1, "systemd:vllm.service", "shared", 250_000),
    ]
    for entry in usages(entries):
        assert [(s.chip, s.id, s.class_, s.share_ppm) for s in entry.body.workloads] == expected
    rows = fold(Origin("x"), EMPTY, entries).rows
    assert {key.workload for key in rows} == {"slurm:lab:7", "systemd:vllm.service", "unattributed"}


def test_without_the_host_s_pids_the_log_says_so(live: LiveHost, tmp_path: Path) -> None:
    proc = Proc(tmp_path / "proc", "pid:[4026532999]")
    proc.add(10, "/system.slice/innocent.service")
    script = steady_gpu().add("process", 0, 10, 1024, 90)
    entries = live.run(script, 15, attribution=Attribution(Procs(proc.root)))
    (degraded,) = (e for e in entries if isinstance(e, Degraded))
    assert degraded.body.cause == "pid_namespace"
    assert "pid namespace" in (degraded.body.detail or "")
    assert isinstance(entries[degraded.seq - 1], Inventory)
    assert {key.workload for key in fold(Origin("x"), EMPTY, entries).rows} == {"unattributed"}


def test_a_workload_that_ended_while_the_agent_was_down_has_ended(live: LiveHost, tmp_path: Path) -> None:
    proc = Proc(tmp_path / "proc")
    proc.add(1, "/init.scope")
    proc.add(10, "/system.slice/a.service")
    proc.add(11, "/system.slice/b.service")
    both = two_gpus().add("process", 0, 10, 1024, 90).add("process", 1, 11, 1024, 90)
    attribution = Attribution(Procs(proc.root))
    live.run(both, 12, attribution=attribution)
    size = len(live.verifier.entries())
    one = two_gpus().add("process", 0, 10, 1024, 90)
    entries = live.run(one, 12, attribution=attribution)[size:]
    (ended,) = (e for e in entries if isinstance(e, WorkloadEnded))
    assert (ended.body.id, ended.body.reason) == ("systemd:b.service", "gone while the agent was down")
    # The other is announced again: the chips may have other numbers by now.
    (started,) = (e for e in entries if isinstance(e, WorkloadStarted))
    assert started.body.id == "systemd:a.service"


# -- as a process, in real time


@pytest.fixture
def control(tmp_path: Path) -> Control:
    return Control(tmp_path / "control")


def status(state: Path) -> str:
    return (state / "status.json").read_text()


def until(running: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
    while not condition():
        assert running.poll() is None, running.stderr and running.stderr.read()
        time.sleep(0.05)


def test_a_live_run_in_which_a_gpu_falls_off_the_bus_passes_the_audit(
    tmp_path: Path, library: Path, control: Control
) -> None:
    two_gpus().write(tmp_path / "script.txt")
    state = tmp_path / "host"
    (tmp_path / "site").mkdir()
    with Verifier(tmp_path / "site") as verifier, RealTime(control):
        joined = agent(
            ["enroll", "--source", "nvml", "--state", state, "--verifier", verifier.client.url,
             "--trust", verifier.state / "trust.json"],
            library, tmp_path, KEYTURN_JOIN_TOKEN=verifier.join_token(),
        )  # fmt: skip
        _, talk = joined.communicate(timeout=60)
        assert joined.returncode == 0, talk
        running = agent(
            ["run", "--source", "nvml", "--state", state, "--period", "200ms", "--interval", "1", "--jitter", "0",
             "--checkpoint-every", "1", "--drain", "60"],
            library, tmp_path,
        )  # fmt: skip
        try:
            # However slowly it starts here: first it meters both.
            until(running, lambda: (state / "status.json").exists() and '"readable":true' in status(state))
            until(running, lambda: control.get("now_us") > STORY_US + 4 * SECOND_US)
            lost_us = control.get("now_us") + SECOND_US
            two_gpus().fail("*", 15, unit="1", from_us=lost_us).write(tmp_path / "script.txt")
            control.set("reload", 1)
            until(running, lambda: control.get("now_us") > lost_us + 3 * SECOND_US)
            running.terminate()
            _, talk = running.communicate(timeout=60)
            assert running.returncode == 0, talk
        finally:
            running.kill()
            running.communicate()
        bundle = verifier.export(tmp_path / "bundle")
        report = verifier.audit(bundle)
    assert report.outcome == "pass", report.reasons
    entries: list[Entry] = []
    segments = [parse_segment(path.read_bytes()) for path in bundle.rglob("*.segment")]
    for segment in sorted(segments, key=lambda s: s.start):
        assert (bundle / receipt_path(segment_path(segment.name, segment.start, segment.end))).exists()
        entries += map(parse_entry, segment.lines)
    kinds = Counter(type(e).__name__ for e in entries)
    assert kinds["Genesis"] == kinds["Inventory"] == kinds["Shutdown"] == 1
    assert sum(e.body.energy_mj[0] or 0 for e in usages(entries)) >= 300_000
    samples = [e.body.samples for e in usages(entries)]
    assert samples[0][1] > 0
    assert samples[-1][1] == 0, "the lost GPU has no values at the end"
    assert samples[-1][0] > 0
    # Where the tests run in a container, it is said that owners can't be told.
    assert {e.body.cause for e in entries if isinstance(e, Degraded)} - {"pid_namespace", "hidepid"} == {"gpu_lost"}
    assert {e.body.cause for e in entries if isinstance(e, Gap)} == {"gpu_lost"}


def test_flags_of_the_other_source_are_refused(tmp_path: Path, library: Path) -> None:
    for arguments, flag in (
        (["--source", "nvml", "--fast"], "--fast"),
        (["--source", "nvml", "--recording", "x"], "--recording"),
        (["--recording", "x", "--period", "1s"], "--period"),
        (["--source", "nvml", "--period", "1x"], "--period"),
    ):
        done = agent(["run", "--state", tmp_path / "none", *arguments], library, tmp_path)
        _, talk = done.communicate(timeout=60)
        assert done.returncode == 2
        assert flag in talk
