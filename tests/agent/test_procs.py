"""From pids to workloads over /proc, made up and real; and from them to shares."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn_agent.procs import (
    GONE,
    HIDEPID,
    NO_OWNER,
    NOT_LISTED,
    OTHER_NAMESPACE,
    Attribution,
    Procs,
    in_host_pids,
    real_uid,
    slurm_cluster,
    start_time,
)
from keyturn_agent.sharing import shares_of
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.ids import WorkloadId, workload_id
from tests.agent.proc import Proc
from tests.agent.samples import header


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


def test_by_group_then_by_user_then_nobody_s(proc: Proc) -> None:
    proc.add(10, "/system.slice/vllm.service")
    proc.add(11, "/", uid=1234)
    proc.add(12, "/", uid=65534)
    procs = Procs(proc.root)
    assert procs.workloads([10, 11, 12, 13]) == {10: "systemd:vllm.service", 11: "user:1234", 12: None, 13: None}
    assert procs.unattributed == {NO_OWNER: 1, GONE: 1}
    procs.workloads([10])
    assert not procs.unattributed


def test_a_name_with_brackets_and_spaces_hides_nothing(proc: Proc) -> None:
    proc.add(10, "/system.slice/a.service", start=4711, name="a) S 1 2 (x")
    assert start_time((proc.root / "10" / "stat").read_bytes()) == 4711


def test_a_pid_that_was_given_out_again_is_another_process(proc: Proc) -> None:
    proc.add(10, "/system.slice/a.service", start=1)
    procs = Procs(proc.root)
    assert procs.workloads([10])[10] == "systemd:a.service"
    proc.add(10, "/system.slice/b.service", start=2)
    assert procs.workloads([10])[10] == "systemd:b.service"


def test_a_process_that_just_ended_is_still_whose_it_was_once(proc: Proc) -> None:
    proc.add(10, "/system.slice/a.service")
    procs = Procs(proc.root)
    procs.workloads([10])
    proc.remove(10)
    assert procs.workloads([10])[10] == "systemd:a.service"
    procs.workloads([])
    assert procs.workloads([10])[10] is None, "forgotten with the first look that doesn't list it"


def test_a_process_that_is_moved_is_found_in_its_new_group(proc: Proc) -> None:
    proc.add(10, "/system.slice/slurmstepd.scope/system")
    procs = Procs(proc.root, cluster="lab")
    assert procs.workloads([10])[10] == "user:1000"
    proc.add(10, "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0")
    assert [procs.workloads([10])[10] for _ in range(12)][-1] == "slurm:lab:7"


@pytest.mark.parametrize("name", ["stat", "status"])
def test_what_went_while_it_was_read_is_gone(proc: Proc, name: str) -> None:
    proc.add(10, "/")
    (proc.root / "10" / name).write_bytes(b"")
    procs = Procs(proc.root)
    assert procs.workloads([10]) == {10: None}
    assert procs.unattributed == {GONE: 1}


def test_in_a_pid_namespace_of_its_own_nothing_is_looked_up(tmp_path: Path) -> None:
    proc = Proc(tmp_path / "proc", "pid:[4026532999]")
    proc.add(10, "/system.slice/innocent.service")
    procs = Procs(proc.root)
    assert procs.workloads([10]) == {10: None}
    assert procs.unattributed == {OTHER_NAMESPACE: 1}
    assert not in_host_pids(proc.root)
    assert not in_host_pids(tmp_path / "nothing")


def test_what_keeps_owners_from_being_told_is_said(proc: Proc, tmp_path: Path) -> None:
    proc.add(1, "/init.scope")
    assert Procs(proc.root).blind is None
    proc.remove(1)
    found = Procs(proc.root).blind
    assert found is not None
    assert found[0] == HIDEPID
    elsewhere = Proc(tmp_path / "elsewhere", "pid:[4026532999]")
    found = Attribution(Procs(elsewhere.root)).blind
    assert found is not None
    assert found[0] == OTHER_NAMESPACE
    assert Procs(elsewhere.root, label=A).blind is None, "the operator has said it"


def test_a_label_overrides_what_groups_say_and_needs_no_proc(tmp_path: Path) -> None:
    procs = Procs(tmp_path / "none", label=workload_id("run:mine"))
    assert procs.workloads([1, 2]) == {1: "run:mine", 2: "run:mine"}
    assert not procs.unattributed


def test_the_user_is_the_real_one_and_not_the_folder_s_owner() -> None:
    assert real_uid(Path("/proc/self/status").read_bytes()) == os.getuid()
    assert real_uid(b"Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n") == 1000


def test_real_processes() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        procs = Procs()
        if not in_host_pids():
            pytest.skip("this test's own pid namespace isn't the host's")
        found = procs.workloads([os.getpid(), child.pid])
        assert found[os.getpid()] is not None
        assert found[child.pid] == found[os.getpid()]
        started = [start_time(Path(f"/proc/{pid}/stat").read_bytes()) for pid in (os.getpid(), child.pid)]
        assert started[0] <= started[1]
    finally:
        child.communicate(b"\n")
    assert Procs().workloads([child.pid]) == {child.pid: None}


def test_the_cluster_s_name(tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    configless = tmp_path / "run" / "slurm.conf"
    assert slurm_cluster([conf, configless]) == "unknown"
    configless.parent.mkdir()
    configless.write_text("SlurmctldHost=c clustername=jura\n")
    assert slurm_cluster([conf, configless]) == "jura"
    conf.write_text("# ClusterName=no\nOldClusterName=x\nClusterName = alps # ours\nControlMachine=c\n")
    assert slurm_cluster([conf, configless]) == "alps"


# -- shares


@dataclass(frozen=True)
class On:
    pid: int
    sm_util_ppm: int | None = None
    present_ppm: int = 1_000_000


GPU = header(1).chips[0]


def chip(role: str = "gpu") -> Chip:
    values = {name: getattr(GPU, name) for name in Chip.__struct_fields__}
    return Chip(**values | {"role": role, "parent": "GPU-x" if role == "mig_instance" else None})


A, B = workload_id("slurm:lab:1"), workload_id("slurm:lab:2")


@pytest.mark.parametrize(
    ("role", "processes", "owners", "expected"),
    [
        ("gpu", [], {}, []),
        ("gpu", None, {}, []),
        ("gpu", [On(1)], {1: A}, [(A, "exclusive", 1_000_000)]),
        ("gpu", [On(1), On(2)], {1: A, 2: A}, [(A, "exclusive", 1_000_000)]),
        ("gpu", [On(1)], {1: None}, []),
        ("gpu", [On(1), On(2)], {1: A, 2: None}, [(A, "shared", 500_000)]),
        ("gpu", [On(1), On(2)], {1: A, 2: B}, [(A, "shared", 500_000), (B, "shared", 500_000)]),
        ("gpu", [On(1, 600_000), On(2, 200_000)], {1: B, 2: A}, [(A, "shared", 250_000), (B, "shared", 750_000)]),
        ("gpu", [On(1, 600_000), On(2)], {1: A, 2: B}, [(A, "shared", 1_000_000), (B, "shared", 0)]),
        ("gpu", [On(1, 0), On(2, 0)], {1: A, 2: B}, [(A, "shared", 500_000), (B, "shared", 500_000)]),
        # By time: one was there for a quarter of it.
        ("gpu", [On(1), On(2, None, 250_000)], {1: A, 2: None}, [(A, "shared", 800_000)]),
        ("mig_instance", [On(1)], {1: A}, [(A, "mig", 1_000_000)]),
        ("mig_instance", [On(1), On(2)], {1: A, 2: B}, [(A, "shared", 500_000), (B, "shared", 500_000)]),
        ("mig_parent", [On(1)], {1: A}, []),
    ],
)
def test_shares_of_a_chip(
    role: str,
    processes: Sequence[On] | None,
    owners: dict[int, WorkloadId | None],
    expected: list[tuple[str, str, int]],
) -> None:
    shares = shares_of([chip(role)], [processes], owners)
    assert [(s.id, s.class_, s.share_ppm) for s in shares] == expected


@given(st.lists(st.tuples(st.integers(0, 1_000_000), st.sampled_from([A, B, workload_id("user:7"), None])), max_size=9))
def test_the_parts_of_a_chip_are_never_more_than_the_chip(found: list[tuple[int, WorkloadId | None]]) -> None:
    processes = [On(pid, util) for pid, (util, _) in enumerate(found)]
    shares = shares_of([chip()], [processes], {pid: owner for pid, (_, owner) in enumerate(found)})
    assert sum(s.share_ppm for s in shares) <= 1_000_000
    assert [s.id for s in shares] == sorted({owner for _, owner in found if owner is not None})


def test_a_driver_that_lists_nobody_is_a_reason(proc: Proc) -> None:
    proc.add(10, "/system.slice/a.service")
    shares, reasons = Attribution(Procs(proc.root)).shares([chip(), chip()], [[On(10), On(11)], None])
    assert [(s.chip, s.id, s.share_ppm) for s in shares] == [(0, "systemd:a.service", 500_000)]
    assert reasons == {GONE: 1, NOT_LISTED: 1}
