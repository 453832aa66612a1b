"""What the gate asks of the kernel about time, about this boot and about whose numbers pids are."""

import time
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_FIRST_PIDS: Final = "pid:[4026531836]"
"""``PROC_PID_INIT_INO`` of Linux's ``proc_ns.h``."""


def boot_id() -> str:
    """Of the running kernel: a grant of another boot is none."""
    return _BOOT_ID.read_text("ascii").strip()


def boottime_us() -> int:
    """CLOCK_BOOTTIME: nobody sets it, and it counts while the host sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000


def wall_us() -> int:
    """UTC, for people only: nothing is decided by it."""
    return time.time_ns() // 1_000


def first_pids() -> bool:
    """Whether pids here are the kernel's own: in another namespace a driver's pid may be somebody else's."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == _FIRST_PIDS
    except OSError:
        return False
