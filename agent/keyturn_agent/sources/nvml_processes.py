"""Who computes on a chip: the processes that NVML lists, and those that came and ended between two looks.

The second kind shows itself in the driver's recent samples of per-process utilization, and, where the operator has
switched NVML's accounting mode on, in its records of processes that ended. The mode is never switched on from here: it
is the host's, and costs the driver memory.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final, Protocol

from keyturn_agent.sources import nvml
from keyturn_agent.sources.nvml import GpuProcess

MODE_US: Final = 60_000_000
"""How often it is asked whether accounting is on."""
_RECORDS: Final = 64
"""Records that are read for one look."""
_WHOLE_PPM: Final = 1_000_000


class Ask(Protocol):
    """The answer of a call, or None where it can't be had."""

    def __call__(self, call: str, ask: Callable[[], Any], /) -> Any: ...


class Processes:
    """The processes of one chip, from one opening of the library to its closing."""

    def __init__(self, handle: nvml.Handle, ask: Ask) -> None:
        self._handle = handle
        self._ask = ask
        self._since_us = 0
        self._looked_us: int | None = None
        self._mode_us: int | None = None
        self._records: set[int] | None = None
        """Pids with a record, at the last look; None while accounting is off."""

    def look(self, now_us: int) -> tuple[GpuProcess, ...] | None:
        """Who computes on the chip, or did since the last look; None where the driver doesn't say."""
        found = self._ask("nvmlDeviceGetComputeRunningProcesses", lambda: nvml.processes(self._handle))
        if found is None:
            return None
        samples = self._samples(here=found.keys())
        known = samples is not None
        periods = len({at_us for _, _, at_us in samples or ()})
        listed = {
            pid: GpuProcess(pid, found.get(pid), _mean_ppm([part for p, part, _ in samples or () if p == pid], periods))
            for pid in found.keys() | {pid for pid, part, _ in samples or () if part}
        }
        for ended in self._accounted(now_us, skip=listed.keys(), shown=known):
            listed[ended.pid] = ended
        self._looked_us = now_us
        return tuple(listed[pid] for pid in sorted(listed))

    def _samples(self, *, here: Collection[int]) -> list[tuple[int, int, int]] | None:
        """(pid, percent, time) since the last look, or None where the driver doesn't tell utilization by process."""
        since_us, first = self._since_us, not self._since_us
        found = self._ask(
            "nvmlDeviceGetProcessUtilization", lambda: nvml.process_utilization(self._handle, since_us)
        )  # fmt: skip
        if found is None:
            return None
        # Drivers also give back samples from before, and parts beyond the whole.
        recent = [s for s in found if s[2] > since_us and s[1] <= 100]
        self._since_us = max([since_us, *(at_us for _, _, at_us in recent)])
        # The first answer goes back to before we looked: only who is still here counts.
        return [s for s in recent if s[0] in here] if first else recent

    def _accounted(self, now_us: int, *, skip: Collection[int], shown: bool) -> list[GpuProcess]:
        """Processes with a new record that are gone again, by how long they lived.

        :param shown: whether utilization by process is told, so that theirs has to be given beside it.
        """
        if self._mode_us is None or now_us >= self._mode_us:
            self._mode_us = now_us + MODE_US
            if not self._ask("nvmlDeviceGetAccountingMode", lambda: nvml.accounting(self._handle)):
                self._records = None
                return []
        elif self._records is None:
            return []
        pids = self._ask("nvmlDeviceGetAccountingPids", lambda: nvml.accounted_pids(self._handle))
        if pids is None:
            return []
        before, self._records = self._records, set(pids)
        if before is None or self._looked_us is None:
            # All of it is from before we looked.
            return []
        period_us = max(1, now_us - self._looked_us)
        ended = []
        for pid in sorted(self._records - before - set(skip))[:_RECORDS]:
            record = self._ask(
                "nvmlDeviceGetAccountingStats", partial(nvml.accounting_record, self._handle, pid)
            )  # fmt: skip
            if record is not None and not record.running:
                present = min(_WHOLE_PPM, record.time_ms * 1000 * _WHOLE_PPM // period_us)
                busy = min(record.busy_percent, 100) * present // 100
                ended.append(GpuProcess(pid, None, busy if shown else None, present))
        return ended


def _mean_ppm(percents: list[int], periods: int) -> int | None:
    """A process without a sample in a period had no part in it."""
    return sum(percents) * 10_000 // periods if percents else None
