"""Where a run lives: the group that a scheduler made, a scope of its own, or else a session.

``exec`` makes the place, as whoever runs it may; the agent, which looks from the host, finds out which it is, out of
``/proc`` and for a pid that the kernel named.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyturn_agent.cgroups import workload_of
from keyturn_agent.errors import RefusedError
from keyturn_agent.procs import PROC, start_time
from keyturn_agent.switch.gatelink import Target

SCHEDULERS: Final = ("slurm", "k8s", "docker", "podman")
"""Owners whose group is the run: whatever else is in a job's task or a container is part of it."""
_GROUPS: Final = 1_000
"""Sub-groups that are looked into."""
_SYSTEMD: Final = Path("/run/systemd/system")
_OPTIONS: Final = frozenset({"rw", "ro", "xattr", "noprefix", "clone_children", "nsdelegate"})
"""What a mount of version 1 says beside its controllers."""


@dataclass(frozen=True, slots=True)
class Place:
    """How the run's first process is started.

    :param prefix: a program that starts it in a group of its own.
    :param group: a group that it enters by itself.
    :param session: whether it gets a session of its own, since it has no group.
    """

    prefix: tuple[str, ...] = ()
    group: Path | None = None
    session: bool = False


def scope_name(job: str) -> str:
    """The name of a run's own group, by which its work is also told (:mod:`~keyturn_agent.cgroups`)."""
    return f"keyturn-run-{job[:32]}.scope"


def places(job: str, root: Path = PROC) -> Iterator[Place]:
    """Where a run can live, the best first; the last one is always possible.

    A scheduler's group is kept; elsewhere the service manager makes a scope, or we do, where we may.
    """
    own = _read(root / "self" / "cgroup")
    workload = workload_of(own, "unknown")
    if workload is not None and workload.partition(":")[0] in SCHEDULERS:
        yield Place()
        return
    systemd_run = shutil.which("systemd-run")
    if systemd_run is not None and _SYSTEMD.is_dir():
        whose = () if os.geteuid() == 0 else ("--user",)
        unit = f"--unit={scope_name(job)}"
        yield Place(prefix=(systemd_run, "--scope", "--quiet", "--collect", *whose, unit, "--"))
    else:
        for hierarchy in hierarchies(own, root):
            yield Place(group=hierarchy / scope_name(job))
    yield Place(session=True)


def hierarchies(cgroup: str, root: Path = PROC) -> list[Path]:
    """The folders of the groups in the contents of a ``cgroup`` file, those of version 2 first."""
    mounts = _mounts(_read(root / "self" / "mountinfo"))
    found: list[tuple[bool, Path]] = []
    for line in cgroup.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and (top := mounts.get(parts[1])) is not None:
            found.append((parts[0] != "0", top / parts[2].lstrip("/")))
    return [folder for _, folder in sorted(found, key=lambda each: each[0])]


def target_of(pid: int, uid: int, root: Path = PROC) -> Target:
    """What the gate is to stop, for the first process of a run.

    :param uid: whose process it was when it connected. Its number may be somebody else's by now, who isn't to be
        stopped in its place.
    :raises RefusedError: ``no_process``, ``no_place``: it has neither a group nor a session of its own.
    """
    try:
        whose = re.search(
            r"^Uid:\t\d+\t(\d+)\t", (root / str(pid) / "status").read_text("utf-8", "replace"), re.MULTILINE
        )
        if whose is None or int(whose[1]) != uid:
            raise RefusedError("no_process", f"process {pid} isn't user {uid}'s any more")
        stat = (root / str(pid) / "stat").read_bytes()
        session = int(stat.rpartition(b")")[2].split()[3])
        start = start_time(stat)
    except (OSError, ValueError, IndexError) as error:
        raise RefusedError("no_process", f"process {pid} can't be looked at: {error}") from None
    cgroup = _read(root / str(pid) / "cgroup")
    for folder in hierarchies(cgroup, root):
        if re.fullmatch(r"keyturn-run-[0-9a-f]+\.scope", folder.name):
            return Target(pid, start, str(folder), None)
    workload = workload_of(cgroup, "unknown")
    if workload is not None and workload.partition(":")[0] in SCHEDULERS:
        for line in cgroup.splitlines():
            owner = workload_of(line, "unknown")
            for folder in hierarchies(line, root):
                if owner == workload and folder.is_dir():
                    return Target(pid, start, str(folder), None)
    if session != pid:
        raise RefusedError("no_place", f"process {pid} has neither a group nor a session of its own")
    return Target(pid, start, None, session)


def parent_of(pid: int, root: Path = PROC) -> int | None:
    """Who started a process, and has been there ever since; None if it can't be looked at."""
    try:
        return int((root / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def alive(target: Target, root: Path = PROC) -> bool:
    """Whether anything of a run is left."""
    if target.cgroup is not None:
        for number, (here, _, _) in enumerate(os.walk(target.cgroup)):
            # Whoever makes more groups than that holds nobody up by it.
            if number >= _GROUPS or _read(Path(here) / "cgroup.procs").strip():
                return True
        return False
    for path in root.iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_bytes().rpartition(b")")[2].split()
                if (
                    int(fields[3]) == target.session
                    # A first thread that ended is a zombie while others of its process go on.
                    and (fields[0] not in (b"Z", b"X") or int(fields[17]) > 1)
                    and int(fields[19]) >= target.start
                ):
                    return True
            except (OSError, ValueError, IndexError):
                continue
    return False


def _mounts(mountinfo: str) -> dict[str, Path]:
    """Where each hierarchy is mounted, by its controllers as ``/proc/<pid>/cgroup`` names them; "" is version 2."""
    found: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or fields[3] != "/":
            continue
        place = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        if kind[0] == "cgroup2":
            found.setdefault("", place)
        elif kind[0] == "cgroup":
            controllers = [word for word in kind[2].split(",") if word not in _OPTIONS]
            found.setdefault(",".join(controllers), place)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""


__all__: Sequence[str] = (
    "SCHEDULERS",
    "Place",
    "alive",
    "hierarchies",
    "parent_of",
    "places",
    "scope_name",
    "target_of",
)
