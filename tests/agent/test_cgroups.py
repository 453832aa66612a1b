"""Whose a process is by its cgroups: contents of /proc/<pid>/cgroup as they are found on hosts."""

from textwrap import dedent

import pytest

from keyturn_agent.cgroups import named, workload_of
from keyturn_protocol.ids import workload_id

UID = "6f8ac2a9-4a0e-4d2c-9c9b-0d9d3f3c1b77"
UNDER = UID.replace("-", "_")
POD = f"pod{UNDER}.slice"
STATIC = "7d9b4e3f1c0a4f2b8e6d5c4b3a291807"
C = "3e1f" * 16
D = "ab09" * 16

V2 = {
    # Kubernetes, systemd driver: containerd, cri-o, dockershim; three classes of service
    f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{POD}/cri-containerd-{C}.scope": f"k8s:{UID}",
    f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-{POD}/crio-{C}.scope": f"k8s:{UID}",
    f"/kubepods.slice/kubepods-{POD}/cri-containerd-{C}.scope": f"k8s:{UID}",
    f"/kubepods.slice/kubepods-{POD}/docker-{C}.scope": f"k8s:{UID}",
    f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-{POD}/crio-{C}.scope/container": f"k8s:{UID}",
    # … cgroupfs driver
    f"/kubepods/burstable/pod{UID}/{C}": f"k8s:{UID}",
    f"/kubepods/besteffort/pod{UID}/{C}": f"k8s:{UID}",
    f"/kubepods/pod{UID}/{C}": f"k8s:{UID}",
    f"/kubepods/burstable/pod{STATIC}/{C}": f"k8s:{STATIC}",
    # … under a runtime's service, and as containerd names it when its drivers don't agree
    f"/system.slice/containerd.service/kubepods-burstable-{POD}:cri-containerd:{C}": f"k8s:{UID}",
    f"/kubepods-burstable-{POD}:cri-containerd:{C}": f"k8s:{UID}",
    f"/system.slice/k3s.service/kubepods/burstable/pod{UID}/{C}": f"k8s:{UID}",
    f"/system.slice/k0sworker.service/kubepods/burstable/pod{UID}/{C}": f"k8s:{UID}",
    f"/system.slice/snap.microk8s.daemon-kubelite.service/kubepods/pod{UID}/{C}": f"k8s:{UID}",
    # … under a root of its own (kubelet --cgroup-root), whose name systemd writes with underscores
    f"/gpu.slice/gpu-kubepods.slice/gpu-kubepods-{POD}/crio-{C}.scope": f"k8s:{UID}",
    f"/k8s_2.slice/k8s_2-kubepods.slice/k8s_2-kubepods-{POD}/cri-containerd-{C}.scope": f"k8s:{UID}",
    # … as seen from a cgroup namespace beside it
    f"/../../kubepods-besteffort.slice/kubepods-besteffort-{POD}/cri-containerd-{C}.scope": f"k8s:{UID}",
    f"/../../pod{UID}/{C}": f"k8s:{UID}",
    # Docker, both drivers
    f"/system.slice/docker-{C}.scope": f"docker:{C}",
    f"/docker/{C}": f"docker:{C}",
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{C}.scope": f"docker:{C}",
    # Podman: rootful, in a pod, cgroupfs, rootless
    f"/machine.slice/libpod-{C}.scope/container": f"podman:{C}",
    f"/machine.slice/machine-libpod_pod_{D}.slice/libpod-{C}.scope": f"podman:{C}",
    f"/libpod_parent/libpod-{C}": f"podman:{C}",
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{C}.scope/container": f"podman:{C}",
    # … a rootless one that systemd starts (Quadlet)
    f"/user.slice/user-1000.slice/user@1000.service/app.slice/train.service/libpod-payload-{C}": f"podman:{C}",
    # Slurm
    "/system.slice/slurmstepd.scope/job_123/step_0/user/task_0": "slurm:lab:123",
    "/system.slice/node7_slurmstepd.scope/job_123/step_batch/user/task_special": "slurm:lab:123",
    "/slurm/uid_1000/job_77/step_0": "slurm:lab:77",
    "/slurm_node7/uid_1000/job_77/step_extern": "slurm:lab:77",
    "/system.slice/slurmstepd.scope/system": None,
    # Started under a permit
    "/system.slice/keyturn-run-a1b2c3.scope": "run:a1b2c3",
    "/keyturn.slice/keyturn-run-a1b2c3.scope/worker": "run:a1b2c3",
    # systemd
    "/system.slice/ollama.service": "systemd:ollama.service",
    "/system.slice/system-vllm.slice/vllm@8b.service": "systemd:vllm@8b.service",
    "/system.slice/vllm.service/workers/3": "systemd:vllm.service",
    "/ml.slice/ml-serving.slice/triton.service": "systemd:triton.service",
    "/system.slice/containerd.service": "systemd:containerd.service",
    "/system.slice/a\\x2db.service": "systemd:a\\x2db.service",
    "/init.scope": "systemd:init.scope",
    "/system.slice/gone.service (deleted)": "systemd:gone.service",
    # users
    "/user.slice/user-1000.slice/session-3.scope": "user:1000",
    "/user.slice/user-1000.slice/user@1000.service/app.slice/jupyter.service": "user:1000",
    "/user.slice/user-0.slice/session-1.scope": "user:0",
    # nobody's
    "/": None,
    "/..": None,
    "/lxc.payload.web": None,
    f"/ecs/task/{C}": None,
    "/job_5": None,
    f"/pod{UID}": None,
}  # fmt: skip


