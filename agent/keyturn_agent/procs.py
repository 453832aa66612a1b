"""From process ids to workloads, through ``/proc``.

A pid is an identity only together with the boot and the moment that the process started at: the kernel gives
numbers out again. So what is remembered about a pid is worth nothing once its start time is another.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NewType

from keyturn_agent.cgroups import named, workload_of
from keyturn_agent.sharing import OnChip, shares_of
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_usage import Share
from keyturn_protocol.ids import WorkloadId
from keyturn_protocol.values import Slug

PROC: Final = Path("/proc")
HOST_PIDS: Final = "pid:[4026531836]"
"""The first pid namespace of a kernel (``PROC_PID_INIT_INO``): only there NVML's pids are ours."""
SLURM_CONFS: Final = tuple(
    Path(text) for text in ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf", "/etc/slurm-llnl/slurm.conf")
)
"""Where it stands: usually, on a host without one of its own ("configless"), and in older Debian packages."""
_CLUSTER: Final = re.compile(r"(?:^|\s)ClusterName\s*=\s*([!-~]+)", re.ASCII | re.IGNORECASE)
NOBODY: Final = 65_534
"""What an owner without a number in our user namespace looks like."""

GONE: Final[Slug] = "process_gone"
"""It ended before it was looked at, or it is hidden from us (``hidepid``)."""
OTHER_NAMESPACE: Final[Slug] = "pid_namespace"
"""The agent isn't in the host's pid namespace: a number of NVML's may be anybody's here, so none is looked up."""
HIDDEN: Final[Slug] = "not_permitted"
NO_OWNER: Final[Slug] = "no_owner"
"""Neither its groups nor its user say whose it is."""

HIDEPID: Final[Slug] = "hidepid"
"""``/proc`` is mounted so that other users' processes can't be looked at."""

NOT_LISTED: Final[Slug] = "processes_not_listed"
"""The driver doesn't say who is on a chip."""

_LOOK_AGAIN: Final = 10
"""A process can be moved to another group; that is looked for at every so manieth time."""

StartTime = NewType("StartTime", int)
"""Clock ticks after boot."""


@dataclass(slots=True)
class _Known:
    start: StartTime
    workload: WorkloadId
    looked: int


class Procs:
    """The processes of this host.

    :param root: where procfs is mounted.
    :param label: if given, every process is this workload's, whatever its groups say.
    :param cluster: Slurm's name of this cluster.
    """

    def __init__(self, root: Path = PROC, *, label: WorkloadId | None = None, cluster: str = "unknown") -> None:
        self._root = root
        self._label = label
        self._cluster = cluster
        self._ours = in_host_pids(root)
        self._known: dict[int, _Known] = {}
        self.unattributed: Counter[Slug] = Counter()
        """Why processes of the last :meth:`workloads` belong to nobody, and how many."""

    @property
    def blind(self) -> tuple[Slug, str] | None:
        """What keeps all, or all of other users', processes from being told by their owners; and in words."""
        if self._label is not None:
            return None
        if not self._ours:
            return OTHER_NAMESPACE, "not in the host's pid namespace: whose the processes are can't be looked up"
        if hides_others(self._root):
            return HIDEPID, "/proc hides the processes of other users: whose they are can't be looked up"
        return None

    def workloads(self, pids: Iterable[int]) -> dict[int, WorkloadId | None]:
        """The workload of each process that computes now, or None."""
        self.unattributed = Counter()
        found: dict[int, WorkloadId | None] = {}
        for pid in sorted(set(pids)):
            workload = self._label or self._find(pid)
            found[pid] = None if isinstance(workload, _Unknown) else workload
            if isinstance(workload, _Unknown):
                self.unattributed[workload.reason] += 1
        # A process that is gone is remembered for one look more: its last moments are told only after it.
        self._known = {pid: known for pid, known in self._known.items() if pid in found}
        return found

    def _find(self, pid: int) -> "WorkloadId | _Unknown":
        if not self._ours:
            return _Unknown(OTHER_NAMESPACE)
        known = self._known.get(pid)
        start = self._start(pid)
        if isinstance(start, _Unknown):
            return known.workload if known is not None and start.reason == GONE else start
        if known is not None and known.start == start and known.looked < _LOOK_AGAIN:
            known.looked += 1
            return known.workload
        self._known.pop(pid, None)
        workload = self._look(pid)
        if isinstance(workload, _Unknown):
            return workload
        if self._start(pid) != start:
            # The number changed hands while we looked.
            return _Unknown(GONE)
        self._known[pid] = _Known(start, workload, 0)
        return workload

    def _look(self, pid: int) -> "WorkloadId | _Unknown":
        folder = self._root / str(pid)
        try:
            cgroup = (folder / "cgroup").read_text("utf-8", "surrogateescape")
            uid = real_uid((folder / "status").read_bytes())
        except PermissionError:
            return _Unknown(HIDDEN)
        except (OSError, ValueError):
            return _Unknown(GONE)
        workload = workload_of(cgroup, self._cluster)
        if workload is not None:
            return workload
        return _Unknown(NO_OWNER) if uid == NOBODY else named("user", str(uid))

    def _start(self, pid: int) -> "StartTime | _Unknown":
        try:
            return start_time((self._root / str(pid) / "stat").read_bytes())
        except PermissionError:
            return _Unknown(HIDDEN)
        except (OSError, ValueError):
            return _Unknown(GONE)


