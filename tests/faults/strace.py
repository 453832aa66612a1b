"""File calls of a process, one by one: listed from a trace, and made to fail by strace.

A call is named by what stays the same from run to run: the system call, the file, and the how-manieth call of that
kind on that file it is in its thread. strace counts in the same way when it looks at one file only (`-P`), so that
"the second fdatasync of logs/1/tail" is a place in the program and not a moment.
"""

import ctypes
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Final

from tests.support.optional import require, require_program
from tests.support.paths import REPO

KINDS: Final = {
    "open": {"openat", "open", "creat"},
    "read": {"read", "pread64", "preadv", "readv"},
    "write": {"write", "pwrite64", "pwritev", "writev", "ftruncate", "fallocate"},
    "sync": {"fsync", "fdatasync"},
    "name": {"rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"},
    "look": {"stat", "newfstatat", "fstat", "statfs", "fstatfs", "access", "faccessat2", "readlink", "getdents64"},
    "lock": {"flock", "fcntl"},
    "close": {"close"},
}
"""Calls by what they do; the rest (mmap, lseek, chmod …) goes under its own name."""
ANY: Final = "*"
_OTHER_EACH_TIME: Final = re.compile(r"[0-9a-f]{64}|\d+-\d+")
_FILLS: Final = KINDS["write"] | KINDS["sync"] | {"rename", "link", "mkdir", "linkat", "mkdirat", "renameat2"}
_LINE: Final = re.compile(r"(\d+) +(\w+)\((.*)")
_NAMED: Final = re.compile(r'"(/[^"]*)"(?!\.\.\.)|<(/[^<>]*)>')
_OPENED: Final = re.compile(r"()<(/[^<>]*)>")
"""Where a call carries data, text in quotes is that."""


class Fault(Enum):
    """What happens in place of a call. The call itself isn't made."""

    EIO = "error=EIO"
    ENOSPC = "error=ENOSPC"
    KILL = "signal=SIGKILL"


@dataclass(frozen=True, order=True)
class Call:
    """The `nth` (from 1) `syscall` on `path`, relative to the folder that was watched, in one thread."""

    path: str
    nth: int
    syscall: str
    makes: bool = False
    """Whether it is an open that may make the file."""

    @property
    def kind(self) -> str:
        return next((kind for kind, calls in KINDS.items() if self.syscall in calls), self.syscall)

    def takes(self, fault: Fault) -> bool:
        """Whether a fault makes a case of its own here.

        A full disk says so where room is needed. A kill before a call that changes nothing leaves the disk as a kill
        before the next one that does.
        """
        match fault:
            case Fault.EIO:
                return True
            case Fault.ENOSPC:
                return self.makes or self.syscall in _FILLS
            case Fault.KILL:
                return self.makes or self.kind in ("write", "sync", "name", "lock") or self.kind not in KINDS

    def __str__(self) -> str:
        return f"{self.syscall} {self.nth} of {self.path}"


def require_strace() -> None:
    """Skips where there is no strace, or where it may not trace a process that lets it."""
    require_program("strace")
    require("strace", *_may_trace())


@cache
def _may_trace() -> tuple[bool, str]:
    waits = "import sys; from tests.faults.strace import may_be_traced; may_be_traced(); print(); sys.stdin.read()"
    command = [sys.executable, "-c", waits]
    with subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        tracer = attach(process.pid, ["-o", os.devnull])
        process.stdin.close()
        process.wait()
        if tracer.returncode is None:
            tracer.communicate()
            return True, ""
        return False, f"strace may not attach to a process here: {tracer.communicate()[1].strip()}"


def may_be_traced() -> None:
    """Let any process of this user trace this one, where Yama would let only its parents."""
    set_ptracer, anyone = 0x59616D61, ctypes.c_ulong(-1)
    ctypes.CDLL(None).prctl(set_ptracer, anyone, 0, 0, 0)


def attach(pid: int, options: Sequence[str]) -> "subprocess.Popen[str]":
    """strace on a process and its threads, once it is attached; or one that has ended, saying why on stderr."""
    command = ["strace", "-f", "-y", "-qq", *options, "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text() and tracer.poll() is None:
        time.sleep(0.001)
    return tracer


def watching(out: Path) -> list[str]:
    """Options that list every call on a file."""
    return ["-o", str(out), "-e", "trace=%file,%desc", "-e", "signal=none"]


def injecting(out: Path, folder: Path, call: Call, fault: Fault) -> list[str]:
    """Options that let one call fail."""
    where = [] if ANY in call.path else ["-P", str(folder / call.path)]
    inject = f"inject={call.syscall}:{fault.value}:when={call.nth}"
    return ["-o", str(out), "-e", f"trace={call.syscall}", "-e", inject, "-e", "signal=none", *where]


def was_injected(out: Path) -> bool:
    """Whether the error of :func:`injecting` was returned."""
    return "(INJECTED)" in out.read_text(errors="replace")


def calls(out: Path, folder: Path) -> set[Call]:
    """The calls in a trace that :func:`watching` wrote, on `folder` and all in it."""
    counts: Counter[tuple[str, str, str]] = Counter()
    found = set()
    for thread, syscall, arguments in _lines(out):
        found_in = (_OPENED if syscall in KINDS["read"] | KINDS["write"] else _NAMED).findall(arguments)
        paths = [path for path in dict.fromkeys(a or b for a, b in found_in) if _inside(path, folder)]
        for path in paths:
            # strace's -P looks at every path of a call.
            counts[thread, syscall, path] += 1
        if paths:
            name = str(Path(paths[0]).relative_to(folder))
            found.add(Call(name, counts[thread, syscall, paths[0]], syscall, "O_CREAT" in arguments))
    return found


def moments(out: Path, folder: Path) -> set[Call]:
    """:func:`calls` of a process that is attached to while it runs, with names that mean the same in another run.

    Files that are named by a hash or by entries have :data:`ANY` in place of it. strace can't look at those alone, so
    that such a call is counted among all of its kind in its thread, on whatever file.
    """
    counts: Counter[tuple[str, str]] = Counter()
    found = set()
    for thread, syscall, arguments in _lines(out):
        counts[thread, syscall] += 1
        paths = [a or b for a, b in _NAMED.findall(arguments) if _inside(a or b, folder)]
        if not paths or "resumed>" in arguments:
            continue
        name = str(Path(paths[0]).relative_to(folder))
        if (pattern := _OTHER_EACH_TIME.sub(ANY, name)) != name:
            found.add(Call(pattern, counts[thread, syscall], syscall, "O_CREAT" in arguments))
    return found | {call for call in calls(out, folder) if not _OTHER_EACH_TIME.search(call.path)}


def hit(out: Path, folder: Path) -> str | None:
    """The file at which a process was killed by :func:`injecting`, as :func:`moments` names it; None if it wasn't."""
    last = next((line for line in reversed(list(_lines(out)))), None)
    paths = [] if last is None else [a or b for a, b in _NAMED.findall(last[2]) if _inside(a or b, folder)]
    return _OTHER_EACH_TIME.sub(ANY, str(Path(paths[0]).relative_to(folder))) if paths else None


def _lines(out: Path) -> Iterator[tuple[str, str, str]]:
    for line in out.read_text(errors="replace").splitlines():
        if match := _LINE.match(line):
            thread, syscall, arguments = match.groups()
            yield thread, syscall, arguments


def _inside(path: str, folder: Path) -> bool:
    return path == str(folder) or path.startswith(f"{folder}/")
