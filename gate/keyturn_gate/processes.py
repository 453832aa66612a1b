"""The processes of a run: which they are, and how they are signalled.

A run is a cgroup, which a process leaves where its owner may move it (root, or a user's own service manager), or a
session, which a process leaves with ``setsid``; :mod:`~keyturn_gate.strays` tells who left and computes. A number is
only signalled through a pidfd that was opened before the number was seen to belong to the run: between a look and a
signal the kernel may give it to somebody else.
"""

import contextlib
import os
import re
import signal
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from keyturn_gate import host
from keyturn_gate.errors import GateError
from keyturn_gate.messages import Target
from keyturn_gate.strays import Process

_PROC: Final = Path("/proc")
_SLICE: Final = ".slice"
_GROUPS: Final = 10_000
"""Sub-groups that are looked into: whoever makes more is taken to be in one of them."""


def check(target: Target) -> None:
    """That a target is a run, and not the host.

    :raises GateError: ``bad_target``: there is no such process, it isn't in that group or session, or what is named
        holds more than one run: a slice, the top of a tree, the gate itself.
    """
    if (target.cgroup is None) == (target.session is None):
        raise _bad("a run is a cgroup or a session: one of the two")
    if _start(target.pid) != target.start:
        raise _bad(f"process {target.pid} isn't the one that is meant, or is gone")
    if target.cgroup is not None:
        _check_folder(target.cgroup)
    found = members(target)
    if target.pid not in found:
        raise _bad(f"process {target.pid} isn't in it")
    if forbidden := {1, os.getpid()} & set(found):
        raise _bad(f"process {min(forbidden)} is in it")


def count(target: Target) -> int:
    """How many processes there are of a run."""
    return len(members(target))


def some(target: Target) -> bool:
    """Whether there are any; cheap while the first one is there. More sub-groups than are looked into hide some."""
    stat = _stat(target.pid)
    return (stat is not None and stat[2] == target.start and stat[3]) or bool(members(target)) or hides(target)


def hides(target: Target) -> bool:
    """Whether it has more sub-groups than are looked into."""
    return target.cgroup is not None and len(_groups(Path(target.cgroup))) == _GROUPS


def members(target: Target) -> list[int]:
    """The pids of a run's processes now; zombies are none."""
    if target.cgroup is not None:
        return sorted({pid for folder in _groups(Path(target.cgroup)) for pid in _procs(folder)})
    if target.session == target.pid and _start(target.pid) not in (None, target.start):
        # The kernel gives a session's number away only when nobody is left in it: this is somebody else's session.
        return []
    return [
        pid for pid, session, start, alive in _stats() if session == target.session and start >= target.start and alive
    ]


def tell(pid: int, start: int | None, number: int) -> None:
    """Signal a process, if it is still the one that started then."""
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            if start is not None and _start(pid) == start:
                signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)


def alive(process: Process) -> bool:
    """Whether it is still there, and more than a zombie."""
    stat = _stat(process.pid)
    return stat is not None and stat[2] == process.start and stat[3]


def seen(pids: Iterable[int]) -> tuple[Process, ...]:
    """Which processes these are, at first sight. Zombies compute no more."""
    ours = host.first_pids()
    found = []
    for pid in pids:
        stat = _stat(pid) if ours else None
        if stat is None or stat[3]:
            found.append(Process(pid=pid, start=None if stat is None else stat[2]))
    return tuple(found)


def signal_all(target: Target, number: int) -> int:
    """Signal every process of a run once; returns how many."""
    done = 0
    fds: dict[int, int] = {}
    try:
        for pid in members(target):
            with contextlib.suppress(OSError):
                fds[pid] = os.pidfd_open(pid)
        for pid in members(target):
            if pid in fds:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(fds[pid], number)
                    done += 1
    finally:
        for fd in fds.values():
            os.close(fd)
    return done


def kill(target: Target) -> None:
    """SIGKILL for all of a run, at once where the kernel can do that; to be repeated until none is left."""
    if target.cgroup is not None:
        try:
            # cgroup v2 (Linux 5.14): also what is being forked meanwhile.
            (Path(target.cgroup) / "cgroup.kill").write_text("1")
            return
        except OSError:
            pass
    signal_all(target, signal.SIGKILL)


def _bad(message: str) -> GateError:
    return GateError("bad_target", message)


def _check_folder(text: str) -> None:
    folder = Path(text)
    if str(folder) != text or folder.resolve() != folder:
        raise _bad(f"{text} is not a plain path")
    tops = _mounts()
    if not any(top in folder.parents for top in tops):
        raise _bad(f"{text} is not a group below a mounted cgroup file system")
    if folder.name.endswith(_SLICE) or folder.name == "init.scope":
        raise _bad(f"{text} holds more than a run")
    if not (folder / "cgroup.procs").exists():
        raise _bad(f"{text} is not there")


def _mounts() -> set[Path]:
    """Where cgroup file systems are mounted, v1 or v2 (proc(5), mountinfo)."""
    found = set()
    for line in (_PROC / "self" / "mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] in ("cgroup", "cgroup2"):
            found.add(Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])))
    return found


def _groups(folder: Path) -> list[Path]:
    """A group and all below it, so many at most."""
    return [Path(here) for here, _, _ in islice(os.walk(folder), _GROUPS)]


def _procs(folder: Path) -> list[int]:
    try:
        found = [int(pid) for pid in (folder / "cgroup.procs").read_text("ascii").split()]
    except (OSError, ValueError):
        # The group went, or it is a threaded one, whose processes are listed above it.
        return []
    return [pid for pid in found if pid > 0 and (stat := _stat(pid)) is not None and stat[3]]


def _stats() -> Iterator[tuple[int, int, int, bool]]:
    with os.scandir(_PROC) as found:
        for entry in found:
            if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
                yield stat


def _stat(pid: int) -> tuple[int, int, int, bool] | None:
    """pid, session, start time, and whether it is more than a zombie (proc(5)); None where it is gone."""
    try:
        data = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The name before, in brackets, may hold anything.
    fields = data.rpartition(b")")[2].split()
    if len(fields) < 20:
        return None
    # A first thread that ended is a zombie while others of its process go on.
    alive = fields[0] not in (b"Z", b"X", b"x") or int(fields[17]) > 1
    return pid, int(fields[3]), int(fields[19]), alive


def _start(pid: int) -> int | None:
    stat = _stat(pid)
    return None if stat is None else stat[2]
