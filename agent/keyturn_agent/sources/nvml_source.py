"""NVIDIA GPUs as a :class:`~keyturn_agent.ports.GpuSource`.

NVML runs in a thread of its own (:mod:`~.worker`): a read that doesn't come back by its deadline is a sample
without chips and the cause ``call_hung``, and so is each one after it, at once, until the thread is back.
A driver that is unloaded, upgraded or not there yet is a sample with its cause; the library is opened again after
1, 2, 4, 8, 10, 10 … s. Counters may have restarted meanwhile without standing lower than before, so the first
sample of a new opening has no chips either (``reopened``): no span lies across.

The order of the chips is that of the last :meth:`NvmlSource.inventory`. Where :attr:`NvmlSource.inventory_changed`
says so, call it again and start a new interval. A GPU that was once in it stays, unreadable, until the process
ends: going silent must not shorten the list of chips. MIG instances follow their GPU.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from keyturn_agent.errors import RefusedError, UsageError
from keyturn_agent.ports import Clock, Declared, Reading, Sample
from keyturn_agent.procs import Attribution
from keyturn_agent.sources import nvml, pci
from keyturn_agent.sources.nvml_causes import (
    CALL_HUNG,
    PAUSED,
    REOPENED,
    NvmlFailure,
)
from keyturn_agent.sources.nvml_gpm import MIN_SPACING_US
from keyturn_agent.sources.nvml_host import NvmlHost, Snapshot
from keyturn_agent.sources.nvml_inventory import with_roles
from keyturn_agent.sources.nvml_session import Versions
from keyturn_agent.sources.worker import CallHungError, Worker
from keyturn_protocol.entry_inventory import Chip, InventoryBody, PciDevice
from keyturn_protocol.entry_log import Source
from keyturn_protocol.entry_usage import Share
from keyturn_protocol.values import Slug

logger = logging.getLogger(__name__)

OPEN_DEADLINE_S: Final = 60.0
"""For the first opening: without persistence mode a driver takes seconds a GPU to wake up."""
READ_DEADLINE_S: Final = 2.0
BUS_US: Final = 60_000_000
"""How often the PCI bus is looked at."""


class NvmlSource:
    """All NVIDIA chips of this host.

    :param clock: CLOCK_BOOTTIME is taken from it.
    :param period_us: between samples, at least 100 ms, which is what GPM needs.
    :param sysfs: where the PCI bus is read.
    :param attribution: whose the processes are; None attributes nothing.
    :raises UsageError: for a shorter period.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        period_us: int = 1_000_000,
        open_deadline_s: float = OPEN_DEADLINE_S,
        read_deadline_s: float = READ_DEADLINE_S,
        sysfs: Path = pci.SYSFS,
        attribution: Attribution | None = None,
    ) -> None:
        if period_us < MIN_SPACING_US:
            raise UsageError("bad_flag", f"sample period: must be at least {MIN_SPACING_US} µs (got {period_us})")
        self._clock = clock
        self._period_us = period_us
        self._open_deadline_s = open_deadline_s
        self._read_deadline_s = read_deadline_s
        self._sysfs = sysfs
        self._attribution = attribution
        self.worker = Worker("keyturn-nvml")
        self._host = NvmlHost(clock)
        self._paused = self._stopped = False
        self._versions = self._listed_versions = Versions(None, None, None)
        self._known: tuple[Chip, ...] = ()
        self._listed: tuple[Chip, ...] = ()
        self._forgotten: frozenset[str] = frozenset()
        self._opening = 0
        self._sampled = False
        self._bus: list[PciDevice] | None = None
        self._listed_bus: list[PciDevice] | None = None
        self._bus_us = 0
        self._unshown: frozenset[str] = frozenset()
        self._due_us: int | None = None
        self._trouble: Slug | None = None

    @property
    def kind(self) -> Source:
        return "nvml"

    @property
    def inventory_changed(self) -> bool:
        """Whether the next :meth:`inventory` would differ: in a chip, in how it is measured, in a version, or in what
        is plugged in.
        """
        return (
            self._versions != self._listed_versions
            or self._bus != self._listed_bus
            or _essence(self._known) != _essence(self._listed)
        )

    @property
    def trouble(self) -> Slug | None:
        """Why nothing could be read when it was last tried, or None."""
        return self._trouble

    def inventory(self) -> InventoryBody:
        """The chips as far as known, and the PCI bus. Opens NVML if it isn't, without waiting for it for long.

        Doesn't fail: on a host whose driver is dead there are no chips, or those of before, and ``trouble`` says
        why.
        """
        # Only the start may take its time: later on a watchdog waits for the agent.
        deadline_s = self._read_deadline_s if self._sampled else self._open_deadline_s
        snapshot = self._look(self._host.peek, self._clock.now().mono_us, deadline_s)
        if snapshot is not None and not self._sampled:
            self._opening = snapshot.opening
        self._scan()
        self._listed, self._listed_versions, self._listed_bus = self._known, self._versions, self._bus
        if self._due_us is None:
            # Opening has taken a GPM sample.
            self._due_us = self._clock.now().mono_us + MIN_SPACING_US
        return InventoryBody(
            chips=with_roles(self._listed),
            driver_version=self._versions.driver,
            nvml_version=self._versions.nvml,
            cuda_version=self._versions.cuda,
            gate="none",
            pci=self._bus,
        )

    def declared(self, workload: str) -> Declared | None:  # noqa: ARG002 - of the port
        """Nothing: a driver knows no workloads."""
        return None

    def due_us(self, now_us: int) -> int | None:
        """The next moment on the grid of the period. Missed ones are left out, none comes less than 100 ms later."""
        if self._due_us is None:
            self._due_us = now_us
        return self._due_us

    def read(self, now_us: int) -> Sample:
        self._sampled = True
        self._schedule(now_us)
        self._look_at_bus(now_us)
        snapshot = self._look(self._host.look, now_us, self._read_deadline_s)
        reopened = snapshot is not None and snapshot.opening != self._opening
        readings: list[Reading | None] = []
        causes: list[Slug] = []
        for chip in self._listed:
            reading, cause = (None, REOPENED) if reopened else self._of(snapshot, chip.uuid)
            readings.append(reading)
            if cause is not None:
                causes.append(cause)
        if snapshot is not None:
            self._opening = snapshot.opening
        error = causes[0] if causes else self._trouble if not self._listed else None
        shares, reasons = self._attributed() if snapshot is not None else ((), {})
        return Sample(now_us, tuple(readings), error, shares, reasons)

    def processes(self) -> tuple[tuple[nvml.GpuProcess, ...] | None, ...]:
        """Who computes on each listed chip; None where that isn't known. Pids are the host's."""
        try:
            found = self.worker.call(self._host.processes, self._read_deadline_s)
        except (CallHungError, NvmlFailure):
            found = {}
        return tuple(found.get(chip.uuid) for chip in self._listed)

    def accounting(self) -> tuple[int, int]:
        """On how many GPUs NVML's accounting mode is on, and how many there are."""
        try:
            return self.worker.call(self._host.accounting, self._read_deadline_s)
        except (CallHungError, NvmlFailure):
            return 0, 0

    @property
    def blind(self) -> tuple[Slug, str] | None:
        return None if self._attribution is None else self._attribution.blind

    def _attributed(self) -> tuple[tuple[Share, ...], Mapping[Slug, int]]:
        if self._attribution is None:
            return (), {}
        return self._attribution.shares(self._listed, self.processes())

    def close(self) -> None:
        """Close NVML, so that a GPU can be reset or the driver replaced; samples are empty until :meth:`reopen`.

        :raises RefusedError: ``nvml_hung``: a call hasn't come back, so handles are still open. It is paused
            all the same, and closes when the call is back.
        """
        self._paused = True
        try:
            self.worker.call(self._host.close, self._read_deadline_s)
        except CallHungError as error:
            raise RefusedError(
                "nvml_hung",
                f"closing NVML: {error}; its handles are still open",
                hint="a GPU reset or driver upgrade has to wait for it, or for the end of this process",
            ) from error

    def reopen(self) -> None:
        """Go on after :meth:`close`."""
        self._paused = False

    def forget(self, uuids: Collection[str]) -> None:
        self._forgotten |= frozenset(uuids)
        self._known = tuple(chip for chip in self._known if not {chip.uuid, chip.parent} & self._forgotten)

    def stop(self) -> None:
        """The end: close NVML if it lets itself be closed, and end the thread. Done again, it does nothing."""
        if self._stopped:
            return
        self._stopped = True
        try:
            self.close()
        except RefusedError as error:
            logger.warning("%s", error)
        self.worker.stop()

    def _schedule(self, now_us: int) -> None:
        due = now_us if self._due_us is None else self._due_us
        due += max(0, now_us - due) // self._period_us * self._period_us + self._period_us
        self._due_us = max(due, now_us + MIN_SPACING_US)

    def _scan(self) -> bool:
        """What is plugged in; returns whether the driver has newly taken a GPU that NVML doesn't show."""
        self._bus = pci.scan(self._sysfs)
        self._bus_us = self._clock.now().mono_us + BUS_US
        shown = {chip.pci_bus_id for chip in self._known}
        taken = frozenset(d.bus_id for d in self._bus or () if d.vendor == pci.NVIDIA and d.driver == "nvidia")
        before, self._unshown = self._unshown, taken - shown
        return bool(self._unshown - before)

    def _look_at_bus(self, now_us: int) -> None:
        """Every :data:`BUS_US`: a GPU that was plugged in shows itself only to a new opening of the library."""
        if now_us >= self._bus_us and self._scan() and not self._paused and not self.worker.hangs:
            logger.warning("there is a new GPU on the PCI bus: NVML is opened again")
            try:
                self.worker.call(self._host.close, self._read_deadline_s)
            except CallHungError as error:
                self._say(CALL_HUNG, error)

    def _look(self, look: Callable[[int], Snapshot], now_us: int, deadline_s: float) -> Snapshot | None:
        """What the worker sees now, or None with the cause in ``trouble``."""
        if self._paused:
            self._close_late()
            self._trouble = PAUSED
            return None
        try:
            snapshot = self.worker.call(lambda: look(now_us), deadline_s)
        except CallHungError as error:
            self._say(CALL_HUNG, error)
            return None
        except NvmlFailure as failure:
            self._say(failure.cause.slug, failure)
            return None
        self._trouble = None
        self._versions = snapshot.versions
        self._forgotten -= {uuid for uuid, answer in snapshot.answers.items() if answer.reading is not None}
        shown = [chip for chip in snapshot.chips if not {chip.uuid, chip.parent} & self._forgotten]
        self._known = _merge(self._known, shown)
        return snapshot

    def _close_late(self) -> None:
        """A call that hung when it was to be closed may be back by now."""
        if not self.worker.hangs and self._host.is_open:
            try:
                self.worker.call(self._host.close, self._read_deadline_s)
            except CallHungError as error:
                self._say(CALL_HUNG, error)

    def _of(self, snapshot: Snapshot | None, uuid: str) -> tuple[Reading | None, Slug | None]:
        if snapshot is None:
            return None, self._trouble
        answer = snapshot.answers.get(uuid)
        return (None, "not_found") if answer is None else (answer.reading, answer.cause)

    def _say(self, cause: Slug, error: Exception) -> None:
        if self._trouble != cause:
            logger.warning("NVML can't be read: %s", error)
        self._trouble = cause


def _merge(known: Sequence[Chip], shown: Sequence[Chip]) -> tuple[Chip, ...]:
    """The chips that are shown, in their order, and after them the known ones that went silent."""
    by_uuid = {chip.uuid for chip in shown}
    silent = [
        chip for chip in known if chip.uuid not in by_uuid and (chip.parent is None or chip.parent not in by_uuid)
    ]
    return (*shown, *silent)


def _essence(chips: Sequence[Chip]) -> list[Chip]:
    """The chips without the wording of why something isn't measured, which may change from call to call."""
    return [msgspec.structs.replace(chip, not_measured=dict.fromkeys(chip.not_measured, "")) for chip in chips]
