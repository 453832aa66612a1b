"""What on this host stands in the way of metering it, looked at from the account that the agent runs under."""

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from keyturn_agent.errors import AgentError
from keyturn_agent.ports import Answer
from keyturn_agent.procs import PROC, hides_others, in_host_pids
from keyturn_agent.store import read_enrolment
from keyturn_protocol.canonical import Record

State = Literal["ok", "warn", "fail", "skip"]
DISK_WARN: Final = 2**30
DISK_FAIL: Final = 64 * 2**20
_TIME_ERROR: Final = 5


class Check(Record, frozen=True, kw_only=True):
    """One thing that was looked at. ``warn``: metering goes on with less; ``fail``: something is wrong."""

    name: str
    state: State
    detail: str


class Report(Record, frozen=True, kw_only=True):
    """The answer of ``keyturn-agent doctor --json``."""

    ok: bool
    checks: list[Check]


def report(checks: Sequence[Check]) -> Report:
    return Report(ok=all(check.state != "fail" for check in checks), checks=list(checks))


def describe(found: Report) -> str:
    """For a person, a line a check."""
    return "\n".join(f"{check.state:4}  {check.name:10}  {check.detail}" for check in found.checks)


@dataclass(frozen=True, slots=True)
class Host:
    """Where the host is looked at; tests put something else there.

    :param clock: the state of the kernel's clock as adjtimex(2) returns it, or None.
    :param fetch: asks the verifier at a URL for its newest checkpoint.
    """

    proc: Path
    clock: Callable[[], int | None]
    fetch: Callable[[str], Answer]


def host_checks(folder: Path, host: Host) -> list[Check]:
    """All that doesn't depend on the kind of chip."""
    return [
        *_state(folder),
        _disk(folder),
        _clock(host.clock()),
        _pids(host.proc),
        _hidepid(host.proc),
        _verifier(folder, host.fetch),
    ]


def _state(folder: Path) -> list[Check]:
    try:
        enrolment, _ = read_enrolment(folder)
        mode = folder.stat().st_mode & 0o777
    except AgentError as error:
        return [Check(name="state", state="fail", detail=str(error))]
    except OSError as error:
        return [Check(name="state", state="fail", detail=f"{folder}: {error.strerror}")]
    if mode & 0o077:
        return [Check(name="state", state="fail", detail=f"others may enter {folder} (expected 0700, got {mode:04o})")]
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return [Check(name="state", state="fail", detail=f"this account can't write in {folder}")]
    where = f"{enrolment.organisation}, {enrolment.site}, source {enrolment.source}"
    return [Check(name="state", state="ok", detail=f"enrolled as node {enrolment.node_id} ({where})")]


def _disk(folder: Path) -> Check:
    try:
        stat = os.statvfs(folder)
    except OSError as error:
        return Check(name="disk", state="fail", detail=f"{folder}: {error.strerror}")
    free = stat.f_bavail * stat.f_frsize
    state: State = "fail" if free < DISK_FAIL else "warn" if free < DISK_WARN else "ok"
    return Check(name="disk", state=state, detail=f"{free // 2**20} MiB free (an 8-GPU host writes about 5 MB a day)")


def _clock(state: int | None) -> Check:
    if state is None:
        return Check(name="clock", state="warn", detail="the kernel doesn't say whether its clock is synchronised")
    if state == _TIME_ERROR:
        return Check(name="clock", state="warn", detail="the kernel's clock isn't synchronised: is NTP or PTP running?")
    return Check(name="clock", state="ok", detail="synchronised")


def clock_state() -> int | None:
    """What adjtimex(2) returns when it changes nothing: 5 (``TIME_ERROR``) is a clock that isn't synchronised."""
    try:
        # All zero: struct timex with no mode bits set. It is 208 bytes on 64-bit Linux.
        state = int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)))
    except (OSError, AttributeError):
        return None
    return state if state >= 0 else None


def _pids(proc: Path) -> Check:
    if in_host_pids(proc):
        return Check(name="pids", state="ok", detail="in the host's pid namespace")
    return Check(
        name="pids",
        state="warn",
        detail="not in the host's pid namespace: the driver's pids mean nothing here, so all compute is unattributed "
        "(hostPID: true, or --pid=host)",
    )


def _hidepid(proc: Path) -> Check:
    """Whether the processes of others can be looked at: init's stands for them."""
    try:
        options = [
            fields[3].split(",")
            for line in (proc / "mounts").read_text("utf-8", "replace").splitlines()
            if len(fields := line.split()) >= 4 and fields[2] == "proc"
        ]
    except OSError:
        options = []
    hidden = sorted({o for found in options for o in found if o.startswith("hidepid=") and o not in _OPEN})
    if hides_others(proc):
        why = f"/proc is mounted with {hidden[0]}" if hidden else "init's groups can't be read"
        return Check(name="hidepid", state="warn", detail=f"other users' processes are hidden and unattributed: {why}")
    return Check(name="hidepid", state="ok", detail="the groups of other users' processes can be read")


_OPEN: Final = ("hidepid=0", "hidepid=off")


def _verifier(folder: Path, fetch: Callable[[str], Answer]) -> Check:
    try:
        enrolment, _ = read_enrolment(folder)
    except AgentError:
        return Check(name="verifier", state="skip", detail="not enrolled")
    try:
        answer = fetch(enrolment.verifier)
    except AgentError as error:
        return Check(name="verifier", state="fail", detail=str(error))
    if answer.status != 200:
        return Check(name="verifier", state="fail", detail=f"{enrolment.verifier} answers with HTTP {answer.status}")
    return Check(name="verifier", state="ok", detail=f"{enrolment.verifier} answers")


def mps_running(proc: Path = PROC) -> bool:
    """Whether CUDA's Multi-Process Service has a daemon here."""
    for comm in proc.glob("[0-9]*/comm"):
        try:
            if comm.read_text().startswith("nvidia-cuda-mps"):
                return True
        except OSError:
            continue
    return False