@pytest.mark.parametrize(("path", "expected"), V2.items())
def test_paths_of_version_2(path: str, expected: str | None) -> None:
    found = workload_of(f"0::{path}\n", "lab")
    assert found == expected
    if found is not None:
        workload_id(found)


FORGED = {
    "a job in a container": (f"/system.slice/docker-{C}.scope/slurm/uid_0/job_1", f"docker:{C}"),
    "a container in a container": (f"/docker/{C}/docker/{D}", f"docker:{C}"),
    "a container in a pod": (f"/kubepods/burstable/pod{UID}/{C}/docker/{D}", f"k8s:{UID}"),
    "a cluster in a container": (f"/docker/{C}/kubelet/kubepods/pod{UID}/{D}", f"docker:{C}"),
    "a container in a job": (f"/system.slice/slurmstepd.scope/job_9/step_0/libpod-{C}.scope", "slurm:lab:9"),
    "a run in a session": ("/user.slice/user-1000.slice/user@1000.service/keyturn-run-x.scope", "user:1000"),
    "a job in a session": ("/user.slice/user-1000.slice/user@1000.service/slurm/uid_0/job_1", "user:1000"),
    "a pod in a session": (
        f"/user.slice/user-7.slice/user@7.service/kubepods.slice/kubepods-{POD}",
        "user:7",
    ),
    "a user in a service": ("/system.slice/x.service/user.slice/user-1000.slice", "systemd:x.service"),
    "a job in a service": ("/system.slice/x.service/slurm/uid_0/job_1", "systemd:x.service"),
    "a run in a pod": (f"/kubepods/pod{UID}/{C}/keyturn-run-x.scope", f"k8s:{UID}"),
}


@pytest.mark.parametrize(("path", "expected"), FORGED.values(), ids=FORGED)
def test_what_an_owner_names_below_itself_stays_the_owner_s(path: str, expected: str) -> None:
    assert workload_of(f"0::{path}\n", "lab") == expected


V1 = {
    "slurm": (
        """
        11:devices:/slurm/uid_1000/job_4711/step_0/task_0
        10:memory:/slurm/uid_1000/job_4711/step_0/task_0
        9:cpuset:/slurm/uid_1000/job_4711/step_0
        8:pids:/system.slice/slurmd.service
        1:name=systemd:/system.slice/slurmd.service
        0::/system.slice/slurmd.service
        """,
        "slurm:lab:4711",
    ),
    "docker": (
        f"""
        12:cpuset:/docker/{C}
        5:cpu,cpuacct:/docker/{C}
        1:name=systemd:/docker/{C}
        0::/system.slice/containerd.service
        """,
        f"docker:{C}",
    ),
    "kubernetes": (
        f"""
        12:memory:/kubepods/besteffort/pod{UID}/{C}
        1:name=systemd:/kubepods/besteffort/pod{UID}/{C}
        """,
        f"k8s:{UID}",
    ),
    "a session": (
        """
        8:memory:/user.slice/user-1000.slice/session-2.scope
        5:cpu,cpuacct:/user.slice
        1:name=systemd:/user.slice/user-1000.slice/session-2.scope
        0::/user.slice/user-1000.slice/session-2.scope
        """,
        "user:1000",
    ),
    "a service in some controllers only": (
        """
        9:cpuset:/
        8:memory:/system.slice/vllm.service
        1:name=systemd:/system.slice/vllm.service
        """,
        "systemd:vllm.service",
    ),
    "nothing": ("4:memory:/\n1:name=systemd:/\n0::/\n", None),
    "a colon in a path": ("0::/system.slice/a:b.service\n", "systemd:a:b.service"),
    "empty": ("", None),
    "not cgroups at all": ("hello\n::\n", None),
}


@pytest.mark.parametrize(("text", "expected"), V1.values(), ids=V1)
def test_several_hierarchies(text: str, expected: str | None) -> None:
    assert workload_of(dedent(text), "lab") == expected


def test_a_name_that_no_id_can_hold_is_told_by_its_hash() -> None:
    long = named("systemd", "x" * 250 + ".service")
    assert long.startswith("systemd:sha256-")
    assert long != named("systemd", "y" * 250 + ".service")
    assert named("slurm", "my cluster:7").startswith("slurm:sha256-")
