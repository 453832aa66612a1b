"""Strays: who computes on a run's chips without being in its group, which some processes can leave.

Pure: a look at the chips, who was there before, and who belongs to another grant. A pid that the driver names means a
process only if that one had started before the driver was asked, and is still there: of the living, one has that pid.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

TICK_US: Final = 1_000_000 // os.sysconf("SC_CLK_TCK")
"""What start times of processes are counted in, since boot."""


class Process(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As the driver names it. ``start`` None: there is none of that pid, or the pid may be another namespace's."""

    pid: int
    start: int | None


@dataclass(frozen=True, slots=True)
class Look:
    """Who computed on which chip at a moment after ``began_us``; None for a chip of which the driver doesn't say."""

    began_us: int
    chips: Mapping[str, tuple[Process, ...] | None]

    def on(self, chips: Iterable[str]) -> set[Process]:
        """Who computes on any of these. A chip that isn't there has nobody on it."""
        return {process for uuid in chips for process in self.chips.get(uuid) or ()}

    def tells(self, chips: Iterable[str]) -> bool:
        """Whether the driver said of each of them who computes there."""
        return all(self.chips.get(uuid, ()) is not None for uuid in chips)


@dataclass(frozen=True, slots=True)
class Strays:
    """Who is to be stopped: ``found`` can be, ``beyond`` are pids that can't be shown to be a process of this host."""

    found: tuple[Process, ...]
    beyond: tuple[int, ...]


def strays(
    look: Look,
    chips: Collection[str],
    before: Collection[Process],
    spared: Collection[int],
    shared: Collection[str],
    closed_us: int,
) -> Strays:
    """Who computes on ``chips``, and came with or after their grant.

    :param before: who was there before the chips were opened for it.
    :param spared: pids of other grants' runs, and of the gate.
    :param shared: chips that other grants keep open. Whoever began after ``closed_us``, when this one ended, is theirs.
    """
    found, beyond = set(), set()
    own = look.on(set(chips) - set(shared))
    for process in look.on(chips):
        if process in before or process.pid in spared:
            continue
        if process.start is None or (process.start + 1) * TICK_US > look.began_us:
            beyond.add(process.pid)
        elif process in own or (process.start + 1) * TICK_US <= closed_us:
            found.add(process)
    return Strays(tuple(sorted(found, key=lambda each: each.pid)), tuple(sorted(beyond)))


def named(pids: Iterable[int]) -> str:
    """For an event: the first of them."""
    numbers = sorted(pids)
    more = f" and {len(numbers) - 20} more" if len(numbers) > 20 else ""
    return f"{', '.join(map(str, numbers[:20]))}{more}"
