"""Who started a process, out of the contents of ``/proc/<pid>/cgroup``. Pure.

A path is read from the root of the tree downwards, and the first component that names an owner decides: whatever
lies below belongs to that owner, who may call it what they like. A container that calls a group ``job_7`` stays
that container's; a user can't make a system unit. Two exceptions: below the service of a container runtime or of a
scheduler its own groups decide, and in a user's session a rootless container is told by its id.

========================================================  ========================
path (v1 or v2, any controller)                           workload
========================================================  ========================
``…/keyturn-run-<id>.scope``, outside of users' sessions  ``run:<id>``
``…/slurm…/uid_…/job_<n>``, ``…slurmstepd.scope/job_<n>`` ``slurm:<cluster>:<n>``
``…/kubepods…/pod<uid>``, ``…kubepods-…-pod<uid>.slice``  ``k8s:<uid>``
``…/docker/<id>``, ``…/docker-<id>.scope``                ``docker:<id>``
``…/libpod-<id>[.scope]``                                 ``podman:<id>``
``…/<unit>.service``, ``…/<unit>.scope``                  ``systemd:<unit>``
``/user.slice/user-<uid>.slice``                          ``user:<uid>``
========================================================  ========================
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import WorkloadId, workload_id

KINDS: Final = ("run", "slurm", "k8s", "docker", "podman", "systemd", "user")
"""Most specific first. With cgroup v1 a process has several paths, and the most specific one counts."""

_ID: Final = "[0-9a-f]{64}"
_UID: Final = "[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32}"
_RUN: Final = re.compile(r"keyturn-run-([!-~]+)\.scope")
_JOB: Final = re.compile(r"job_([0-9]+)")
_STEPD: Final = re.compile(r"slurm|slurm_[!-~]+|(?:[!-~]+_)?slurmstepd\.scope")
_POD_SLICE: Final = re.compile(rf"(?:[0-9a-z_.]+-)*kubepods(?:-[a-z]+)*-pod({_UID})\.slice(?::[a-z-]+:[0-9a-f]+)?")
_POD: Final = re.compile(rf"pod({_UID})")
_PODS: Final = re.compile(r"kubepods(?:\.slice)?|burstable|besteffort|guaranteed")
_DOCKER: Final = re.compile(rf"docker-({_ID})\.scope")
_BARE_ID: Final = re.compile(_ID)
_PODMAN: Final = re.compile(rf"libpod-(?:payload-)?({_ID})(?:\.scope)?")
_USER: Final = re.compile(r"user-([0-9]+)\.slice")
_UNIT: Final = re.compile(r"[!-~]+\.(?:service|scope)")
_RUNTIMES: Final = frozenset(
    f"{name}.service"
    for name in (
        "containerd", "crio", "docker", "k0scontroller", "k0sworker", "k3s", "k3s-agent", "kubelet", "podman",
        "rke2-agent", "rke2-server", "slurmd", "snap.microk8s.daemon-containerd", "snap.microk8s.daemon-kubelite",
    )
)  # fmt: skip


def workload_of(cgroup: str, cluster: str) -> WorkloadId | None:
    """The workload of a process, or None where its groups name no owner.

    :param cgroup: the contents of ``/proc/<pid>/cgroup``, lines of ``hierarchy:controllers:path``.
    :param cluster: Slurm's name of this cluster; a job number means nothing without it.
    """
    found = []
    for line in cgroup.splitlines():
        path = line.split(":", 2)[2:]
        # A group can be removed before its last process is.
        if path and (owner := _owner(path[0].removesuffix(" (deleted)"), cluster)) is not None:
            found.append(owner)
    return min(found, key=lambda owner: KINDS.index(owner.partition(":")[0]), default=None)


def named(kind: str, name: str) -> WorkloadId:
    """A workload's id. A name that can't be part of one is told by its hash."""
    try:
        return workload_id(f"{kind}:{name}")
    except ProtocolError:
        return workload_id(f"{kind}:sha256-{sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()}")


def _owner(path: str, cluster: str) -> WorkloadId | None:
    # In a namespace of its own, a reader sees what lies beside it as /../…
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    beside = "/../" in f"{path}/"
    unit: str | None = None
    for i, part in enumerate(parts):
        before = parts[:i]
        if (user := _USER.fullmatch(part)) and before == ["user.slice"]:
            return _rootless(parts[i + 1 :]) or named("user", user[1])
        if match := _RUN.fullmatch(part):
            return named("run", match[1])
        if (owner := _contained(part, before, beside, cluster)) is not None:
            return owner
        if unit is None and _UNIT.fullmatch(part) and not _STEPD.fullmatch(part):
            if part not in _RUNTIMES:
                return named("systemd", part)
            unit = part
    return None if unit is None else named("systemd", unit)


def _contained(part: str, before: Sequence[str], beside: bool, cluster: str) -> WorkloadId | None:
    """The job, pod or container that a component names, given those above it."""
    above = before[-1] if before else ""
    if (match := _JOB.fullmatch(part)) and any(_STEPD.fullmatch(p) for p in before):
        return named("slurm", f"{cluster}:{match[1]}")
    if match := _POD_SLICE.fullmatch(part):
        return named("k8s", _dashed(match[1]))
    if (match := _POD.fullmatch(part)) and (_PODS.fullmatch(above) or (beside and not before)):
        return named("k8s", _dashed(match[1]))
    if match := _DOCKER.fullmatch(part):
        return named("docker", match[1])
    if above == "docker" and _BARE_ID.fullmatch(part):
        return named("docker", part)
    if match := _PODMAN.fullmatch(part):
        return named("podman", match[1])
    return None


def _rootless(parts: Sequence[str]) -> WorkloadId | None:
    """A container in a user's session: its id is that user's word."""
    for part in parts:
        for kind, pattern in (("podman", _PODMAN), ("docker", _DOCKER)):
            if match := pattern.fullmatch(part):
                return named(kind, match[1])
    return None


def _dashed(uid: str) -> str:
    """A pod's uid as Kubernetes writes it; a static pod's is a plain hash."""
    return uid.replace("_", "-")
