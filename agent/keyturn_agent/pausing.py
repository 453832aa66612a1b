"""The pause that an agent keeps to, also one that is started again before its end: ``paused.json``.

The end is kept on both clocks. In the boot in which the pause began CLOCK_BOOTTIME counts, which nobody sets; after a
reboot the wall clock does, and never for longer than the pause was to be.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from keyturn_agent import files
from keyturn_agent.ports import Clock
from keyturn_protocol.canonical import Record, Text, UInt, decode, encode
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.values import BootId

NAME = "paused.json"


class Pausing(Record, frozen=True, kw_only=True):
    """A pause of ``for_us``, until ``until_us`` (UTC), which is ``until_mono_us`` on CLOCK_BOOTTIME of ``boot_id``."""

    v: Literal[1]
    boot_id: BootId
    until_mono_us: UInt
    until_us: UInt
    for_us: Annotated[int, msgspec.Meta(gt=0)]
    reason: Text

    def left_us(self, clock: Clock) -> int:
        """How long it lasts from now on; 0 or less when it is over."""
        now = clock.now()
        if clock.boot_id == self.boot_id:
            return self.until_mono_us - now.mono_us
        return min(self.for_us, self.until_us - now.time_us)


def keep(folder: Path, pausing: Pausing) -> None:
    with files.doing(f"writing {folder}/{NAME}"):
        # After this an agent that is started again keeps to the pause.
        files.replace(folder / NAME, encode(pausing))


def kept(folder: Path) -> Pausing | None:
    """The pause that was begun and not ended, over or not; None also for a file that says nothing."""
    try:
        pausing: Pausing = decode((folder / NAME).read_bytes(), Pausing)
    except (OSError, ProtocolError):
        return None
    return pausing


def forget(folder: Path) -> None:
    with files.doing(f"removing {folder}/{NAME}"):
        (folder / NAME).unlink(missing_ok=True)
        # After this the pause has ended for good.
        files.fsync_folder(folder)