class Attribution:
    """The shares of a sample, out of what a driver lists."""

    def __init__(self, procs: Procs) -> None:
        self._procs = procs

    @property
    def blind(self) -> tuple[Slug, str] | None:
        """See :attr:`Procs.blind`."""
        return self._procs.blind

    def shares(
        self, chips: Sequence[Chip], processes: Sequence[Sequence[OnChip] | None]
    ) -> tuple[tuple[Share, ...], Mapping[Slug, int]]:
        """Who had the chips; and why processes, or all on a chip, are nobody's, with how many."""
        workloads = self._procs.workloads(process.pid for found in processes for process in found or ())
        reasons = Counter(self._procs.unattributed)
        if silent := sum(found is None for found in processes):
            reasons[NOT_LISTED] = silent
        return shares_of(chips, processes, workloads), reasons


@dataclass(frozen=True, slots=True)
class _Unknown:
    reason: Slug


def start_time(stat: bytes) -> StartTime:
    """Field 22 of ``/proc/<pid>/stat``; the name before it, in brackets, may hold anything (proc(5)).

    :raises ValueError: it isn't there: the process went while it was read.
    """
    fields = stat.rpartition(b")")[2].split()
    if len(fields) < 20:
        raise ValueError("no start time")
    return StartTime(int(fields[19]))


def real_uid(status: bytes) -> int:
    """Of ``/proc/<pid>/status``. The folder's own owner is root's as soon as a process says that it isn't dumpable.

    :raises ValueError: it isn't there.
    """
    for line in status.splitlines():
        if line.startswith(b"Uid:"):
            return int(line.split()[1])
    raise ValueError("no uid")


def in_host_pids(root: Path = PROC) -> bool:
    """Whether this process is in the host's own pid namespace."""
    try:
        return str((root / "self" / "ns" / "pid").readlink()) == HOST_PIDS
    except OSError:
        return False


def hides_others(root: Path = PROC) -> bool:
    """Whether the processes of others can't be looked at: init's stands for them."""
    try:
        (root / "1" / "cgroup").read_bytes()
    except OSError:
        return True
    return False


def slurm_cluster(confs: Sequence[Path] = SLURM_CONFS) -> str:
    """The cluster's name in the first of Slurm's configurations that is there and has one, or ``unknown``."""
    for conf in confs:
        try:
            lines = conf.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        for line in lines:
            if match := _CLUSTER.search(line.partition("#")[0]):
                return match[1]
    return "unknown"
